"""Checks of a family: where its layers are, and how their outputs are arranged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from medmllm_plugins.errors import ModelError
from medmllm_plugins.features.hooks import ActivationHooks
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.families.family import stage_module
from medmllm_plugins.models.stages import Layer, is_block, layers_of
from medmllm_plugins.testing.check_outcomes import CheckFailed, require, require_close
from medmllm_plugins.testing.check_subjects import ModelSubject

POOLINGS = ("mean", "max", "last")


def check_stages_are_found(subject: ModelSubject) -> None:
    """Assert that the model has the modules that its family names, a different one for each layer.

    Curves, maps and interventions need every layer; another version of transformers may name modules differently.
    """
    layers = _layers(subject)
    family, model = subject.loaded.family, subject.loaded.model
    try:
        for name in (family.embed, family.head, *family.before_connector):
            stage_module(model, name)
    except ModelError as error:
        raise CheckFailed(f"{subject.name}: {error}") from error
    modules = [id(layer.module) for layer in layers if not layer.enters]
    repeated = [layer.name for layer in layers if not layer.enters and modules.count(id(layer.module)) > 1]
    require(not repeated, f"{subject.name}: expected a module for each layer, got one for {repeated}.")
    counts = {part: sum(layer.part == part and is_block(layer) for layer in layers) for part in ("vision", "llm")}
    for part, stated in _stated_depths(model).items():
        require(
            counts[part] == stated,
            f"{subject.name}: expected {stated} blocks of the {part} part, as config.json says, got {counts[part]}. Is "
            f"`{part}_blocks` the list of all blocks?",
        )


def _layers(subject: ModelSubject) -> tuple[Layer, ...]:
    try:
        return layers_of(subject.loaded)
    except ModelError as error:
        raise CheckFailed(f"{subject.name}: {error}") from error


def _stated_depths(model: Any) -> dict[str, int]:
    """Return the numbers of blocks that the config states; the LLM's alone, as towers state theirs in many ways."""
    text = getattr(model.config, "text_config", None)
    count = getattr(text, "num_hidden_layers", None)
    return {} if count is None else {"llm": int(count)}


def check_hooks_fire_once(subject: ModelSubject) -> None:
    """Assert that each layer runs exactly once for a batch, whatever is asked about it afterwards.

    A layer that runs twice or never would be recorded from another pass than the one that gives the answer.
    """
    loaded, examples = subject.loaded, subject.examples
    counts: dict[str, int] = {}
    with recorded(_layers(subject), lambda layer, _: counts.__setitem__(layer, counts.get(layer, 0) + 1)):
        loaded.generate(*examples.batch(range(len(examples))), max_new_tokens=0)
    odd = {layer.name: counts.get(layer.name, 0) for layer in _layers(subject) if counts.get(layer.name, 0) != 1}
    require(
        not odd,
        f"{subject.name}: expected each layer to run once in the prefill of a batch, got {odd} runs. Does the family "
        "name the modules that are run, and the tower run once for all images of a batch?",
    )


@contextmanager
def recorded(layers: Sequence[Layer], record: Any) -> Iterator[None]:
    """Call ``record(name, output)`` for each layer that runs while the context is open, by hooks of torch alone."""
    handles = []
    for layer in layers:

        def before(_: Any, args: Any, kwargs: Any, name: str = layer.name) -> None:
            record(name, args[0] if args else kwargs["hidden_states"])

        def after(_: Any, __: Any, output: Any, name: str = layer.name) -> None:
            record(name, output[0] if isinstance(output, tuple) else output)

        if layer.enters:
            handles.append(layer.module.register_forward_pre_hook(before, with_kwargs=True))
        else:
            handles.append(layer.module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_features_equal_plain_hooks(subject: ModelSubject) -> None:
    """Assert that the recorded features of a document are means and maxima of what plain PyTorch hooks see.

    In the tower these are taken over the patches without class tokens, in the LLM over the image tokens.
    """
    loaded, examples = subject.loaded, subject.examples
    for row in range(len(examples)):
        questions, visuals = examples.batch([row])
        features = record_features(subject, questions, visuals)
        outputs: dict[str, Tensor] = {}
        inputs = loaded.prepare(questions, visuals)
        with torch.no_grad(), recorded(_layers(subject), outputs.__setitem__):
            loaded.prefill(inputs)
        for layer in _layers(subject):
            for pooling, expected in _pooled(loaded, layer, outputs[layer.name], inputs).items():
                what = f"{subject.name}, document {row}, {layer.name}, {pooling}"
                require((layer.name, pooling) in features, f"{what}: expected a feature, got none. Check `to_rows`.")
                advice = "Check `to_rows`, `class_tokens` and `image_positions` of the family."
                require_close(features[layer.name, pooling][0], expected, what, advice)


def _pooled(loaded: LoadedModel, layer: Layer, output: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pool one document's output of a layer, by hand."""
    if layer.part == "llm":
        tokens = output[0].float()
        image = tokens[loaded.image_positions(inputs)[0].to(tokens.device)]
        return {"mean": image.mean(0), "max": image.amax(0), "last": tokens[-1]}
    rows = layer.rows(output).float()
    mask = loaded.family.row_mask(loaded.model, "vision" if layer.part == "vision" else "connector", inputs)
    if mask is not None:
        rows = rows[mask.to(rows.device)]
    if not loaded.family.flat:
        if rows.dim() == 2:  # a norm that is given the class token alone
            return {}
        rows = rows.flatten(1, -2)
        if layer.part == "vision":
            rows = rows[:, loaded.family.class_tokens(loaded.model) :]
    rows = rows.reshape(-1, rows.shape[-1])
    return {"mean": rows.mean(0), "max": rows.amax(0)}


def record_features(subject: ModelSubject, questions: Any, visuals: Any) -> dict[tuple[str, str], Tensor]:
    """Return the features of a batch by layer and pooling, (B, d) float32.

    Raises:
        CheckFailed: the family states another number of rows than the model returns.
    """
    hooks = ActivationHooks(subject.loaded, POOLINGS)
    try:
        subject.loaded.generate(questions, visuals, max_new_tokens=0, watch=hooks)
        return dict(hooks.activations)
    except ModelError as error:
        raise CheckFailed(f"{subject.name}: {error}") from error
    finally:
        hooks.close()


def check_rows_belong_to_their_document(subject: ModelSubject) -> None:
    """Assert that features of documents in a batch of mixed sizes are those that each document has alone.

    Images of different sizes have different numbers of tiles, patches or tokens; a wrong ``rows_per_document`` hands
    some of them to the neighbour.
    """
    examples = subject.examples
    batch = record_features(subject, *examples.batch(range(len(examples))))
    for row in range(len(examples)):
        alone = record_features(subject, *examples.batch([row]))
        require(
            alone.keys() == batch.keys(),
            f"{subject.name}: expected the same features alone and in a batch, got others at "
            f"{sorted(alone.keys() ^ batch.keys())[:3]}.",
        )
        for (layer, pooling), value in alone.items():
            advice = "Check `rows_per_document` and `pixels_by_document` of the family."
            what = f"{subject.name}, document {row} of a batch of {len(examples)}, {layer}, {pooling}"
            require_close(batch[layer, pooling][row], value[0], what, advice)
