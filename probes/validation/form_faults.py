"""Faults of form: a stage still holds the class, and hands it on in a form that the next stage never learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, TypeAlias, cast

from torch import nn

from medmllm_plugins.interventions import form_edits as edits
from medmllm_plugins.interventions.model_edits import (
    Edit,
    add_noise,
    change_weights,
    edit_output,
    reset_weights,
)
from medmllm_plugins.models.families.family import stage_module
from medmllm_plugins.models.stages import changed
from medmllm_plugins.probes.validation.fault_kinds import Fault
from medmllm_plugins.probes.validation.fault_sites import FaultSites

Contexts: TypeAlias = list[AbstractContextManager[None]]
Planter: TypeAlias = Callable[[FaultSites, Fault], Contexts]
_MakeEdit: TypeAlias = Callable[[int, float], Edit]


def _tower_features(make: _MakeEdit) -> Planter:
    return lambda sites, fault: [changed(sites.tower_end, make(fault.seed, fault.grade))]


def _tower_rows(make: _MakeEdit) -> Planter:
    def plant(sites: FaultSites, fault: Fault) -> Contexts:
        family, batch = sites.loaded.family, sites.batch
        edit = make(fault.seed, fault.grade)
        skipped = family.class_tokens(sites.loaded.model)
        return [changed(sites.tower_end, batch.by_document("vision", edit, flat=family.flat, skipped=skipped))]

    return plant


def _connector_features(make: _MakeEdit) -> Planter:
    return lambda sites, fault: [changed(layer, make(fault.seed, fault.grade)) for layer in sites.connectors]


def _connector_rows(make: _MakeEdit) -> Planter:
    def plant(sites: FaultSites, fault: Fault) -> Contexts:
        batch, edit, flat = sites.batch, make(fault.seed, fault.grade), sites.loaded.family.flat
        return [changed(layer, batch.by_document("connector", edit, flat=flat)) for layer in sites.connectors]

    return plant


def _final_features(make: _MakeEdit) -> Planter:
    return lambda sites, fault: [changed(sites.llm_norm, make(fault.seed, fault.grade))]


def _skip_last_vision_blocks(sites: FaultSites, fault: Fault) -> Contexts:
    return [edits.scale_steps(block, 0.0) for block in sites.tower[-int(fault.grade) :]]


def _skip_first_llm_blocks(sites: FaultSites, fault: Fault) -> Contexts:
    return [edits.scale_steps(block, 0.0) for block in sites.llm_blocks[: int(fault.grade)]]


def _scale_llm_steps(sites: FaultSites, fault: Fault) -> Contexts:
    return [edits.scale_steps(block, fault.grade) for block in sites.llm_blocks]


def _reset_connector(sites: FaultSites, fault: Fault) -> Contexts:
    spread = initial_spread(sites)
    return [
        change_weights(layer.module, reset_weights(fault.seed, number, fault.grade, spread))
        for number, layer in enumerate(sites.connectors)
    ]


def initial_spread(sites: FaultSites) -> float:
    """Return the standard deviation that the tower's weights are initialised with."""
    config: Any = sites.loaded.model.config
    return float(getattr(config.vision_config, "initializer_range", 0.02))


def _scale_attention(sites: FaultSites, fault: Fault) -> Contexts:
    return [edits.scale_attention(sites.llm_blocks, fault.grade)]


def _change_rope(sites: FaultSites, fault: Fault) -> Contexts:
    return [edits.change_rope(sites.loaded, fault.grade)]


def _drop_values(sites: FaultSites, fault: Fault) -> Contexts:
    return [
        edit_output(module, edits.drop_features(fault.seed, fault.grade))
        for _, module in edits.attention_parts(sites.llm_blocks, "k_proj", "v_proj")
    ]


def _permute_keys(sites: FaultSites, fault: Fault) -> Contexts:
    return [
        edit_output(module, edits.permute_features(fault.seed, fault.grade))
        for _, module in edits.attention_parts(sites.llm_blocks, "k_proj")
    ]


