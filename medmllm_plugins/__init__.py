"""Medical image classification for lmms-eval: evaluate, probe and attribute medical multimodal LLMs.

The public names are :data:`__all__` and those of :mod:`medmllm_plugins.testing`; docs/public-names.md describes them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from medmllm_plugins.attribution.attribution_input import ActivationPatch, AttributionInput
    from medmllm_plugins.attribution.methods.layer_methods import MethodConfig, Scores
    from medmllm_plugins.attribution.own_attribution import Attribution, attribute
    from medmllm_plugins.data.core.data_faults import Faults as DataFaults
    from medmllm_plugins.data.core.dataset_spec import DatasetSpec
    from medmllm_plugins.data.core.documents import Document
    from medmllm_plugins.data.layouts.class_folders import LabelledFile, checked_documents, image_files
    from medmllm_plugins.data.layouts.layout_registry import FileLayout, Layout
    from medmllm_plugins.data.loading.catalogue import dataset_specs
    from medmllm_plugins.data.loading.dataset import Dataset, load_dataset
    from medmllm_plugins.errors import DataError, MedMLLMError, ModelError, OptionError, PluginError
    from medmllm_plugins.models.base import Generation, LoadedModel
    from medmllm_plugins.models.families.family import Family, FlatFamily
    from medmllm_plugins.models.options import LoadOptions
    from medmllm_plugins.models.own_model import open_model, wrap_model
    from medmllm_plugins.models.recorded_pass import RecordedPass
    from medmllm_plugins.models.stages import layers_of
    from medmllm_plugins.plugins.hookspecs import hookimpl
    from medmllm_plugins.plugins.manager import discover, get_manager
    from medmllm_plugins.plugins.specs import (
        AttributionSpec,
        InterventionSpec,
        ModelSpec,
        ProbeSpec,
        PromptStyle,
        TaskFolder,
    )
    from medmllm_plugins.probes.own_features import ProbeResults, probe_features
    from medmllm_plugins.probes.probe_methods import FittedProbe, ProbeData
    from medmllm_plugins.probes.sklearn_probe import SklearnProbe
    from medmllm_plugins.results.run import Run
    from medmllm_plugins.runtime.own_repair import FittedRepair, RepairExample, fit_repair
    from medmllm_plugins.runtime.repair_candidates import RepairOptions

__version__ = "0.1.0"
__all__ = [
    "ActivationPatch",
    "Attribution",
    "AttributionInput",
    "AttributionSpec",
    "DataError",
    "DataFaults",
    "Dataset",
    "DatasetSpec",
    "Document",
    "Family",
    "FileLayout",
    "FittedProbe",
    "FittedRepair",
    "FlatFamily",
    "Generation",
    "InterventionSpec",
    "LabelledFile",
    "Layout",
    "LoadOptions",
    "LoadedModel",
    "MedMLLMError",
    "MethodConfig",
    "ModelError",
    "ModelSpec",
    "OptionError",
    "PluginError",
    "ProbeData",
    "ProbeResults",
    "ProbeSpec",
    "PromptStyle",
    "RecordedPass",
    "RepairExample",
    "RepairOptions",
    "Run",
    "Scores",
    "SklearnProbe",
    "TaskFolder",
    "attribute",
    "checked_documents",
    "dataset_specs",
    "discover",
    "fit_repair",
    "get_manager",
    "hookimpl",
    "image_files",
    "layers_of",
    "load_dataset",
    "open_model",
    "probe_features",
    "wrap_model",
]
_MODULES: Final = {
    "ActivationPatch": "attribution.attribution_input",
    "Attribution": "attribution.own_attribution",
    "AttributionInput": "attribution.attribution_input",
    "AttributionSpec": "plugins.specs",
    "DataError": "errors",
    "DataFaults": "data.core.data_faults:Faults",
    "Dataset": "data.loading.dataset",
    "DatasetSpec": "data.core.dataset_spec",
    "Document": "data.core.documents",
    "Family": "models.families.family",
    "FileLayout": "data.layouts.layout_registry",
    "FittedProbe": "probes.probe_methods",
    "FittedRepair": "runtime.own_repair",
    "FlatFamily": "models.families.family",
    "Generation": "models.base",
    "InterventionSpec": "plugins.specs",
    "LabelledFile": "data.layouts.class_folders",
    "Layout": "data.layouts.layout_registry",
    "LoadOptions": "models.options",
    "LoadedModel": "models.base",
    "MedMLLMError": "errors",
    "MethodConfig": "attribution.methods.layer_methods",
    "ModelError": "errors",
    "ModelSpec": "plugins.specs",
    "OptionError": "errors",
    "PluginError": "errors",
    "ProbeData": "probes.probe_methods",
    "ProbeResults": "probes.own_features",
    "ProbeSpec": "plugins.specs",
    "PromptStyle": "plugins.specs",
    "RecordedPass": "models.recorded_pass",
    "RepairExample": "runtime.own_repair",
    "RepairOptions": "runtime.repair_candidates",
    "Run": "results.run",
    "Scores": "attribution.methods.layer_methods",
    "SklearnProbe": "probes.sklearn_probe",
    "TaskFolder": "plugins.specs",
    "attribute": "attribution.own_attribution",
    "checked_documents": "data.layouts.class_folders",
    "dataset_specs": "data.loading.catalogue",
    "discover": "plugins.manager",
    "fit_repair": "runtime.own_repair",
    "get_manager": "plugins.manager",
    "hookimpl": "plugins.hookspecs",
    "image_files": "data.layouts.class_folders",
    "layers_of": "models.stages",
    "load_dataset": "data.loading.dataset",
    "open_model": "models.own_model",
    "probe_features": "probes.own_features",
    "wrap_model": "models.own_model",
}
"""The module of each public name, with the name there if it is another; it is imported when the name is first used."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _MODULES[name].partition(":")
    value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), attribute or name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
