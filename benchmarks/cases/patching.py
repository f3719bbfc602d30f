"""Twin patching: resumed passes in batches against plain hooks, one document and one site at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from benchmarks.harness import Benchmark, Details, Run, Sides, expect
from benchmarks.models import QUESTION, MeasuredModel, dtype_name, model_of_size, phantom_images
from medmllm_plugins.interventions.twin_patching import IMAGE_SITES, PatchSite, patch_sites, patch_twins
from medmllm_plugins.models.recorded_pass import CONNECTOR, TOWER_END
from medmllm_plugins.models.stages import EMBED, layers_of

BATCH = 8
"""Documents at a time; with more, a CPU loses the gain to memory allocation."""
NOISE = 0.3
"""Noise on the weights of the second model, in their standard deviations."""
TOKENS = 4
"""Tokens of an answer at most; an answer about a phantom has two."""
Texts = list[list[str]]
"""The answers of each model at each site, document by document: the first model's sites, then the second's."""


def batched(models: Sequence[MeasuredModel], pictures: Sequence[Image], sites: Sequence[PatchSite]) -> Texts:
    """Patch as this package does, without label scores."""
    texts: Texts = [[] for _ in range(2 * len(sites))]
    first, second = (model.loaded for model in models)
    for start in range(0, len(pictures), BATCH):
        batch = list(pictures[start : start + BATCH])
        sides = patch_twins(first, second, QUESTION, batch, (), sites, max_new_tokens=TOKENS)
        rows = [side[site] for side in sides for site in sites]
        for kept, answers in zip(texts, rows, strict=True):
            kept += [answer.text for answer in answers]
    return texts


@torch.no_grad()
def plain_hooks(models: Sequence[MeasuredModel], pictures: Sequence[Image], sites: Sequence[PatchSite]) -> Texts:
    """Record the donor's states with hooks, and generate for each document and site with a hook that replaces them.

    Every site needs a whole pass.
    """
    texts: Texts = []
    for recipient, donor in (models, models[::-1]):
        modules, others = (modules_at(model, sites) for model in (recipient, donor))
        rows: Texts = [[] for _ in sites]
        for picture in pictures:
            inputs = recipient.loaded.prepare([QUESTION], [picture])
            states: dict[PatchSite, Tensor] = {}
            with ExitStack() as stack:
                for site in sites:
                    stack.enter_context(_hooked(others[site], site, _recorder(states, site)))
                network: Any = donor.loaded.model
                network(**inputs, use_cache=False)
            image = recipient.loaded.image_positions(inputs)
            for site, row in zip(sites, rows, strict=True):
                with _hooked(modules[site], site, _replacer(states[site], site, image)):
                    row.append(generate(recipient, inputs))
        texts += rows
    return texts


def modules_at(model: MeasuredModel, sites: Sequence[PatchSite]) -> dict[PatchSite, nn.Module]:
    """Return the module that is hooked for each site; what the tower gives is hooked where the connector takes it."""
    named = {layer.name: layer.module for layer in layers_of(model.loaded)}
    return {site: named["connector" if site.layer == TOWER_END else site.layer] for site in sites}


def generate(model: MeasuredModel, inputs: Mapping[str, Tensor]) -> str:
    """Answer one prompt with transformers' ``generate``."""
    loaded, network = model.loaded, model.loaded.model
    caller: Any = network
    output = caller.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=TOKENS,
        eos_token_id=list(loaded.eos_token_ids),
        pad_token_id=loaded.pad_token_id,
    )
    tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
    return str(loaded.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@contextmanager
def _hooked(module: nn.Module, site: PatchSite, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change what a module returns, or at the end of the tower what the connector takes."""

    def before(_module: Any, args: Any) -> Any:
        return (change(args[0]), *args[1:])

    def after(_module: Any, _args: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    at_input = site.layer == TOWER_END
    handle = module.register_forward_pre_hook(before) if at_input else module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def _recorder(states: dict[PatchSite, Tensor], site: PatchSite) -> Callable[[Tensor], Tensor]:
    def record(output: Tensor) -> Tensor:
        states[site] = output
        return output

    return record


def _replacer(state: Tensor, site: PatchSite, image: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that replaces states of the prompt; later passes, of one token each, are left as they are."""
    chosen = image.clone() if site.tokens == "image" else torch.zeros_like(image)
    if site.tokens == "last":
        chosen[:, -1] = True

    def replace(output: Tensor) -> Tensor:
        if output.shape != state.shape:
            return output
        return state if site.layer in IMAGE_SITES else torch.where(chosen[:, :, None], state, output)

    return replace


def check(ours: Texts, baseline: Texts, *, exact: bool) -> Details:
    """Check that both sides wrote the same texts."""
    pairs = [pair for fast, plain in zip(ours, baseline, strict=True) for pair in zip(fast, plain, strict=True)]
    differ = [pair for pair in pairs if pair[0] != pair[1]]
    expect(
        not exact or not differ,
        "the same answers",
        f"{len(differ)} different ones: {differ[:1]}",
        "tests/interventions",
    )
    return {"patched_answers": len(pairs), "different_texts": len({pair[0] for pair in pairs})}


def setup(run: Run, documents: int, every: int = 1) -> Sides:
    """Load the model twice, and add noise to the weights of one; of the LLM's blocks each ``every``-th is a site."""
    model = model_of_size(run.size, run.device)
    twin = copy.copy(model.loaded)
    twin.model = copy.deepcopy(model.loaded.model)
    # On the device, where billions of random numbers take no time.
    generator = torch.Generator(run.device if run.device.startswith("cuda") else "cpu").manual_seed(0)
    with torch.no_grad():
        for weight in twin.model.parameters():
            if weight.dim() > 1:
                noise = torch.randn(weight.shape, generator=generator, device=generator.device).to(weight)
                weight.add_(NOISE * weight.float().std() * noise)
    models = (model, model._replace(loaded=twin))
    # Plain hooks on a block reach the tokens of the prompt alone, and none reaches the connector by itself.
    blocks = [
        site for site in patch_sites(model.loaded) if site.tokens != "all" and site.layer not in (*IMAGE_SITES, EMBED)
    ]
    chosen = sorted({site.layer for site in blocks})[::every]
    sites = [
        site
        for site in patch_sites(model.loaded)
        if site.layer in (TOWER_END, CONNECTOR) or (site in blocks and site.layer in chosen)
    ]
    pictures = phantom_images(documents)
    return Sides(
        ours=partial(batched, models, pictures, sites),
        baseline=partial(plain_hooks, models, pictures, sites),
        check=partial(check, exact=model.exact),
        items=documents,
        model=model.loaded.model,
        dtype=dtype_name(model),
    )


BENCHMARK = Benchmark(
    name="patching",
    ours=f"patch_twins: resumed passes, {BATCH} documents at a time, texts alone",
    baseline="plain hooks and transformers' generate, one document and one site at a time",
    setup=setup,
    sizes={
        "tiny": {"documents": 32},
        "3b": {"documents": 8, "every": 12},
        "7b": {"documents": 8, "every": 12},
        "quick": {"documents": 2},
    },
    targets={("tiny", "cpu"): 5.0},
    repeats=3,
    devices=("cpu", "cuda"),
)
