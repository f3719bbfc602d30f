"""The checks of each kind of declaration, by the name of their module, which is imported when one runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any, Final, Literal, TypeAlias, get_args

from medmllm_plugins.errors import OptionError
from medmllm_plugins.utils.suggestions import did_you_mean

Kind: TypeAlias = Literal["plugin", "model", "tasks", "dataset", "probe", "attribution", "intervention"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_IMPORT = ("check_import_costs_no_torch",)
CHECKS: Final[Mapping[Kind, Mapping[str, tuple[str, ...]]]] = {
    "plugin": {"plugin_checks": ("check_hooks_declare_without_failures", *_IMPORT)},
    "model": {
        "loading_checks": (
            "check_loads",
            "check_second_load_gives_the_same",
            "check_save_and_load",
            "check_works_offline",
            "check_model_errors_are_ours",
        ),
        "answer_checks": (
            "check_batched_equals_single",
            "check_label_scores_equal_whole_passes",
            "check_text_equals_generate",
            "check_answer_depends_on_the_image",
            "check_resume_gives_the_same",
        ),
        "stage_checks": (
            "check_stages_are_found",
            "check_hooks_fire_once",
            "check_features_equal_plain_hooks",
            "check_rows_belong_to_their_document",
        ),
        "model_map_checks": (
            "check_gradients_reach_default_sites",
            "check_maps_land_on_a_planted_square",
        ),
        "plugin_checks": _IMPORT,
    },
    "tasks": {"data_checks": ("check_task_files_are_read",)},
    "dataset": {
        "data_checks": (
            "check_declaration_round_trips",
            "check_images_decode",
            "check_groups_stay_in_one_fold",
            "check_equal_images_stay_in_one_fold",
            "check_folds_hold_every_class",
            "check_second_read_gives_the_same",
            "check_data_errors_are_ours",
        ),
        "plugin_checks": _IMPORT,
    },
    "probe": {
        "probe_checks": (
            "check_results_have_their_shapes",
            "check_separates_what_is_separable",
            "check_stays_at_chance_on_permuted_labels",
            "check_every_label_set_is_fitted",
            "check_second_fit_gives_the_same",
            "check_features_are_left_as_they_were",
        ),
        "plugin_checks": _IMPORT,
    },
    "attribution": {
        "attribution_checks": (
            "check_scores_cover_every_row",
            "check_second_map_is_the_same",
            "check_model_is_left_as_it_was",
            "check_maps_depend_on_the_target",
            "check_maps_depend_on_the_weights",
            "check_maps_are_stable_under_noise",
            "check_path_sums_are_complete",
            "check_maps_beat_random_order",
            "check_maps_find_phantom_lesions",
        ),
        "plugin_checks": _IMPORT,
    },
    "intervention": {
        "intervention_checks": (
            "check_scores_have_their_shapes",
            "check_second_run_gives_the_same",
            "check_scores_do_not_depend_on_the_batch",
            "check_unchanged_model_is_left_behind",
            "check_errors_leave_no_edits",
            "check_results_round_trip",
        ),
        "plugin_checks": _IMPORT,
    },
}
"""Names of functions by module of this package, in the order in which they run."""


def names_of(kind: Kind) -> tuple[str, ...]:
    """Return the names of the checks of a kind."""
    return tuple(name for names in CHECKS[kind].values() for name in names)


def find_check(kind: Kind, name: str) -> Any:
    """Import a check, a function of a subject."""
    (module,) = (module for module, names in CHECKS[kind].items() if name in names)
    return getattr(import_module(f"medmllm_plugins.testing.{module}"), name)


def require_known(names: Iterable[str]) -> None:
    """Raise an OptionError if a name is that of no check."""
    known = sorted({name for kind in KINDS for name in names_of(kind)})
    if unknown := [name for name in names if name not in known]:
        raise OptionError(
            f"Expected `expected_failed_checks` to name checks, got {unknown[0]!r}. {did_you_mean(unknown[0], known)} "
            "docs/conformance.md lists them."
        )
