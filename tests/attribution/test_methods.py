"""Every method says what Captum says when called directly, on a model of each family, through plain forward calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import (
    FeatureAblation,
    IntegratedGradients,
    KernelShap,
    LayerActivation,
    LayerConductance,
    LayerFeatureAblation,
    LayerGradCam,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    Saliency,
)
from PIL import Image
from support.loading import ALL, load
from support.tiny_medm_vl import write_ct_checkpoint
from torch import Tensor, nn

from medmllm_plugins.attribution.attribution_input import ActivationPatch, AttributionInput
from medmllm_plugins.attribution.attribution_target import Target
from medmllm_plugins.attribution.checks.map_checks import rank_correlation
from medmllm_plugins.attribution.methods import input_methods as at_inputs
from medmllm_plugins.attribution.methods import layer_methods
from medmllm_plugins.attribution.methods.layer_methods import MethodConfig, Scores
from medmllm_plugins.attribution.methods.method_registry import select_methods
from medmllm_plugins.attribution.methods.rollout import attention_rollout
from medmllm_plugins.attribution.patches import from_patches, to_patches
from medmllm_plugins.data.readers.volumes import Volume
from medmllm_plugins.errors import OptionError
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.formats import medm_vl
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.stages import layers_of

torch.set_num_threads(1)

QUESTION = "Benign?"
LABELS = ("benign", "malignant", "normal")
LAYERS = ("vision.00", "connector", "llm.00")
STEPS = 5
HOW = MethodConfig(steps=STEPS, samples=2, seed=3)
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
GREY = Image.new("RGB", IMAGE.size, (128, 128, 128))
TARGET = Target.of_label("m", ("b", "m", "n"), LABELS)


class Plain:
    """The target by calls of the model itself, without a cache: each label behind the prompt is a row of its own.

    A module that passes its input on stands where a layer is, for Captum to hook.
    """

    def __init__(self, loaded: LoadedModel, labels: Sequence[str] = LABELS, wanted: int = 1) -> None:
        self.loaded, self.wanted = loaded, wanted
        self.inputs = loaded.prepare([QUESTION], [IMAGE])
        self.pixels = self.inputs["pixel_values"]
        self.blank = loaded.prepare([QUESTION], [GREY])["pixel_values"]
        self.prompt = self.inputs["input_ids"][0]
        self.length = len(self.prompt)
        self.labels = loaded.label_ids(QUESTION, list(labels))
        self.image = loaded.image_positions(self.inputs)[0]
        self.rows = 0

    def scores(self, pixels: Tensor, prompts: Tensor | None = None) -> Tensor:
        """(rows, K), from pixels (rows, …) and prompts (rows, L)."""
        many, longest, model = len(self.labels), max(map(len, self.labels)), self.loaded.model
        self.rows = len(pixels)
        prompts = self.prompt.expand(self.rows, -1) if prompts is None else prompts
        ends = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in self.labels])
        there = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in self.labels])
        given: dict[str, Any] = {}
        for name, value in self.inputs.items():
            if name == "pixel_values":
                given[name] = pixels.repeat_interleave(many, 0).flatten(0, 1)
            elif name == "input_ids":
                given[name] = torch.cat([prompts.repeat_interleave(many, 0), ends.repeat(self.rows, 1)], 1)
            elif name == "attention_mask":
                ones = torch.ones(self.rows * many, self.length, dtype=torch.long)
                given[name] = torch.cat([ones, there.repeat(self.rows, 1)], 1)
            elif name in ("token_type_ids", "mm_token_type_ids"):
                # PaliGemma reads its prompt, type 0, in both directions.
                kind = 1 if model.config.model_type == "paligemma" else 0
                tail = torch.full((self.rows * many, longest), kind)
                given[name] = torch.cat([value.repeat(self.rows * many, 1), tail], 1)
            else:
                given[name] = value.repeat(self.rows * many, *[1] * (value.dim() - 1))
        inner: Any = model.model
        if hasattr(inner, "rope_deltas"):
            inner.rope_deltas = None
        else:
            first = 1 if model.config.model_type == "paligemma" else 0
            given["position_ids"] = (torch.arange(self.length + longest) + first).expand(self.rows * many, -1)
        logits = model(**given, use_cache=False).logits.log_softmax(-1)
        logits = logits[:, self.length - 1 : -1].view(self.rows, many, longest, -1)
        found = logits.gather(3, ends.expand(self.rows, -1, -1)[..., None]).squeeze(3)
        return (found * there).sum(-1)

    def __call__(self, pixels: Tensor, prompts: Tensor | None = None) -> Tensor:
        chance = self.scores(pixels, prompts)
        others = [place for place in range(len(self.labels)) if place != self.wanted]
        return chance[:, self.wanted] - chance[:, others].exp().sum(1).log()

    @contextmanager
    def tapped(self, layer: str, *, channels_first: bool = False) -> Iterator[nn.Identity]:
        """A module that is given (rows, n, d) at a layer, or of the image's rows (rows, d, n)."""
        module: Any = next(place.module for place in layers_of(self.loaded) if place.name == layer)
        usual, tap = module.forward, nn.Identity()

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = usual(*args, **kwargs)
            first = output[0] if isinstance(output, tuple) else output
            grouped = first.reshape(self.rows, len(self.labels), -1, first.shape[-1])
            size = self.length if layer.startswith("llm") else grouped.shape[2]
            held, after = grouped[:, 0, :size], grouped[:, :, size:]
            if channels_first:
                own = self.image if layer.startswith("llm") else torch.ones(size, dtype=torch.bool)
                new = tap(held[:, own].transpose(1, 2)).transpose(1, 2)
                held = held.masked_scatter(own[:, None].expand_as(held), new)
            else:
                held = tap(held)
            whole = torch.cat([held[:, None].expand(-1, len(self.labels), -1, -1), after], 2).reshape(first.shape)
            return (whole, *output[1:]) if isinstance(output, tuple) else whole

        module.forward = forward
        try:
            yield tap
        finally:
            del module.forward


