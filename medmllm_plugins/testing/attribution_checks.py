"""Checks of an attribution method, on the model that ships with this package and phantoms whose lesions are known."""

from __future__ import annotations

import numpy as np
import torch

from medmllm_plugins.attribution.attribution_input import PIXELS
from medmllm_plugins.attribution.checks.map_checks import map_similarity
from medmllm_plugins.attribution.checks.randomisation import cascading_randomisation
from medmllm_plugins.attribution.methods.input_methods import PROMPT
from medmllm_plugins.attribution.methods.layer_methods import MethodConfig
from medmllm_plugins.attribution.patches import to_patches
from medmllm_plugins.data.layouts.phantoms import LABELS
from medmllm_plugins.results.attribution_verdicts import GAP_AT_MOST, STABLE, SURVIVES
from medmllm_plugins.testing.check_outcomes import NotApplicable, require
from medmllm_plugins.testing.check_subjects import AttributionSubject
from medmllm_plugins.testing.demo import phantoms
from medmllm_plugins.testing.model_state import ModelState


def check_scores_cover_every_row(subject: AttributionSubject) -> None:
    """Assert that each row of the layer has a finite value, and not all the same one.

    A layer has a row for each patch or token, ``"pixels"`` one for each patch or each pixel of a patch, ``"prompt"``
    one for each token.
    """
    trial = subject.trial
    case = trial.case(phantoms(1)[0])
    values = trial.scores(case).values
    if trial.layer == PIXELS:
        patches = to_patches(case.loaded, case.pixels)
        shapes = [(len(patches),), (len(patches), *patches.shape[2:])]
    elif trial.layer == PROMPT:
        shapes = [(len(case.text),)]
    else:
        shapes = [(case.states([trial.layer])[trial.layer].shape[1],)]
    require(
        tuple(values.shape) in shapes,
        f"{subject.name}: expected values of shape {' or '.join(map(str, shapes))} at {trial.layer}, got "
        f"{tuple(values.shape)}.",
    )
    require(bool(values.isfinite().all()), f"{subject.name}: expected finite values, got some that are not.")
    require(float(values.max()) > float(values.min()), f"{subject.name}: expected values that differ, got equal ones.")


def check_second_map_is_the_same(subject: AttributionSubject) -> None:
    """Assert that a second map of the same document is the same.

    Methods that sample draw from a generator that is seeded with ``MethodConfig.seed``.
    """
    trial = subject.trial
    item = phantoms(1)[0]
    first = trial.scores(trial.case(item)).values
    torch.manual_seed(12345)
    np.random.seed(12345)
    second = trial.scores(trial.case(item)).values
    require(
        torch.allclose(first, second, rtol=1e-4, atol=1e-6 * float(first.abs().max())),
        f"{subject.name}: expected the same map twice, got a difference of {float((first - second).abs().max()):.3g}. "
        "Draw random numbers from a generator that is seeded with `config.seed`.",
    )


def check_model_is_left_as_it_was(subject: AttributionSubject) -> None:
    """Assert that the method leaves no hooks, gradients or changed weights in the model.

    Whatever remains changes the maps of other methods, and the answers.
    """
    trial = subject.trial
    case = trial.case(phantoms(1)[0])
    value, before = case.value, ModelState.of(trial.loaded)
    trial.scores(case)
    differences = before.differences(ModelState.of(trial.loaded))
    require(
        not differences,
        f"{subject.name}: expected the model to be as it was, got {', '.join(differences[:3])}. Remove what was added, "
        "also after an error.",
    )
    case.clear_cache()
    require(
        abs(case.value - value) < 1e-4,
        f"{subject.name}: expected the target to be {value:.5f} afterwards, as before, got {case.value:.5f}.",
    )


