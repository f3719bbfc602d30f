"""JSON Schema of runs and reports: ``python -m medmllm_plugins.results.schema docs/schemas [--check]``."""

from __future__ import annotations

import inspect
import json
import re
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin

from medmllm_plugins.data.core.fold_manifest import FoldManifest
from medmllm_plugins.errors import OptionError
from medmllm_plugins.metrics.multilabel import FindingsSummary
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.prompt_variants import VariantsSummary
from medmllm_plugins.metrics.summary import Summary
from medmllm_plugins.results.attribution_records import AttributionIndex
from medmllm_plugins.results.feature_store import Header
from medmllm_plugins.results.interchange_records import Interchange
from medmllm_plugins.results.intervention_records import InterventionResults
from medmllm_plugins.results.knockout_records import Knockout
from medmllm_plugins.results.manifest import Manifest
from medmllm_plugins.results.patch_records import TwinPatching
from medmllm_plugins.results.probe_records import ProbeAnalysis
from medmllm_plugins.results.repair_records import RepairStudy
from medmllm_plugins.results.report_records import ReportRecord
from medmllm_plugins.results.steering_records import Steering
from medmllm_plugins.utils.record import Record, VersionedRecord, field_types

RECORDS: Final[Mapping[str, type[Any]]] = {
    "manifest": Manifest,
    "outcome": Outcome,
    "metrics": Summary,
    "metrics_multilabel": FindingsSummary,
    "metrics_variants": VariantsSummary,
    "probes": ProbeAnalysis,
    "attributions": AttributionIndex,
    "patching": TwinPatching,
    "interchange": Interchange,
    "knockout": Knockout,
    "steering": Steering,
    "interventions": InterventionResults,
    "repairs": RepairStudy,
    "folds": FoldManifest,
    "feature_store": Header,
    "report": ReportRecord,
}
"""The records that are files, or lines of files, by the name of their schema."""
_SCALARS: Final[Mapping[Any, dict[str, Any]]] = {
    Any: {},
    str: {"type": "string"},
    Path: {"type": "string"},
    int: {"type": "integer"},
    bool: {"type": "boolean"},
    float: {"type": ["number", "null"]},
}


def json_schema(cls: type[Any]) -> dict[str, Any]:
    """Return the JSON Schema of a record, with descriptions from its docstring."""
    definitions: dict[str, Any] = {}
    schema = _object(cls, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": cls.__name__,
        **schema,
        **({"$defs": dict(sorted(definitions.items()))} if definitions else {}),
    }


def _object(cls: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    summary, described = _docstring(cls)
    properties, required = {}, []
    if issubclass(cls, VersionedRecord):
        properties[cls.FORMAT] = {"const": cls.VERSION, "description": "Version of the format."}
        required.append(cls.FORMAT)
    types_of = field_types(cls)
    for field in fields(cls):
        properties[field.name] = {**_type(types_of[field.name], definitions), "description": described[field.name]}
        if issubclass(cls, Record) or field.default is MISSING:
            required.append(field.name)
    return {"description": summary, "type": "object", "properties": properties, "required": required}


def _type(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        inner = [_type(argument, definitions) for argument in arguments if argument is not types.NoneType]
        if types.NoneType in arguments and inner[0].get("type") != ["number", "null"]:
            inner.append({"type": "null"})
        return {"anyOf": inner} if len(inner) > 1 else inner[0]
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _type(arguments[0], definitions)}
    if origin is tuple:
        return {"type": "array", "prefixItems": [_type(argument, definitions) for argument in arguments]}
    if origin is not None:
        return {"type": "object", "additionalProperties": _type(arguments[1], definitions)}
    if hint in _SCALARS:
        return dict(_SCALARS[hint])
    name: str = hint.__name__
    if name not in definitions:
        definitions[name] = {}  # a record may hold itself
        definitions[name] = _object(hint, definitions)
    return {"$ref": f"#/$defs/{name}"}


def _docstring(cls: type[Any]) -> tuple[str, dict[str, str]]:
    """Return the first paragraph of a record's docstring and the description of each field."""
    text = inspect.getdoc(cls) or ""
    summary, _, rest = text.partition("\n\n")
    section = re.split(r"\n\n(?=\S)", rest.partition("Attributes:\n")[2])[0]
    described = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, flags=re.MULTILINE))
    return _plain(summary), {name: _plain(words) for name, words in described.items()}


def _plain(text: str) -> str:
    """Return a docstring's text without markup and line breaks."""
    return re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", " ".join(text.split())).replace("``", "`")


def schema_files() -> dict[str, str]:
    """Return the text of each schema by file name."""
    return {
        f"{name}.schema.json": json.dumps(json_schema(cls), indent=2, ensure_ascii=False) + "\n"
        for name, cls in RECORDS.items()
    }


def main(arguments: Sequence[str]) -> int:
    """Write all schemas into a folder; with ``--check`` compare them with those that are there.

    Returns:
        0; with ``--check`` 1 where a schema is missing, outdated or of no record.
    """
    folders = [Path(argument) for argument in arguments if argument != "--check"]
    if len(folders) != 1:
        raise OptionError("Expected one folder. Run: python -m medmllm_plugins.results.schema docs/schemas [--check]")
    (folder,), texts = folders, schema_files()
    if "--check" not in arguments:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        return 0
    stored = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    if outdated := sorted(name for name in texts.keys() | stored.keys() if texts.get(name) != stored.get(name)):
        print(f"{folder}: outdated: {', '.join(outdated)}. Run: python -m medmllm_plugins.results.schema {folder}")
    return int(bool(outdated))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