def _rotate_values(sites: FaultSites, fault: Fault) -> Contexts:
    contexts: Contexts = []
    for block, module in edits.attention_parts(sites.llm_blocks, "v_proj"):
        width = next(int(size) for part in block.modules() if isinstance(size := getattr(part, "head_dim", None), int))
        contexts.append(edit_output(module, edits.rotate_heads(fault.seed, fault.grade, width)))
    return contexts


def _swap_blocks(sites: FaultSites, fault: Fault) -> Contexts:
    family = sites.loaded.family
    blocks = cast(nn.ModuleList, stage_module(sites.loaded.model, family.llm_blocks))
    # Blocks with windows and without (Gemma 4) may have other shapes.
    alike = [block for block in blocks[1:] if edits.same_layout(blocks[0], block)] or list(blocks[1:])
    return [edits.exchange_weights(blocks[0], alike[min(int(fault.grade), len(alike)) - 1])]


def _noise_llm(sites: FaultSites, fault: Fault) -> Contexts:
    return [
        change_weights(block, add_noise(fault.seed, number, fault.grade))
        for number, block in enumerate(sites.llm_blocks)
    ]


def _damage_llm(sites: FaultSites, fault: Fault) -> Contexts:
    return [
        change_weights(block, edits.add_low_rank(fault.seed, number, fault.grade))
        for number, block in enumerate(sites.llm_blocks)
    ]


def _shift_positions(sites: FaultSites, fault: Fault) -> Contexts:
    batch = sites.batch
    return [batch.shifted_images(module, fault.grade) for module in edits.rotary_modules(sites.loaded)]


def _narrow_attention(sites: FaultSites, fault: Fault) -> Contexts:
    sites.check_masks()
    batch = sites.batch
    hide = batch.outside_window(int(fault.grade))
    return [batch.masked(block, number, hide) for number, block in enumerate(sites.llm_blocks)]


FORM_FAULTS: Final[Mapping[str, Planter]] = {
    "tower_signs": _tower_features(edits.flip_signs),
    "tower_permuted": _tower_features(edits.permute_features),
    "tower_rotated": _tower_features(edits.rotate),
    "tower_offset": _tower_features(edits.offset),
    "tower_scaled": _tower_features(lambda _, factor: edits.scale(factor)),
    "tower_patches_permuted": _tower_rows(edits.permute_rows),
    "tower_blocks_skipped": _skip_last_vision_blocks,
    "tower_amplified": _tower_features(edits.amplify_few),
    "tower_absolute": _tower_features(edits.take_absolute),
    "connector_signs": _connector_features(edits.flip_signs),
    "connector_permuted": _connector_features(edits.permute_features),
    "connector_rotated": _connector_features(edits.rotate),
    "connector_offset": _connector_features(edits.offset),
    "connector_scaled": _connector_features(lambda _, factor: edits.scale(factor)),
    "connector_amplified": _connector_features(lambda _, factor: edits.scale(factor)),
    "connector_projected": _connector_features(edits.project),
    "connector_reset": _reset_connector,
    "connector_absolute": _connector_features(edits.take_absolute),
    "tokens_transposed": _connector_rows(lambda _, share: edits.transpose_rows(share)),
    "tokens_reflected": _connector_rows(lambda _, grade: edits.reflect_mean(grade)),
    "attention_flat": _scale_attention,
    "attention_sharp": _scale_attention,
    "rope_base": _change_rope,
    "llm_blocks_skipped": _skip_first_llm_blocks,
    "values_dropped": _drop_values,
    "llm_noise": _noise_llm,
    "llm_low_rank": _damage_llm,
    "positions_shifted": _shift_positions,
    "attention_windowed": _narrow_attention,
    "keys_permuted": _permute_keys,
    "values_rotated": _rotate_values,
    "blocks_swapped": _swap_blocks,
    "steps_scaled": _scale_llm_steps,
    "final_permuted": _final_features(edits.permute_features),
    "final_signs": _final_features(edits.flip_signs),
    "final_rotated": _final_features(edits.rotate),
}
"""By name, what plants a fault of form."""
