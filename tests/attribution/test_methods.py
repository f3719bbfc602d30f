"""Every method says what Captum says when called directly, through plain forward calls of the model.

The fast tests take one family of each layout; ``test_attribution_input`` tests what methods are computed from with all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import (
    FeatureAblation,
    IntegratedGradients,
    InternalInfluence,
    KernelShap,
    LayerActivation,
    LayerConductance,
    LayerFeatureAblation,
    LayerGradCam,
    LayerIntegratedGradients,
    Saliency,
)
from support.loading import LAYOUTS, load
from support.plain_target import (
    HOW,
    IMAGE,
    LAYERS,
    QUESTION,
    STEPS,
    TARGET,
    PlainTarget,
    answered_input,
    at_layers,
    captum,
    close,
    gap_is,
)
from torch import Tensor

from medmllm_plugins.attribution.attribution_input import AttributionInput
from medmllm_plugins.attribution.attribution_target import Target
from medmllm_plugins.attribution.checks.map_checks import rank_correlation
from medmllm_plugins.attribution.geometry import cells, neighbourhoods
from medmllm_plugins.attribution.methods import input_methods as at_inputs
from medmllm_plugins.attribution.methods import layer_methods
from medmllm_plugins.attribution.methods.layer_methods import MethodConfig, Scores
from medmllm_plugins.attribution.patches import from_patches, to_patches
from medmllm_plugins.models.base import LoadedModel

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=LAYOUTS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(request.param, tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(scope="module")
def plain(model: LoadedModel) -> PlainTarget:
    return PlainTarget(model)


@pytest.fixture(scope="module")
def case(model: LoadedModel) -> AttributionInput:
    return answered_input(model)


def test_layer_grad_cam(case: AttributionInput, plain: PlainTarget) -> None:
    for layer, scores in at_layers(case, layer_methods.layer_grad_cam).items():
        signed, wanted = (
            captum(
                plain,
                layer,
                lambda tap, cut=cut: LayerGradCam(plain, tap).attribute(plain.pixels[None], relu_attributions=cut),
                channels_first=True,
            )[0, 0].detach()
            for cut in (False, True)
        )
        own = plain.own_rows(layer, len(scores.values))
        assert (scores.values[~own] == 0).all()
        values = scores.values[own]
        # Where all of it speaks against the target, nothing is left.
        close(torch.cat([values, signed]), torch.cat([wanted, signed]))
        assert float(signed.abs().max()) > 0


def test_layer_integrated_gradients(case: AttributionInput, plain: PlainTarget) -> None:
    for layer, scores in at_layers(case, layer_methods.layer_integrated_gradients).items():
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
        close(scores.values, wanted[0].sum(-1))
        gap_is(scores, wanted.detach(), difference)


def test_layer_conductance(case: AttributionInput, plain: PlainTarget) -> None:
    with torch.no_grad():
        difference = plain(plain.pixels[None]) - plain(plain.blank[None])
    for layer, scores in at_layers(case, layer_methods.layer_conductance).items():
        wanted = captum(
            plain,
            layer,
            lambda tap: LayerConductance(plain, tap).attribute(plain.pixels[None], plain.blank[None], n_steps=STEPS),
        )
        close(scores.values, wanted[0].sum(-1))
        gap_is(scores, wanted.detach(), difference)


def test_layer_internal_influence(case: AttributionInput, plain: PlainTarget) -> None:
    for layer, scores in at_layers(case, layer_methods.layer_internal_influence).items():
        wanted = captum(
            plain,
            layer,
            lambda tap: InternalInfluence(plain, tap).attribute(plain.pixels[None], plain.blank[None], n_steps=STEPS),
        )
        close(scores.values, wanted[0].norm(dim=-1))
        assert scores.gap is None


def test_layer_feature_ablation(case: AttributionInput, plain: PlainTarget) -> None:
    # In the LLM it has an analytic answer below.
    for layer, scores in at_layers(case, layer_methods.layer_feature_ablation, LAYERS[:2]).items():
        with plain.tapped(layer) as tap, torch.no_grad():
            blank = LayerActivation(plain, tap).attribute(plain.blank[None])
            groups = torch.arange(blank.shape[1])[None, :, None].expand_as(blank)
            wanted = LayerFeatureAblation(plain, tap).attribute(
                plain.pixels[None], layer_baselines=blank, layer_mask=groups
            )
        close(scores.values, wanted[0, :, 0], 2e-4)


def test_occlusion(case: AttributionInput, plain: PlainTarget) -> None:
    patches = to_patches(case.loaded, plain.pixels)
    groups = torch.from_numpy(
        neighbourhoods(cells(case.loaded, case.inputs, case.visual, "pixels"), at_inputs.MOST_GROUPS)
    )
    numbers = groups[:, None, None, None].expand_as(patches).float()
    mask = from_patches(case.loaded, numbers, plain.pixels).long()
    with torch.no_grad():
        wanted = FeatureAblation(plain).attribute(plain.pixels[None], plain.blank[None], feature_mask=mask[None])
    (scores,) = at_inputs.occlusion(case, ["pixels"], HOW).values()
    close(scores.values, to_patches(case.loaded, wanted[0])[:, 0, 0, 0] / groups.bincount()[groups])


def test_saliency_and_integrated_gradients(case: AttributionInput, plain: PlainTarget) -> None:
    (scores,) = at_inputs.saliency(case, ["pixels"], HOW).values()
    wanted = Saliency(plain).attribute(plain.pixels[None].clone().requires_grad_())
    close(scores.values, to_patches(case.loaded, wanted[0]).sum(1))
    (scores,) = at_inputs.integrated_gradients(case, ["pixels"], HOW).values()
    wanted = IntegratedGradients(plain).attribute(plain.pixels[None], plain.blank[None], n_steps=STEPS)
    close(scores.values, to_patches(case.loaded, wanted[0]).sum(1))
    with torch.no_grad():
        gap_is(scores, wanted, plain(plain.pixels[None]) - plain(plain.blank[None]))


def by_words(case: AttributionInput, plain: PlainTarget) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
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


def test_words_of_the_prompt(case: AttributionInput, plain: PlainTarget) -> None:
    words, forward = by_words(case, plain)
    keep = torch.ones(1, int(words.max()) + 1)
    assert keep.shape[1] >= 2
    with torch.no_grad():
        wanted = FeatureAblation(forward).attribute(keep, 0.0)
    (scores,) = at_inputs.prompt_ablation(case, ["prompt"], HOW).values()
    close(scores.values, shared(wanted, words))
    torch.manual_seed(HOW.seed)
    with torch.no_grad():
        wanted = KernelShap(forward).attribute(keep, 0.0, n_samples=HOW.samples * keep.shape[1])
    torch.manual_seed(99)
    before = torch.get_rng_state()
    (scores,) = at_inputs.kernel_shap(case, ["prompt"], HOW).values()
    close(scores.values, shared(wanted, words), 1e-3)
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


@pytest.mark.parametrize(
    ("method", "batches"),
    [
        (layer_methods.layer_grad_cam, ()),
        (layer_methods.layer_integrated_gradients, (1, 16)),
        (layer_methods.layer_conductance, (1, 16)),
        (layer_methods.layer_internal_influence, (1, 16)),
    ],
)
def test_layers_together_and_batches_change_nothing(
    case: AttributionInput, method: layer_methods.Method, batches: Sequence[int]
) -> None:
    how = MethodConfig(steps=3)
    together = at_layers(case, method, LAYERS, how)
    for batch in batches:
        other = AttributionInput(case.loaded, QUESTION, IMAGE, TARGET, batch=batch)
        for layer, scores in at_layers(other, method, LAYERS if batch > 1 else ["connector"], how).items():
            close(scores.values, together[layer].values)
    for layer in LAYERS:
        close(at_layers(case, method, [layer], how)[layer].values, together[layer].values)


@pytest.mark.parametrize("method", [layer_methods.layer_integrated_gradients, layer_methods.layer_conductance])
def test_a_batch_is_never_larger_than_it_may_be(
    case: AttributionInput, monkeypatch: pytest.MonkeyPatch, method: layer_methods.Method
) -> None:
    """However many layers there are."""
    how, rows = MethodConfig(steps=3), [0]
    together = at_layers(AttributionInput(case.loaded, QUESTION, IMAGE, TARGET, batch=16), method, LAYERS, how)
    usual = LoadedModel.prefill

    def prefill(self: LoadedModel, inputs: Any) -> Any:
        rows.append(len(inputs["input_ids"]))
        return usual(self, inputs)

    monkeypatch.setattr(LoadedModel, "prefill", prefill)
    for batch in (1, 2):
        scores_by_layer = at_layers(
            AttributionInput(case.loaded, QUESTION, IMAGE, TARGET, batch=batch), method, LAYERS, how
        )
        assert max(rows) == batch
        for layer in LAYERS:
            close(scores_by_layer[layer].values, together[layer].values)


def test_batches_change_nothing_where_parts_are_left_out(case: AttributionInput) -> None:
    for method, layers in (
        (layer_methods.layer_feature_ablation, ["connector"]),
        (at_inputs.occlusion, ["pixels"]),
        (at_inputs.prompt_ablation, ["prompt"]),
    ):
        (wanted,) = method(case, layers, HOW).values()
        for batch in (1, 16) if layers == ["connector"] else (16,):
            (scores,) = method(
                AttributionInput(case.loaded, QUESTION, IMAGE, TARGET, batch=batch), layers, HOW
            ).values()
            close(scores.values, wanted.values, 2e-4)


def test_a_linear_target_has_a_known_answer(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two labels of one token each, the log-odds are the difference of two rows of the head times the last state."""
    labels = ("a", "b")
    ids = model.label_ids(QUESTION, list(labels))
    assert [len(token_ids) for token_ids in ids] == [1, 1]
    text = model.model.config.get_text_config()
    if getattr(text, "final_logit_softcapping", None) is not None:  # Gemma 4 bends its logits
        monkeypatch.setattr(text, "final_logit_softcapping", None)
    case = AttributionInput(model, QUESTION, IMAGE, Target.of_label("a", labels, labels))
    head: Any = model.model.get_submodule("lm_head")
    row = (head.weight[ids[0][0]] - head.weight[ids[1][0]]).detach()
    state, blank = (states["llm.norm"][0] for states in (case.states(["llm.norm"]), case.baseline_states(["llm.norm"])))

    def check(method: layer_methods.Method, value: Tensor) -> Scores:
        scores = method(case, ["llm.norm"], HOW)["llm.norm"]
        close(scores.values, torch.cat([torch.zeros(len(state) - 1), value[None]]))
        return scores

    check(layer_methods.layer_gradient_x_activation, state[-1] @ row)
    whole = check(layer_methods.layer_integrated_gradients, (state - blank)[-1] @ row)
    assert whole.gap is not None and whole.gap < 1e-4
    check(layer_methods.layer_feature_ablation, (state - blank)[-1] @ row)
    points = (np.polynomial.legendre.leggauss(STEPS + 1)[0] + 1) / 2
    ends = [case.blank_pixels + float(point) * (case.pixels - case.blank_pixels) for point in (points[0], points[-1])]
    first, last = case.states(["llm.norm"], torch.stack(ends))["llm.norm"][:, -1]
    check(layer_methods.layer_conductance, (last - first) @ row)
    check(layer_methods.layer_internal_influence, row.norm())