@pytest.fixture(scope="module", params=ALL)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(request.param, tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(scope="module")
def plain(model: LoadedModel) -> Plain:
    return Plain(model)


@pytest.fixture(scope="module")
def case(model: LoadedModel) -> AttributionInput:
    # An evaluation answers first: what it keeps must not stand in gradients' way.
    model.generate([QUESTION], [IMAGE], max_new_tokens=2, labels=list(LABELS))
    return AttributionInput(model, QUESTION, IMAGE, TARGET, batch=3)


def close(found: Tensor, wanted: Tensor, share: float = 1e-4) -> None:
    """Equal to a share of the largest value; where all are 0, equal."""
    wanted = wanted.detach()
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted.to(found.dtype), rtol=0, atol=share * float(wanted.abs().max()))


def gap_is(found: Scores, total: Tensor, difference: Tensor) -> None:
    """The gap, worked out by hand."""
    wanted = abs(float(total.sum()) - float(difference)) / max(abs(float(difference)), 0.1)
    assert found.gap == pytest.approx(wanted, abs=1e-3, rel=1e-2)


def captum(plain: Plain, layer: str, make: Callable[[Any], Tensor], **how: Any) -> Tensor:
    with plain.tapped(layer, **how) as tap:
        return make(tap)


def at_layers(
    case: AttributionInput, method: layer_methods.Method, layers: Sequence[str] = LAYERS, how: MethodConfig = HOW
) -> dict[str, Scores]:
    found = method(case, layers, how)
    assert list(found) == list(layers)
    return found


