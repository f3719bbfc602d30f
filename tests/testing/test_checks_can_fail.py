"""Every check fails for a plugin that is wrong in the way it looks for."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.plugin_site import HEAD, Site
from support.wrong_data import declare

from medmllm_plugins import AttributionSpec, InterventionSpec, ModelSpec, ProbeSpec, TaskFolder
from medmllm_plugins.testing import attribution_trial
from medmllm_plugins.testing.bound_check import BoundCheck, checks_of, release_all
from medmllm_plugins.testing.check_outcomes import CheckFailed
from medmllm_plugins.testing.check_registry import KINDS, names_of
from medmllm_plugins.testing.check_subjects import InstalledPlugin
from medmllm_plugins.testing.resources import Resources
from medmllm_plugins.testing.tiny_families import write_family

torch.set_num_threads(1)

MODELS = {
    "check_loads": [("does_not_load", "got ValueError: no such file"), ("in_training_mode", "evaluation mode")],
    "check_second_load_gives_the_same": [
        ("with_a_random_head", r"others in lm_head\.weight"),
        ("with_another_fingerprint", "expected one fingerprint"),
    ],
    "check_works_offline": [("that_calls_home", r"a connection to \('198\.51\.100\.1', 443\)")],
    "check_model_errors_are_ours": [("with_plain_errors", "text in place of an image: .* got TypeError")],
    "check_batched_equals_single": [("that_sees_padding", "document 0 of a batch of 3, label scores")],
    "check_label_scores_equal_whole_passes": [("with_late_answers", "document 0, label scores")],
    "check_text_equals_generate": [("that_stops_early", "expected the text of transformers")],
    "check_answer_depends_on_the_image": [("that_is_blind", "scores that change with the image, got a change of 0")],
    "check_resume_gives_the_same": [
        ("that_tires", "after a second start: expected the text"),
        ("with_another_fingerprint", "expected the second start to find the answers"),
    ],
    "check_stages_are_found": [
        ("with_a_wrong_stage", r"expected a module 'model\.projector', got none"),
        ("with_the_towers_blocks", "a module for each layer"),
    ],
    "check_hooks_fire_once": [("that_runs_twice", r"got \{'vision\.00': 2")],
    "check_features_equal_plain_hooks": [("that_shows_hooks_another_pass", r"document 0, vision\.00, mean")],
    "check_rows_belong_to_their_document": [("that_mixes_documents", r"document \d of a batch of 3, ")],
    "check_gradients_reach_default_sites": [("without_gradients", "Expected a gradient of the target at")],
    "check_maps_land_on_a_planted_square": [("with_a_transposed_grid", r"vision\.00: expected the states to change")],
}
DATA = {
    "check_declaration_round_trips": ("", {"options": {"since": datetime.date(2024, 1, 31)}}, "value of options"),
    "check_images_decode": ("GreyImages", {}, "mode RGB, got L"),
    "check_groups_stay_in_one_fold": ("DividedGroups", {}, "got 5 groups in several"),
    "check_equal_images_stay_in_one_fold": ("EqualImages", {}, r"\['random-00', 'random-17'\]"),
    "check_folds_hold_every_class": ("OneClassTested", {}, "in the test fold, got none of b"),
    "check_second_read_gives_the_same": ("DrawnFolds", {}, "the same documents in two reads"),
    "check_data_errors_are_ours": ("PlainErrors", {}, "got ValueError"),
}
PROBES = {
    "check_results_have_their_shapes": ("narrow_predictions", r"`predict` as int64 .* got torch\.int32"),
    "check_separates_what_is_separable": ("constant", r"at least 0\.8 on separable classes, got 0\.3"),
    "check_stays_at_chance_on_permuted_labels": ("memorising", r"validation fold of permuted labels, got 1\.00"),
    "check_every_label_set_is_fitted": ("real_labels_only", "control task that is separable"),
    "check_second_fit_gives_the_same": ("drawn", "equal predictions of two fits"),
    "check_features_are_left_as_they_were": ("standardising_in_place", "expected `train` to stay"),
}
METHODS = {
    "check_scores_cover_every_row": ("too_few_rows", "layers", "expected values of shape"),
    "check_second_map_is_the_same": ("random_scores", "layers", "expected the same map twice"),
    "check_model_is_left_as_it_was": ("leaving_a_hook", "layers", "hooks on model.multi_modal_projector"),
    "check_maps_depend_on_the_target": ("edges", "pixels", "maps that differ between two classes, got the same"),
    "check_maps_depend_on_the_weights": ("edges", "pixels", r"got 1\.00"),
    "check_maps_are_stable_under_noise": ("seeded_random_scores", "layers", "under 5% noise"),
    "check_path_sums_are_complete": ("incomplete", "layers", "got 90%"),
    "check_maps_beat_random_order": ("upside_down", "layers", "a gain of -"),
    "check_maps_find_phantom_lesions": ("corners", "layers", "of the map inside the lesions"),
}
INTERVENTIONS = {
    "check_scores_have_their_shapes": ("too_short", r"rows of \[4\] for 'short', 3 in all"),
    "check_second_run_gives_the_same": ("noisy", "noise, second run"),
    "check_scores_do_not_depend_on_the_batch": ("centred_in_the_batch", "centred, document 0 alone"),
    "check_unchanged_model_is_left_behind": ("leaving_edits", "other weights in lm_head"),
    "check_errors_leave_no_edits": ("careless", r"as it was after an error, got hooks on"),
    "check_results_round_trip": ("unwritable_name", "expected the results that were written, got others"),
}


def pick(spec: Any, name: str, **resources: Any) -> BoundCheck:
    """The check of that name."""
    (check,) = (check for check in checks_of(spec, Resources(**resources)) if check.name == name)
    return check


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = write_family(kind, tmp_path_factory.mktemp(kind) / "checkpoint")
        return made[kind]

    yield folder
    release_all()


def test_every_check_is_shown_to_fail_here() -> None:
    shown = {
        "model": {*MODELS, "check_save_and_load"},
        "dataset": set(DATA),
        "probe": set(PROBES),
        "attribution": set(METHODS),
        "intervention": set(INTERVENTIONS),
        "tasks": {"check_task_files_are_read"},
        "plugin": {"check_hooks_declare_without_failures"},
    }
    for kind in KINDS:
        assert shown[kind] | {"check_import_costs_no_torch"} == {*names_of(kind), "check_import_costs_no_torch"}


@pytest.mark.parametrize(("name", "loader", "message"), [(name, *row) for name, rows in MODELS.items() for row in rows])
def test_a_wrong_model(checkpoint: Callable[[str], Path], name: str, loader: str, message: str) -> None:
    spec = ModelSpec(name="wrong", summary="A model.", loader=f"support.wrong_models:{loader}")
    folder = checkpoint("llava_next" if loader == "that_mixes_documents" else "llava")
    with pytest.raises(CheckFailed, match=message):
        pick(spec, name, checkpoint=folder, device="cpu")(spec)


def test_a_model_that_is_not_saved_as_it_is(checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlavaForConditionalGeneration

    usual = LlavaForConditionalGeneration.save_pretrained

    def coarse(self: Any, folder: Path) -> None:
        state = {name: value.to(torch.float8_e4m3fn).to(value.dtype) for name, value in self.state_dict().items()}
        usual(self, folder, state_dict=state)

    spec = ModelSpec(name="wrong", summary="A model.", family="llava")
    check = pick(spec, "check_save_and_load", checkpoint=checkpoint("llava"), device="cpu")
    check(spec)
    monkeypatch.setattr(LlavaForConditionalGeneration, "save_pretrained", coarse)
    with pytest.raises(CheckFailed, match="wrong: label scores: expected"):
        check(spec)


@pytest.mark.parametrize(("name", "layout", "more", "message"), [(name, *row) for name, row in DATA.items()])
def test_a_wrong_data_set(name: str, layout: str, more: dict[str, Any], message: str) -> None:
    pick(right := declare(), name)(right)
    wrong = declare(layout, **more)
    with pytest.raises(CheckFailed, match=message):
        pick(wrong, name)(wrong)


@pytest.mark.parametrize(("name", "probe", "message"), [(name, *row) for name, row in PROBES.items()])
def test_a_wrong_probe(name: str, probe: str, message: str) -> None:
    wrong = ProbeSpec(name="wrong", target=f"support.wrong_methods:{probe}", summary="A probe.")
    with pytest.raises(CheckFailed, match=message):
        pick(wrong, name)(wrong)


@pytest.mark.parametrize(("name", "method", "at", "message"), [(name, *row) for name, row in METHODS.items()])
def test_a_wrong_attribution_method(
    monkeypatch: pytest.MonkeyPatch, name: str, method: str, at: str, message: str
) -> None:
    monkeypatch.setattr(attribution_trial, "IMAGES", 2)  # for speed
    wrong = AttributionSpec(name="wrong", target=f"support.wrong_methods:{method}", summary="A method.", at=at)
    with pytest.raises(CheckFailed, match=message):
        pick(wrong, name)(wrong)


@pytest.mark.parametrize(("name", "function", "message"), [(name, *row) for name, row in INTERVENTIONS.items()])
def test_a_wrong_intervention(name: str, function: str, message: str) -> None:
    right = InterventionSpec(name="right", target="support.wrong_methods:turned", summary="An intervention.")
    pick(right, name)(right)
    wrong = InterventionSpec(name="wrong", target=f"support.wrong_methods:{function}", summary="An intervention.")
    with pytest.raises(CheckFailed, match=message):
        pick(wrong, name)(wrong)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "task: mine", "b": "task: mine"}, r"for each task, got \['mine'\] twice"),
        ({"a": "protocol: open"}, "expected `task: NAME`"),
        ({}, "expected YAML files of tasks or data sets, got none"),
    ],
)
def test_a_wrong_task_folder(tmp_path: Path, files: dict[str, str], message: str) -> None:
    folder = TaskFolder(path=str(tmp_path))
    for stem, text in files.items():
        (tmp_path / f"{stem}.yaml").write_text(text)
    with pytest.raises(CheckFailed, match=message):
        pick(folder, "check_task_files_are_read")(folder)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tasks"])  # a folder of YAML names no code
def test_a_plugin_with_a_heavy_import(site: Site, kind: str) -> None:
    (site.path / "jax.py").touch()  # as heavy as torch in name, so that the test is fast
    module = site.add(f"heavy-{kind}", f"import jax\n{HEAD}", plugin=f"heavy_{kind}")
    specs: dict[str, Any] = {
        "plugin": InstalledPlugin(f"heavy_{kind}"),
        "model": ModelSpec(name="m", summary="A model.", loader=f"{module}:load"),
        "dataset": declare(layout="").model_copy(update={"layout": f"{module}:Layout"}),
        "probe": ProbeSpec(name="p", target=f"{module}:fit", summary="A probe."),
        "attribution": AttributionSpec(name="a", target=f"{module}:explain", summary="A method."),
        "intervention": InterventionSpec(name="i", target=f"{module}:change", summary="An intervention."),
    }
    with pytest.raises(CheckFailed, match="got imports of jax"):
        pick(specs[kind], "check_import_costs_no_torch")(specs[kind])


def test_a_plugin_with_a_fault(site: Site) -> None:
    plugin = InstalledPlugin("faulty")
    with pytest.raises(CheckFailed, match="Expected an installed plugin called 'faulty'"):
        pick(plugin, "check_hooks_declare_without_failures")(plugin)
    site.add("faulty", f"{HEAD}\n@hookimpl\ndef medmllm_models():\n    return [ProbeSpec]\n")
    with pytest.raises(CheckFailed, match=r"plugin faulty .*medmllm_models"):
        pick(plugin, "check_hooks_declare_without_failures")(plugin)
