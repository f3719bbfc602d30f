"""Steering: directions of probes, pushes along them, and their effects."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from medmllm_plugins.interventions.steering import (
    DIRECTIONS,
    DOSES,
    ProbeDirections,
    Push,
    PushedAnswer,
    _units,
    fit_directions,
    pooled_states,
    pushes_at,
    steer,
    steering_sites,
)
from medmllm_plugins.interventions.steering_effects import headline, steering_effects
from medmllm_plugins.interventions.twin_patching import PatchSite
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.formats.medm_vl import load
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.recorded_pass import RecordedPass
from medmllm_plugins.results.steering_files import steering_rows
from medmllm_plugins.results.steering_records import Steering

torch.set_num_threads(1)
QUESTION, LABELS = "Is there a round mass?", ("round mass", "no finding", "textured patch")
LAST = PatchSite("llm.05", "last")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load(LoadOptions("demo", device="cpu", dtype="float32"))


def images(count: int = 3) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(count)]


def random_probe(seed: int = 0) -> ProbeDirections:
    return ProbeDirections(torch.randn(3, 128, generator=torch.Generator().manual_seed(seed)), 0.9)


def scores_of(answers: Sequence[PushedAnswer]) -> np.ndarray:
    return np.array([answer.scores for answer in answers])


def test_sites_are_blocks_but_the_last(loaded: LoadedModel) -> None:
    assert [site.layer for site in steering_sites(loaded)[::2]] == ["llm.01", "llm.03"]
    assert [site.layer for site in steering_sites(loaded, every=1)[::2]] == [f"llm.{n:02d}" for n in range(5)]
    assert {site.tokens for site in steering_sites(loaded)} == {"image", "last"}
    assert len(pushes_at(steering_sites(loaded))) == 4 * len(DIRECTIONS) * len(DOSES)


def test_a_push_after_the_last_block_is_computed_by_norm_and_head(loaded: LoadedModel) -> None:
    """The reference applies the model's own norm and head to the pushed state of the last token."""
    probe, dose = random_probe(), 0.7
    push = Push(LAST, "probe", dose)
    words = ("no", "yes", "round", "mass", "image", "finding", "left", "right", "patch")
    # Labels of one token each, so that the next token's logits decide.
    single = [word for word in words if len(loaded.label_ids(QUESTION, [word])[0]) == 1]
    assert len(single) >= 3
    answers = steer(loaded, QUESTION, images(), single, [push], {LAST: probe}, [(0, 1)] * 3, seeds=[0, 1, 2])
    inputs = loaded.prepare([QUESTION] * 3, images())
    (states,) = RecordedPass(loaded, inputs, {"llm.05"}).states["llm.05"]
    unit = probe.weights[1] - probe.weights[0]
    moved = states[:, -1] + dose * states[:, -1].norm(dim=-1, keepdim=True) * unit / unit.norm()
    model = loaded.model
    with torch.no_grad():
        log_p = model.lm_head(model.model.language_model.norm(moved)).log_softmax(-1)  # type: ignore[operator, union-attr]
    ids = [row[0] for row in loaded.label_ids(QUESTION, single)]
    np.testing.assert_allclose(scores_of(answers[push]), log_p[:, ids].numpy(), atol=1e-4)
    # The first token of each answer is the one that scores highest after the push.
    first = [loaded.tokenizer.decode([token], skip_special_tokens=True) for token in log_p.argmax(-1).tolist()]
    assert [answer.text[: len(text)] for answer, text in zip(answers[push], first, strict=True)] == first


def test_scores_without_a_push_are_the_models_own(loaded: LoadedModel) -> None:
    sites = steering_sites(loaded)
    pushes = [Push(site, "probe", 1e-6) for site in sites]
    probes = {site: random_probe() for site in sites}
    answers = steer(loaded, QUESTION, images(), LABELS, pushes, probes, [(0, 1)] * 3, seeds=[0, 1, 2])
    own = loaded.generate([QUESTION] * 3, images(), max_new_tokens=16, labels=LABELS)
    for rows in answers.values():
        np.testing.assert_allclose(scores_of(rows), [answer.scores for answer in own], atol=2e-3)
        assert [row.text for row in rows] == [answer.text for answer in own]