def test_values_are_those_of_plain_calls(model: LoadedModel, case: AttributionInput, plain: Plain) -> None:
    with torch.no_grad():
        both = torch.stack([plain.pixels, plain.blank])
        torch.testing.assert_close(case.scores(2, (), both), plain.scores(both), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(case.values(2, (), both), plain(both), atol=1e-4, rtol=1e-5)
        assert case.value == pytest.approx(float(plain(plain.pixels[None])), abs=1e-4)
        torch.testing.assert_close(case.blank_pixels, plain.blank)
        answer = AttributionInput(model, QUESTION, IMAGE, Target.of_answer("malignant"))
        assert answer.value == pytest.approx(float(plain.scores(plain.pixels[None])[0, 1]), abs=1e-4)


def test_what_stands_at_a_layer_can_be_replaced_in_some_rows(case: AttributionInput) -> None:
    with torch.no_grad():
        for layer in LAYERS:
            blank = case.baseline_states([layer])[layer]
            put = [ActivationPatch(layer, blank.repeat(2, 1, 1), 1)]
            found = case.values(4, put)
            assert found[0] == pytest.approx(case.value, abs=1e-4) == float(found[3])
            assert found[1] == pytest.approx(float(case.values(1, [ActivationPatch(layer, blank)])), abs=1e-4)
            torch.testing.assert_close(found[1], found[2])
            assert abs(float(found[1]) - case.value) > 1e-4


def test_layer_activation(case: AttributionInput, plain: Plain) -> None:
    for layer, found in at_layers(case, layer_methods.layer_activation).items():
        wanted = captum(plain, layer, lambda tap: LayerActivation(plain, tap).attribute(plain.pixels[None]))
        close(found.values, wanted[0].norm(dim=-1))
        close(case.states([layer])[layer], wanted)


def test_layer_gradient_x_activation(case: AttributionInput, plain: Plain) -> None:
    for layer, found in at_layers(case, layer_methods.layer_gradient_x_activation).items():
        wanted = captum(plain, layer, lambda tap: LayerGradientXActivation(plain, tap).attribute(plain.pixels[None]))
        close(found.values, wanted[0].sum(-1))


def test_layer_grad_cam(case: AttributionInput, plain: Plain) -> None:
    for layer, found in at_layers(case, layer_methods.layer_grad_cam).items():
        signed, wanted = (
            captum(
                plain,
                layer,
                lambda tap, cut=cut: LayerGradCam(plain, tap).attribute(plain.pixels[None], relu_attributions=cut),
                channels_first=True,
            )[0, 0].detach()
            for cut in (False, True)
        )
        values = found.values
        if layer.startswith("llm"):
            assert (values[~plain.image] == 0).all()
            values = values[plain.image]
        # Where all of it speaks against the target, nothing is left.
        close(torch.cat([values, signed]), torch.cat([wanted, signed]))
        assert float(signed.abs().max()) > 0


def test_layer_integrated_gradients(case: AttributionInput, plain: Plain) -> None:
    for layer, found in at_layers(case, layer_methods.layer_integrated_gradients).items():
        with plain.tapped(layer) as tap:
            wanted = LayerIntegratedGradients(plain, tap).attribute(
                plain.pixels[None], plain.blank[None], n_steps=STEPS
            )
            with torch.no_grad():
                blank = LayerActivation(plain, tap).attribute(plain.blank[None])
                handle = tap.register_forward_hook(lambda _, __, ___, blank=blank: blank)
                without = plain(plain.pixels[None])
                handle.remove()
                difference = plain(plain.pixels[None]) - without
        close(found.values, wanted[0].sum(-1))
        gap_is(found, wanted.detach(), difference)


def test_layer_conductance(case: AttributionInput, plain: Plain) -> None:
    with torch.no_grad():
        difference = plain(plain.pixels[None]) - plain(plain.blank[None])
    for layer, found in at_layers(case, layer_methods.layer_conductance).items():
        wanted = captum(
            plain,
            layer,
            lambda tap: LayerConductance(plain, tap).attribute(plain.pixels[None], plain.blank[None], n_steps=STEPS),
        )
        close(found.values, wanted[0].sum(-1))
        gap_is(found, wanted.detach(), difference)


def test_layer_feature_ablation(case: AttributionInput, plain: Plain) -> None:
    # In the LLM it has an analytic answer below.
    for layer, found in at_layers(case, layer_methods.layer_feature_ablation, LAYERS[:2]).items():
        with plain.tapped(layer) as tap, torch.no_grad():
            blank = LayerActivation(plain, tap).attribute(plain.blank[None])
            groups = torch.arange(blank.shape[1])[None, :, None].expand_as(blank)
            wanted = LayerFeatureAblation(plain, tap).attribute(
                plain.pixels[None], layer_baselines=blank, layer_mask=groups
            )
        close(found.values, wanted[0, :, 0], 2e-4)


def test_occlusion(case: AttributionInput, plain: Plain) -> None:
    patches = to_patches(case.loaded, plain.pixels)
    numbers = torch.arange(len(patches))[:, None, None, None].expand_as(patches).float()
    mask = from_patches(case.loaded, numbers, plain.pixels).long()
    with torch.no_grad():
        wanted = FeatureAblation(plain).attribute(plain.pixels[None], plain.blank[None], feature_mask=mask[None])
    (found,) = at_inputs.occlusion(case, ["pixels"], HOW).values()
    close(found.values, to_patches(case.loaded, wanted[0])[:, 0, 0, 0])


def test_saliency_and_integrated_gradients(case: AttributionInput, plain: Plain) -> None:
    (found,) = at_inputs.saliency(case, ["pixels"], HOW).values()
    wanted = Saliency(plain).attribute(plain.pixels[None].clone().requires_grad_())
    close(found.values, to_patches(case.loaded, wanted[0]).sum(1))
    (found,) = at_inputs.integrated_gradients(case, ["pixels"], HOW).values()
    wanted = IntegratedGradients(plain).attribute(plain.pixels[None], plain.blank[None], n_steps=STEPS)
    close(found.values, to_patches(case.loaded, wanted[0]).sum(1))
    with torch.no_grad():
        gap_is(found, wanted, plain(plain.pixels[None]) - plain(plain.blank[None]))


def by_words(case: AttributionInput, plain: Plain) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The words, and the target when some of their tokens are padding."""
    words = at_inputs.word_indices(case)
    assert ((words < 0) == plain.image).all()

    def forward(keep: Tensor) -> Tensor:
        gone = (words >= 0) & (keep[:, words.clamp(min=0)] == 0)
        prompts = torch.where(gone, torch.tensor(case.loaded.pad_token_id), plain.prompt)
        return plain(plain.pixels.expand(len(keep), *plain.pixels.shape), prompts)

    return words, forward


def shared(values: Tensor, words: Tensor) -> Tensor:
    return torch.tensor([float(values[0, w]) / int((words == w).sum()) if w >= 0 else 0.0 for w in words.tolist()])


def test_words_of_the_prompt(case: AttributionInput, plain: Plain) -> None:
    words, forward = by_words(case, plain)
    keep = torch.ones(1, int(words.max()) + 1)
    assert keep.shape[1] >= 2
    with torch.no_grad():
        wanted = FeatureAblation(forward).attribute(keep, 0.0)
    (found,) = at_inputs.prompt_ablation(case, ["prompt"], HOW).values()
    close(found.values, shared(wanted, words))
    torch.manual_seed(HOW.seed)
    with torch.no_grad():
        wanted = KernelShap(forward).attribute(keep, 0.0, n_samples=HOW.samples * keep.shape[1])
    torch.manual_seed(99)
    before = torch.get_rng_state()
    (found,) = at_inputs.kernel_shap(case, ["prompt"], HOW).values()
    close(found.values, shared(wanted, words), 1e-3)
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_are_enough_for_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a prompt of 39 words, a few of which matter in pairs: another seed ranks them alike."""
    rng = np.random.default_rng(0)
    weights, pairs = torch.from_numpy(rng.standard_t(2, 39)), torch.from_numpy(rng.integers(0, 39, (12, 2)))

    def value(keep: Tensor) -> Tensor:
        return torch.tanh((keep.double() @ weights + keep.double()[:, pairs].prod(2).sum(1)) / 4)

    target = SimpleNamespace(value=lambda scores: scores)
    case: Any = SimpleNamespace(batch=500, loaded=SimpleNamespace(device=torch.device("cpu")), target=target)
    monkeypatch.setattr(at_inputs, "word_indices", lambda _: torch.arange(39))
    monkeypatch.setattr(at_inputs, "masked_prompt_scores", lambda _: value)
    first, second = (
        at_inputs.kernel_shap(case, ["prompt"], MethodConfig(seed=seed))["prompt"].values for seed in (1, 2)
    )
    assert rank_correlation(first.double().numpy(), second.double().numpy()) > 0.8


def test_attention_rollout(model: LoadedModel, case: AttributionInput, plain: Plain) -> None:
    usual = model.model.config._attn_implementation
    (found,) = attention_rollout(case, ["llm.embed"], HOW).values()
    assert model.model.config._attn_implementation == usual
    inner: Any = model.model.model
    more = {}
    if hasattr(inner, "rope_deltas"):
        inner.rope_deltas = None
    else:
        first = 1 if model.model.config.model_type == "paligemma" else 0
        more = {"position_ids": torch.arange(plain.length)[None] + first}
    model.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            weights = model.model(**plain.inputs, **more, use_cache=False, output_attentions=True).attentions
    finally:
        model.model.set_attn_implementation(usual)
    whole = np.eye(plain.length)
    for one in weights:
        whole = (0.5 * one[0].double().mean(0).numpy() + 0.5 * np.eye(plain.length)) @ whole
    close(found.values, torch.from_numpy(whole[-1]))
    assert float(found.values.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("method", "batches"),
    [
        (layer_methods.layer_grad_cam, ()),
        (layer_methods.layer_integrated_gradients, (1, 16)),
        (layer_methods.layer_conductance, (1, 16)),
    ],
)
def test_layers_together_and_batches_change_nothing(
    case: AttributionInput, method: layer_methods.Method, batches: Sequence[int]
) -> None:
    how = MethodConfig(steps=3)
    together = at_layers(case, method, LAYERS, how)
    for batch in batches:
        other = AttributionInput(case.loaded, QUESTION, IMAGE, TARGET, batch=batch)
        for layer, found in at_layers(other, method, LAYERS if batch > 1 else ["connector"], how).items():
            close(found.values, together[layer].values)
    for layer in LAYERS:
        close(at_layers(case, method, [layer], how)[layer].values, together[layer].values)


@pytest.mark.parametrize("method", [layer_methods.layer_integrated_gradients, layer_methods.layer_conductance])
def test_a_batch_is_never_larger_than_it_may_be(
    case: AttributionInput, monkeypatch: pytest.MonkeyPatch, method: layer_methods.Method
) -> None:
    """However many layers there are."""
    how, rows = MethodConfig(steps=3), [0]
    together = at_layers(AttributionInput(case.loaded, QUESTION, IMAGE, TARGET, batch=16), method, LAYERS, how)
    usual = AttributionInput.scores

    def scores(self: AttributionInput, count: int, *args: Any, **kwargs: Any) -> Tensor:
        rows.append(count)
        return usual(self, count, *args, **kwargs)

    monkeypatch.setattr(AttributionInput, "scores", scores)
    for batch in (1, 2):
        found = at_layers(AttributionInput(case.loaded, QUESTION, IMAGE, TARGET, batch=batch), method, LAYERS, how)
        assert max(rows) == batch
        for layer in LAYERS:
            close(found[layer].values, together[layer].values)


def test_batches_change_nothing_where_parts_are_left_out(case: AttributionInput) -> None:
    for method, layers in (
        (layer_methods.layer_feature_ablation, ["connector"]),
        (at_inputs.occlusion, ["pixels"]),
        (at_inputs.prompt_ablation, ["prompt"]),
    ):
        (wanted,) = method(case, layers, HOW).values()
        for batch in (1, 16) if layers == ["connector"] else (16,):
            (found,) = method(AttributionInput(case.loaded, QUESTION, IMAGE, TARGET, batch=batch), layers, HOW).values()
            close(found.values, wanted.values, 2e-4)


def test_a_linear_target_has_a_known_answer(model: LoadedModel) -> None:
    """Of two labels of one token each, the log-odds are the difference of two rows of the head times the last state."""
    labels = ("a", "b")
    ids = model.label_ids(QUESTION, list(labels))
    assert [len(one) for one in ids] == [1, 1]
    case = AttributionInput(model, QUESTION, IMAGE, Target.of_label("a", labels, labels))
    head: Any = model.model.get_submodule("lm_head")
    row = (head.weight[ids[0][0]] - head.weight[ids[1][0]]).detach()
    state, blank = (found["llm.norm"][0] for found in (case.states(["llm.norm"]), case.baseline_states(["llm.norm"])))

    def check(method: layer_methods.Method, value: Tensor) -> Scores:
        found = method(case, ["llm.norm"], HOW)["llm.norm"]
        close(found.values, torch.cat([torch.zeros(len(state) - 1), value[None]]))
        return found

    check(layer_methods.layer_gradient_x_activation, state[-1] @ row)
    whole = check(layer_methods.layer_integrated_gradients, (state - blank)[-1] @ row)
    assert whole.gap is not None and whole.gap < 1e-4
    check(layer_methods.layer_feature_ablation, (state - blank)[-1] @ row)
    points = (np.polynomial.legendre.leggauss(STEPS + 1)[0] + 1) / 2
    ends = [case.blank_pixels + float(one) * (case.pixels - case.blank_pixels) for one in (points[0], points[-1])]
    first, last = case.states(["llm.norm"], torch.stack(ends))["llm.norm"][:, -1]
    check(layer_methods.layer_conductance, (last - first) @ row)


def test_layers_behind_which_no_image_token_is_read_are_refused(model: LoadedModel, case: AttributionInput) -> None:
    """In each family the target has no slope at the image tokens of the last block and the norm, and has before."""
    *_, before, block, norm = (place.name for place in layers_of(model))
    image = ~case.text
    for layer, one in case.gradients([before, block, norm]).items():
        slope = float(one.gradients[:, image].abs().max())
        assert (slope > 0) == (layer == before)
        if layer == before:
            assert select_methods(["layer_grad_cam"], [layer], model, ())[0].layers == (layer,)
            continue
        said = rf"got {layer}, of which it depends on the last token alone\. Use {before} or"
        with pytest.raises(OptionError, match=said):
            select_methods(["layer_activation"], ["connector", layer], model, ())


def test_gradients_of_all_layers_come_from_one_pass_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = AttributionInput(load("internvl", tmp_path / "model"), QUESTION, IMAGE, TARGET, batch=3)
    passes: list[int] = []
    back: list[int] = []
    usual, usual_grad = AttributionInput.scores, torch.autograd.grad

    def scores(self: AttributionInput, rows: int, *args: Any, **kwargs: Any) -> Tensor:
        if torch.is_grad_enabled():
            passes.append(rows)
        return usual(self, rows, *args, **kwargs)

    def grad(*args: Any, **kwargs: Any) -> Any:
        back.append(1)
        return usual_grad(*args, **kwargs)

    monkeypatch.setattr(AttributionInput, "scores", scores)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    layer_methods.layer_grad_cam(case, LAYERS, HOW)
    assert passes == [1] and len(back) == 1
    layer_methods.layer_integrated_gradients(case, LAYERS, HOW)
    assert passes[1:] == [len(LAYERS)] * STEPS and len(back) == 1 + STEPS  # a batch of 3 holds one step of 3 layers
    layer_methods.layer_conductance(case, LAYERS, HOW)
    assert passes[1 + STEPS :] == [3, 3] and len(back) == 3 + STEPS


@pytest.mark.parametrize("baseline", ["blank", "blurred"])
def test_pictures_of_other_sizes_and_several(model: LoadedModel, baseline: Any) -> None:
    """Tiles, windows and pictures of their own: all that is put back where it was changes nothing."""
    rng = np.random.default_rng(1)
    pictures = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in ((75, 41), (40, 90))]
    shown = pictures if model.shows == "images" else pictures[0]
    case = AttributionInput(model, QUESTION, shown, TARGET, baseline=baseline, batch=4)
    asked = model.generate([QUESTION], [shown], max_new_tokens=0, labels=list(LABELS))[0]
    assert asked.scores is not None
    assert case.value == pytest.approx(float(TARGET.value(torch.tensor([asked.scores]))), abs=1e-4)
    layers = [*LAYERS, "llm.embed"]
    states, blank = case.states(layers), case.baseline_states(layers)
    assert not torch.allclose(blank["llm.embed"][:, case.text], states["llm.embed"][:, case.text])
    with torch.no_grad():
        assert float(case.values(1, (), case.blank_pixels[None])) != pytest.approx(case.value, abs=1e-4)
        for layer in layers:
            assert float(case.values(1, [ActivationPatch(layer, states[layer])])) == pytest.approx(case.value, abs=1e-4)
    found = layer_methods.layer_gradient_x_activation(case, layers, HOW)
    assert [len(found[layer].values) for layer in layers] == [states[layer].shape[1] for layer in layers]


