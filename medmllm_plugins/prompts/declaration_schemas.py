"""JSON Schema, for editors, of the YAML that users write: declarations of data sets, and tasks.

``python -m medmllm_plugins.prompts.declaration_schemas docs/schemas/declarations`` writes them; ``--check`` compares.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.prompts.task_settings import TaskDeclaration
from medmllm_plugins.utils.declared_model import DeclaredModel

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def declaration_schemas() -> dict[str, dict[str, Any]]:
    """Return the schemas ``dataset`` and ``task``; a task's file may hold any other key of lmms-eval."""
    medmllm = _schema(TaskDeclaration)
    medmllm["properties"]["dataset"]["anyOf"][1] = {"$ref": "dataset.schema.json"}
    task = {
        "type": "object",
        "required": ["task", "metadata"],
        "properties": {
            "task": {"type": "string", "description": "Name of the task."},
            "metadata": {"type": "object", "required": ["medmllm"], "properties": {"medmllm": medmllm}},
        },
    }
    return {"dataset": {"$schema": _DIALECT, **_schema(DatasetSpec)}, "task": {"$schema": _DIALECT, **task}}


def _schema(model: type[DeclaredModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    for field in schema["properties"].values():
        field.pop("title", None)  # pydantic repeats the key
    return schema


def schema_files() -> dict[str, str]:
    """Return the text of each schema by file name."""
    return {
        f"{name}.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        for name, schema in declaration_schemas().items()
    }


def main(arguments: Sequence[str]) -> int:
    """Write the schemas into a folder; with ``--check`` return 1 if one differs from its file."""
    folder = Path(next(argument for argument in arguments if argument != "--check"))
    texts = schema_files()
    if "--check" not in arguments:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        return 0
    stored = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    return int(stored != texts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