def test_surprise_is_that_of_the_model_without_the_push(loaded: LoadedModel) -> None:
    """The reference is one plain pass over prompt and answer."""
    pushes = [Push(PatchSite("llm.03", "last"), "random", dose) for dose in (0.4, 8.0)]
    probes = {push.site: random_probe() for push in pushes}
    answers = steer(loaded, QUESTION, images(), LABELS, pushes, probes, [(0, 1)] * 3, seeds=[0, 1, 2])
    surprises = {condition: [row.surprise for row in rows] for condition, rows in answers.items()}
    assert np.nanmean(surprises[pushes[1]]) > np.mean(surprises["own"]) + 1
    for condition, rows in answers.items():
        for index, row in enumerate(rows):
            ids = loaded.tokenizer(row.text, add_special_tokens=False)["input_ids"]
            if loaded.tokenizer.decode(ids) != row.text or not ids:
                continue
            inputs = loaded.prepare([QUESTION], [images()[index]])
            length = inputs["input_ids"].shape[1]
            longer = {name: value for name, value in inputs.items() if value.shape[:2] != (1, length)}
            longer["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
            with torch.no_grad():
                log_p = loaded.model(**longer).logits[0].float().log_softmax(-1)
            chosen = log_p[length - 1 : -1].gather(1, torch.tensor(ids)[:, None])
            assert surprises[condition][index] == pytest.approx(-float(chosen.mean()), abs=2e-3)


def test_only_the_chosen_tokens_are_pushed(loaded: LoadedModel) -> None:
    """A push of image tokens after a block leaves other tokens of that block as they are."""
    strong = [Push(PatchSite("llm.03", tokens), "random", 2.0) for tokens in ("image", "last")]
    probes = {push.site: random_probe() for push in strong}
    answers = steer(loaded, QUESTION, images(), LABELS, strong, probes, [(0, 1)] * 3, seeds=[0, 1, 2])
    own, image, last = (scores_of(answers[key]) for key in ("own", *strong))
    assert not np.allclose(image, own, atol=0.05) and not np.allclose(last, own, atol=0.05)
    assert not np.allclose(image, last, atol=0.05)


def test_directions_have_equal_length_and_controls_do_not_depend_on_the_batch() -> None:
    probe, pairs = random_probe(), [(0, 1), (2, 0)]
    units = {name: _units(name, probe, pairs, [5, 6]) for name in DIRECTIONS}
    for unit in units.values():
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(units["opposite"], -units["probe"])
    torch.testing.assert_close(units["permuted"].sort(dim=1).values, units["probe"].sort(dim=1).values)
    assert not torch.allclose(units["permuted"], units["probe"])
    for name in DIRECTIONS:
        torch.testing.assert_close(_units(name, probe, pairs[1:], [6])[0], units[name][1])
    nothing = ProbeDirections(torch.zeros(2, 4), 0.5)
    assert nothing.toward(0, 1).abs().sum() == 0


@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_points_from_one_class_to_another(classes: int) -> None:
    """States are class means with noise, so directions follow the differences of the means."""
    generator = np.random.default_rng(0)
    means = 4 * generator.normal(size=(classes, 20))
    truth = np.arange(240) % classes
    states = means[truth] + generator.normal(size=(240, 20))
    probe = fit_directions(states, truth, np.arange(240) // 2, classes)
    assert probe.accuracy > 0.95
    for own, target in ((0, 1), (1, 0)):
        difference = means[target] - means[own]
        cosine = probe.toward(own, target).numpy() @ difference / np.linalg.norm(difference)
        assert cosine > 0.6
    noise = fit_directions(generator.normal(size=(240, 20)), truth, np.arange(240) // 2, classes)
    assert noise.accuracy < 1 / classes + 0.25


def test_states_are_pooled_document_by_document(loaded: LoadedModel) -> None:
    sites = steering_sites(loaded)
    together = pooled_states(loaded, QUESTION, images(), sites)
    alone = pooled_states(loaded, QUESTION, images()[1:2], sites)
    for site in sites:
        assert together[site].shape == (3, 128)
        np.testing.assert_allclose(together[site][1], alone[site][0], atol=1e-3)


def simulated(effect: float, control: float = 0.0, mass: float = 1.0, n: int = 80) -> Steering:
    """Return the effects of pushes that move the log-odds by ``effect`` times the dose, and controls likewise."""
    generator = np.random.default_rng(0)
    site, truth = PatchSite("llm.03", "last"), np.arange(n) % 3
    target = (truth + 1) % 3
    own = generator.normal(0, 0.3, (n, 3))
    own[np.arange(n), truth] += 2
    own -= np.log(np.exp(own).sum(1, keepdims=True)) + 0.01
    answers: dict = {"own": [PushedAnswer("1", tuple(row), 0.5) for row in own]}  # type: ignore[type-arg]
    for push in pushes_at([site]):
        sign = {"probe": effect, "opposite": -effect}.get(push.direction, control)
        rows = own.copy()
        rows[np.arange(n), target] += push.dose * sign + generator.normal(0, 0.1, n)
        texts = ["2" if index % 4 or push.dose < 1 else "?" for index in range(n)]
        rows = np.minimum(rows, 0) + np.log(mass)
        answers[push] = [PushedAnswer(text, tuple(row), push.dose) for text, row in zip(texts, rows, strict=True)]
    answers[push][0] = PushedAnswer("", answers[push][0].scores, math.nan)
    read = {"1": 1, "2": 2}
    probes = {site: random_probe()}
    return steering_effects(answers, truth, target, np.arange(n) // 2, probes, lambda text: read.get(text, -1))


def test_a_direction_that_is_used_is_named() -> None:
    result = simulated(effect=2.0)
    assert result.chosen is not None and result.chosen.direction == "probe"
    assert result.chosen.shift.low > result.chosen_control.high
    assert "The answers depend on what the probe reads." in headline(result)
    by_dose = {point.dose: point.shift.value for point in result.points if point.direction == "probe"}
    assert by_dose[0.4] == pytest.approx(0.8, abs=0.1)
    assert (result.n, result.groups, len(result.points)) == (80, 40, 20)
    assert (result.parsed, result.perplexity) == (1.0, pytest.approx(math.exp(0.5)))
    for point in result.points:
        assert point.parsed == (0.75 if point.dose > 1 else 1.0)
        assert point.perplexity == pytest.approx(math.exp(point.dose))


def test_a_direction_that_moves_no_more_than_controls_is_not() -> None:
    used = 0
    result = simulated(effect=1.0, control=1.0)
    used += "The answers depend" in headline(result)
    assert not used
    assert headline(simulated(effect=-1.0, control=0.5)) == (
        "No push along a probe's direction moves the answers of half of the documents beyond its controls."
    )


def test_a_push_that_breaks_the_answer_is_not_chosen() -> None:
    assert simulated(effect=2.0, mass=0.1).chosen is None


def test_results_survive_their_file() -> None:
    result = simulated(effect=2.0)
    assert Steering.from_dict(result.to_dict()) == result
    assert len(list(steering_rows(result))) == 1 + 5 * len(result.points)