def test_slices_of_a_volume(tmp_path: Path) -> None:
    chest = medm_vl.load_ct(LoadOptions(str(write_ct_checkpoint(tmp_path / "ct")), device="cpu"))
    voxels = np.random.default_rng(0).uniform(-900, 200, (40, 30, 30)).astype(np.float32)
    case = AttributionInput(chest, QUESTION, Volume(voxels, (1.0, 1.0, 1.0), "RAS", "HU"), TARGET, batch=2)
    for method in (layer_methods.layer_gradient_x_activation, layer_methods.layer_integrated_gradients):
        together = at_layers(case, method)
        for layer in LAYERS:
            close(at_layers(case, method, [layer])[layer].values, together[layer].values)
    (found,) = at_inputs.saliency(case, ["pixels"], HOW).values()
    given = case.inputs["pixel_values"].clone().requires_grad_()
    ids = chest.label_ids(QUESTION, list(LABELS))
    chances = []
    for one in ids:
        tail = torch.tensor([one])
        logits = chest.model(
            input_ids=torch.cat([case.inputs["input_ids"], tail], 1),
            attention_mask=torch.ones(1, case.inputs["input_ids"].shape[1] + len(one), dtype=torch.long),
            pixel_values=given,
            use_cache=False,
        ).logits.log_softmax(-1)[0, -len(one) - 1 : -1]
        chances.append(logits.gather(1, tail.T).sum())
    value = chances[1] - torch.logaddexp(chances[0], chances[2])
    assert case.value == pytest.approx(float(value.detach()), abs=1e-4)
    (wanted,) = torch.autograd.grad(value, given)
    close(found.values, to_patches(chest, wanted).abs().sum(1))
