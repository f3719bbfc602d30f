"""The JSON Schemas in docs are those of the declarations."""

from __future__ import annotations

from pathlib import Path

import pytest

from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.prompts.declaration_schemas import declaration_schemas, main
from medmllm_plugins.prompts.task_settings import ARGUMENTS

DOCS = Path(__file__).parents[2] / "docs" / "schemas" / "declarations"


@pytest.mark.skipif(not DOCS.is_dir(), reason="an installed package has no docs")
def test_the_files_in_docs_are_current() -> None:
    assert main([str(DOCS), "--check"]) == 0, f"run: python -m medmllm_plugins.prompts.declaration_schemas {DOCS}"


def test_an_outdated_file_is_noticed(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 0 and main([str(tmp_path), "--check"]) == 0
    (tmp_path / "task.schema.json").write_text("{}")
    assert main([str(tmp_path), "--check"]) == 1


def test_every_key_is_described() -> None:
    schemas = declaration_schemas()
    task = schemas["task"]["properties"]["metadata"]["properties"]["medmllm"]
    assert list(schemas["dataset"]["properties"]) == list(DatasetSpec.model_fields)
    assert list(task["properties"]) == ["dataset", *ARGUMENTS]
    for schema in (schemas["dataset"], task):
        assert schema["additionalProperties"] is False
        assert all(field["description"] for field in schema["properties"].values())
