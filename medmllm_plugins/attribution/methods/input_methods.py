"""Attribution methods at a model's inputs: the tower's pixels, and the words of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from captum.attr import FeatureAblation, IntegratedGradients, KernelShap, Saliency
from torch import Tensor

from medmllm_plugins.attribution.attribution_input import (
    PIXELS,
    ActivationPatch,
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
from medmllm_plugins.models.stages import EMBED

PROMPT = "prompt"
"""The layer of the prompt's words."""
MOST_GROUPS = 196
"""Patches are taken together for occlusion where there are more, neighbours with neighbours."""


def saliency(case: AttributionInput, layers: Sequence[str], how: MethodConfig) -> dict[str, Scores]:
    """The size of the target's gradient at each pixel: Captum's Saliency (Simonyan et al., arXiv:1312.6034)."""
    given = case.pixels[None].detach().clone().requires_grad_()
    with translated_gradient_errors([PIXELS]):
        found: Tensor = Saliency(lambda pixels: case.values(len(pixels), (), pixels)).attribute(given)
    return {PIXELS: Scores(_by_patch(case, found))}


def integrated_gradients(case: AttributionInput, layers: Sequence[str], how: MethodConfig) -> dict[str, Scores]:
    """Gradients along the way from baseline to image, at each pixel: Captum's IntegratedGradients."""
    with translated_gradient_errors([PIXELS]):
        found: Tensor = IntegratedGradients(lambda pixels: case.values(len(pixels), (), pixels)).attribute(
            case.pixels[None].detach().clone().requires_grad_(),
            case.blank_pixels[None],
            n_steps=how.steps,
            method=RULE,
            internal_batch_size=case.batch,
        )
    with torch.no_grad():
        wanted = case.value - float(case.values(1, (), case.blank_pixels[None]))
    return {PIXELS: Scores(_by_patch(case, found), completeness_gap(float(found.detach().sum()), wanted))}


def occlusion(case: AttributionInput, layers: Sequence[str], how: MethodConfig) -> dict[str, Scores]:
    """By how much the target falls when a patch of the image is put back to the baseline (Zeiler and Fergus 2014)."""
    patches, blank = to_patches(case.loaded, case.pixels), to_patches(case.loaded, case.blank_pixels)

    def forward(keep: Tensor) -> Tensor:
        return case.values(len(keep), (), mixed_pixels(case, patches, blank, keep))

    groups = neighbourhoods(cells(case.loaded, case.inputs, case.shown, PIXELS), MOST_GROUPS)
    return {PIXELS: Scores(ablation_scores(case, forward, len(patches), torch.from_numpy(groups)))}


def mixed_pixels(case: AttributionInput, patches: Tensor, blank: Tensor, keep: Tensor) -> Tensor:
    """Pixels with some patches of the image and others of the baseline.

    Args:
        case: the case.
        patches: (n, c, p, p) of the image.
        blank: (n, c, p, p) of the baseline.
        keep: (R, n), 1 where the image's patch is kept and 0 where the baseline's is shown.

    Returns:
        (R, …), in the processor's layout.
    """
    shown = torch.where(keep[..., None, None, None] > 0, patches, blank)
    return torch.stack([from_patches(case.loaded, one, case.pixels) for one in shown])


def prompt_ablation(case: AttributionInput, layers: Sequence[str], how: MethodConfig) -> dict[str, Scores]:
    """By how much the target falls when a word of the prompt is read as padding: Captum's FeatureAblation."""
    words, scores = word_indices(case), masked_prompt_scores(case)
    keep = torch.ones(1, int(words.max()) + 1, device=case.loaded.device)
    with torch.no_grad():
        found: Tensor = FeatureAblation(lambda kept: case.target.value(scores(kept))).attribute(
            keep, 0.0, perturbations_per_eval=case.batch
        )
    return {PROMPT: Scores(_shared(found[0], words))}


def kernel_shap(case: AttributionInput, layers: Sequence[str], how: MethodConfig) -> dict[str, Scores]:
    """Shapley values of the prompt's words, estimated by Captum's KernelShap (Lundberg and Lee, arXiv:1705.07874)."""
    words, scores = word_indices(case), masked_prompt_scores(case)
    keep = torch.ones(1, int(words.max()) + 1, device=case.loaded.device)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(how.seed)
        found: Tensor = KernelShap(lambda kept: case.target.value(scores(kept))).attribute(
            keep, 0.0, n_samples=how.samples * keep.shape[1], perturbations_per_eval=case.batch
        )
    return {PROMPT: Scores(_shared(found[0], words))}


def word_indices(case: AttributionInput) -> Tensor:
    """Which word each token of the prompt belongs to, (L,), int64; -1 for image tokens.

    A word begins at a token whose text begins with white space, at a special token, and behind one.
    """
    tokenizer, ids = case.loaded.tokenizer, case.inputs["input_ids"][0].tolist()
    special = set(tokenizer.all_special_ids)
    found, word, fresh = [], -1, True
    for token, text in zip(ids, case.text.tolist(), strict=True):
        if not text:
            found.append(-1)
            fresh = True
            continue
        said = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
        # SentencePiece drops a blank at the beginning of what it decodes, but its pieces show it.
        piece = str(tokenizer.convert_ids_to_tokens(token))
        if fresh or token in special or said[:1].isspace() or piece[:1] in ("▁", "Ġ"):
            word += 1
        fresh = token in special
        found.append(word)
    return torch.tensor(found, device=case.loaded.device)


def token_texts(case: AttributionInput) -> list[str]:
    """The text of each token of the prompt; of image tokens an empty one."""
    tokenizer, ids = case.loaded.tokenizer, case.inputs["input_ids"][0].tolist()
    return [
        str(tokenizer.decode([token], clean_up_tokenization_spaces=False)) if text else ""
        for token, text in zip(ids, case.text.tolist(), strict=True)
    ]


def masked_prompt_scores(case: AttributionInput) -> Callable[[Tensor], Tensor]:
    """Scores of the answers, (R, K), with some words read as padding: takes (R, words), 1 for those that are kept."""
    words = word_indices(case)
    states = case.states([EMBED])[EMBED]

    def forward(keep: Tensor) -> Tensor:
        kept = (words < 0) | (keep[:, words.clamp(min=0)] > 0)
        return case.scores(len(keep), [ActivationPatch(EMBED, torch.where(kept[..., None], states, case.padding))])

    return forward


def _shared(values: Tensor, words: Tensor) -> Tensor:
    """Each word's value, shared among its tokens; 0 for image tokens."""
    own = words >= 0
    found = torch.zeros(len(words), device=words.device)
    found[own] = values.float()[words[own]] / words[own].bincount()[words[own]]
    return found


def _by_patch(case: AttributionInput, found: Tensor) -> Tensor:
    """(n, p, p), summed over the channels."""
    return to_patches(case.loaded, found[0].detach().float()).sum(1)
