"""Attribution methods at a model's inputs: the tower's pixels, and the words of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from captum.attr import FeatureAblation, IntegratedGradients, KernelShap, Saliency
from torch import Tensor

from medmllm_plugins.attribution.attribution_input import (
    PIXELS,
    AttributionInput,
    translated_gradient_errors,
)
from medmllm_plugins.attribution.geometry import cells, neighbourhoods
from medmllm_plugins.attribution.methods.layer_methods import (
    RULE,
    MethodConfig,
    Scores,
    ablation_scores,
    completeness_gap,
)
from medmllm_plugins.attribution.patches import from_patches, to_patches

PROMPT = "prompt"
"""Name of the prompt, where methods treat it like a layer."""
MOST_GROUPS = 196
"""Largest number of parts for occlusion; of more patches, neighbours are grouped."""


def saliency(case: AttributionInput, layers: Sequence[str], config: MethodConfig) -> dict[str, Scores]:
    """Return the size of the target's gradient at each pixel: Captum's Saliency (Simonyan et al., arXiv:1312.6034)."""
    image = case.pixels[None].detach().clone().requires_grad_()
    with translated_gradient_errors([PIXELS]):
        attributions: Tensor = Saliency(lambda pixels: case.values(len(pixels), (), pixels)).attribute(image)
    return {PIXELS: Scores(_by_patch(case, attributions))}


def integrated_gradients(case: AttributionInput, layers: Sequence[str], config: MethodConfig) -> dict[str, Scores]:
    """Integrate gradients along the path from baseline to image, at each pixel: Captum's IntegratedGradients."""
    with translated_gradient_errors([PIXELS]):
        attributions: Tensor = IntegratedGradients(lambda pixels: case.values(len(pixels), (), pixels)).attribute(
            case.pixels[None].detach().clone().requires_grad_(),
            case.blank_pixels[None],
            n_steps=config.steps,
            method=RULE,
            internal_batch_size=case.batch,
        )
    with torch.no_grad():
        difference = case.value - float(case.values(1, (), case.blank_pixels[None]))
    gap = completeness_gap(float(attributions.detach().sum()), difference)
    return {PIXELS: Scores(_by_patch(case, attributions), gap)}


def occlusion(case: AttributionInput, layers: Sequence[str], config: MethodConfig) -> dict[str, Scores]:
    """Return the fall of the target when a patch of the image is replaced by the baseline (Zeiler and Fergus 2014)."""
    patches, blank = to_patches(case.loaded, case.pixels), to_patches(case.loaded, case.blank_pixels)

    def forward(keep: Tensor) -> Tensor:
        return case.values(len(keep), (), mixed_pixels(case, patches, blank, keep))

    groups = neighbourhoods(cells(case.loaded, case.inputs, case.visual, PIXELS), MOST_GROUPS)
    return {PIXELS: Scores(ablation_scores(case, forward, len(patches), torch.from_numpy(groups)))}


def mixed_pixels(case: AttributionInput, patches: Tensor, blank: Tensor, keep: Tensor) -> Tensor:
    """Return pixels, (R, …), with patches (n, c, p, p) of the image where ``keep``, (R, n), is 1, else the baseline's.

    Returns:
        (R, …), in the processor's layout.
    """
    mixed = torch.where(keep[..., None, None, None] > 0, patches, blank)
    return torch.stack([from_patches(case.loaded, row, case.pixels) for row in mixed])


def prompt_ablation(case: AttributionInput, layers: Sequence[str], config: MethodConfig) -> dict[str, Scores]:
    """Return the fall of the target when a word of the prompt becomes padding: Captum's FeatureAblation."""
    words, values, keep = _maskable_prompt(case)
    with torch.no_grad():
        differences: Tensor = FeatureAblation(values).attribute(keep, 0.0, perturbations_per_eval=case.batch)
    return {PROMPT: Scores(_by_token(differences[0], words))}


def kernel_shap(case: AttributionInput, layers: Sequence[str], config: MethodConfig) -> dict[str, Scores]:
    """Estimate Shapley values of the prompt's words by Captum's KernelShap (Lundberg and Lee, arXiv:1705.07874)."""
    words, values, keep = _maskable_prompt(case)
    samples = config.samples * keep.shape[1]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(config.seed)
        shapley: Tensor = KernelShap(values).attribute(keep, 0.0, n_samples=samples, perturbations_per_eval=case.batch)
    return {PROMPT: Scores(_by_token(shapley[0], words))}


def _maskable_prompt(case: AttributionInput) -> tuple[Tensor, Callable[[Tensor], Tensor], Tensor]:
    """Return the word of each token, the target by words to keep, (R, words), and all words kept, (1, words)."""
    words, scores = word_indices(case), masked_prompt_scores(case)
    keep = torch.ones(1, int(words.max()) + 1, device=case.loaded.device)
    return words, lambda keep: case.target.value(scores(keep)), keep


def word_indices(case: AttributionInput) -> Tensor:
    """Return which word each token of the prompt belongs to, (L,), int64; -1 for image tokens.

    A word begins at a token whose text begins with white space, at a special token, and after one.
    """
    tokenizer, ids = case.loaded.tokenizer, case.inputs["input_ids"][0].tolist()
    special = set(tokenizer.all_special_ids)
    indices, word, begins_word = [], -1, True
    for token, is_text, text in zip(ids, case.text.tolist(), token_texts(case), strict=True):
        if not is_text:
            indices.append(-1)
            begins_word = True
            continue
        # SentencePiece drops a blank at the beginning of what it decodes, but its pieces show it.
        piece = str(tokenizer.convert_ids_to_tokens(token))
        if begins_word or token in special or text[:1].isspace() or piece[:1] in ("▁", "Ġ"):
            word += 1
        begins_word = token in special
        indices.append(word)
    return torch.tensor(indices, device=case.loaded.device)


def token_texts(case: AttributionInput) -> list[str]:
    """Return the text of each token of the prompt; empty for image tokens."""
    tokenizer, ids = case.loaded.tokenizer, case.inputs["input_ids"][0].tolist()
    return [
        str(tokenizer.decode([token], clean_up_tokenization_spaces=False)) if is_text else ""
        for token, is_text in zip(ids, case.text.tolist(), strict=True)
    ]


def masked_prompt_scores(case: AttributionInput) -> Callable[[Tensor], Tensor]:
    """Return a function from words to keep, (R, words), to scores, (R, K); the other words become padding.

    Their tokens do, and not only their embeddings, since blocks may read tokens themselves (the small Gemma 4).
    """
    words = word_indices(case)
    ids = case.inputs["input_ids"][0]

    def forward(keep: Tensor) -> Tensor:
        is_unchanged = (words < 0) | (keep[:, words.clamp(min=0)] > 0)
        return case.scores(len(keep), ids=torch.where(is_unchanged, ids, case.loaded.pad_token_id))

    return forward


def _by_token(values: Tensor, words: Tensor) -> Tensor:
    """Return each word's value divided among its tokens; 0 for image tokens."""
    is_text = words >= 0
    shares = torch.zeros(len(words), device=words.device)
    shares[is_text] = values.float()[words[is_text]] / words[is_text].bincount()[words[is_text]]
    return shares


def _by_patch(case: AttributionInput, values: Tensor) -> Tensor:
    """Return values of pixels by patch, summed over the channels, (n, p, p)."""
    return to_patches(case.loaded, values[0].detach().float()).sum(1)