def check_maps_depend_on_the_target(subject: AttributionSubject) -> None:
    """Assert that the maps of two classes differ.

    A map that does not depend on the target shows what is on the image, not why the model answered.
    """
    trial = subject.trial
    for item in phantoms(2):
        own = trial.map_of(trial.case(item))
        other = trial.map_of(trial.case(item, next(label for label in LABELS if label != item.label)))
        largest = float(np.nanmax(np.abs(own.values)))
        if float(np.nanmax(np.abs(own.values - other.values))) > 1e-4 * largest:
            return
    require(False, f"{subject.name}: expected maps that differ between two classes, got the same.")


def check_maps_depend_on_the_weights(subject: AttributionSubject) -> None:
    """Assert that the maps change when all weights are shuffled (Adebayo et al., arXiv:1810.03292).

    A map that survives is made by the image and the architecture, like an edge detector, and not by what the model
    has learned.
    """
    trial = subject.trial
    cases = [trial.case(item) for item in phantoms(3)]
    before = [trial.map_of(case) for case in cases]
    with cascading_randomisation(trial.loaded) as levels:
        for _ in levels:
            pass
        for case in cases:
            case.clear_cache()
        after = [trial.map_of(case) for case in cases]
    similarity = map_similarity(list(zip(before, after, strict=True)))
    survives = max(similarity["similarity"], similarity["absolute_similarity"])
    require(
        survives <= SURVIVES,
        f"{subject.name}: expected a rank correlation of at most {SURVIVES} between maps with trained and with "
        f"shuffled weights, got {survives:.2f}.",
    )


def check_maps_are_stable_under_noise(subject: AttributionSubject) -> None:
    """Assert that noise of 5% on the pixels leaves the order of the values much the same.

    A map that depends on such noise, or on its own random draws, says little about the image.
    """
    stability = subject.trial.mean("stability")
    require(
        stability is not None and stability >= STABLE,
        f"{subject.name}: expected a rank correlation of at least {STABLE} under 5% noise, got {stability}.",
    )


def check_path_sums_are_complete(subject: AttributionSubject) -> None:
    """Assert that the values of a method that integrates along a path add up to the difference that they explain.

    It applies to methods that return ``Scores.gap``.
    """
    trial = subject.trial
    config = MethodConfig(steps=64)
    gaps = [trial.scores(trial.case(item), config).gap for item in phantoms(2)]
    known = [gap for gap in gaps if gap is not None]
    if not known:
        raise NotApplicable("it does not integrate along a path: Scores.gap is None")
    worst = max(known)
    require(
        worst <= 3 * GAP_AT_MOST,
        f"{subject.name}: expected a gap of at most {3 * GAP_AT_MOST:.0%} with {config.steps} steps, got {worst:.0%}.",
    )


def check_maps_beat_random_order(subject: AttributionSubject) -> None:
    """Assert that the map's order of the parts is better than a random one, as deletion and insertion curves show.

    Removing what it ranks first must lower the target's probability, or inserting it raise that, more than in random
    orders; the sum of both gains counts, as the mean over six phantoms.
    """
    deletion, insertion = (
        subject.trial.mean("deletion_random", "deletion"),
        subject.trial.mean("insertion", "insertion_random"),
    )
    gain = None if deletion is None or insertion is None else deletion + insertion
    require(
        gain is not None and gain > 0,
        f"{subject.name}: expected a better order than random ones, got a gain of {gain} in deletion and insertion. "
        "Positive values must mean that a part speaks for the target.",
    )


def check_maps_find_phantom_lesions(subject: AttributionSubject) -> None:
    """Assert that the positive part of the maps lies more in the lesions of phantoms than their area would give.

    The demo classifies these phantoms by their lesions.
    """
    trial = subject.trial
    inside, area = trial.mean("inside"), trial.mean("area")
    if area is None:
        raise NotApplicable("its maps are of the prompt, not of the image")
    require(
        inside is not None and inside > area,
        f"{subject.name}: expected more than {area:.1%} of the map inside the lesions, which is their share of the "
        f"image, got {'none' if inside is None else f'{inside:.1%}'}.",
    )
