"""Task folders of plugins: which files declare a task, and what is wrong with the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.plugin_site import HEAD, Site, folder, only

from medmllm_plugins.errors import PluginError
from medmllm_plugins.plugins import task_files
from medmllm_plugins.plugins.manager import discover


def test_task_files(site: Site) -> None:
    path = site.tasks(
        "kinds",
        plain="task: one\nclass: !function some.where.Task\n",
        of_group="group: legacy\ntask: two\n",
        group="group: three\ntask: [one, two, {task: four}]\n",
        _base="not: a task\n",
        bom=b"\xef\xbb\xbftask: with_bom\n",
        tagged="task: five\nother: !python/object:os.system {a: 1}\nmore: !!python/name:os.system ''\n",
    )
    root = Path(path)
    for sub, content in {
        "deep/er/six.yaml": "task: six\n",
        "__pycache__/cached.yaml": "task: cached\n",
        ".hidden/hidden.yaml": "task: hidden\n",
        "deep/datasets/data.yaml": "name: data\n",
        "datasets/data.yaml": "name: data\n",
        "notes.yml": "task: seven\n",
    }.items():
        (root / sub).parent.mkdir(parents=True, exist_ok=True)
        (root / sub).write_text(content)
    site.add("kinds", HEAD + folder(path) + "\n@hookimpl(specname='medmllm_tasks')\ndef again():\n    return []\n")
    site.add("overlap", HEAD + folder(str(root / "deep")))
    manager = discover()
    ours = {name: entry.kind for name, entry in manager.tasks().items() if entry.plugin != "builtin"}
    assert manager.failures == []
    assert ours == {"one": "task", "two": "task", "three": "group", "with_bom": "task", "five": "task", "six": "task"}
    assert manager.tasks()["six"].path == root / "deep" / "er" / "six.yaml"
    assert manager.dataset_folders()[1:] == [root / "datasets", root / "deep" / "datasets"]


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (b"", 1, "`task: NAME`"),
        (b"- a\n- b\n", 1, "`task: NAME`"),
        (b"a: 1\nb: 2\n", 1, "got none"),
        (b"a: 1\ntask: 5\n", 2, "got task: 5"),
        (b"a: 1\ntask: two words\n", 2, "'two words'"),
        (b"a: 1\n\ntask: [x]\n", 3, "got none"),
        (b"a: 1\ntask: [x]\ngroup: 7\n", 3, "got group: 7"),
        (b"task: x\nb: [1, 2\nc: 3\n", 3, "expected YAML"),
        (b"task: x\nb: *nowhere\n", 2, "undefined alias"),
        (b"task: x\n---\ntask: y\n", 2, "another document"),
        (b"task: x\nb: {[1]: 2}\n", 2, "a key that is no text"),
        (b"task: x\n\nday: 2024-13-01\n", 3, "month must be in 1..12"),
        (b"task: x\nname: caf\xe9\n", 2, "expected UTF-8, got byte 0xe9"),
        (b"task: x\nname: \x07\n", 2, "special characters"),
        (b"task: x\n\xff\xfe\x00\x01", 2, "expected UTF-8"),
        (b"task: x\ndeep: " + b"[" * 5000, 2, "nesting deeper than"),
    ],
)
def test_faulty_task_file_is_named_with_its_line(site: Site, content: bytes, line: int, says: str) -> None:
    site.add("files", HEAD + folder(site.tasks("files", bad=content, good="task: good\n")))
    manager = discover()
    assert "good" in manager.tasks()
    message = only(manager, "files").message
    assert f"bad.yaml, line {line}:" in message
    assert says in message


@settings(max_examples=100)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.text(alphabet="task: group[]{}!&*?|>-#'\"\n\t %@`,.0123456789", max_size=120).map(str.encode),
    )
)
def test_any_file_is_a_task_or_a_failure_that_names_it(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    try:
        name, kind = task_files.read_task(path)
    except PluginError as error:
        assert str(error).startswith(f"{path}, line ")
    else:
        assert name and kind in ("task", "group")


@settings(max_examples=50)
@given(
    st.from_regex(r"[a-z0-9_]{1,12}", fullmatch=True),
    st.dictionaries(st.text(min_size=1, max_size=8), st.one_of(st.integers(), st.text(), st.booleans())),
)
def test_whatever_else_a_task_file_holds_its_name_is_read(
    tmp_path_factory: pytest.TempPathFactory, name: str, rest: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "named.yaml"
    path.write_text(yaml.safe_dump({**rest, "task": name}, allow_unicode=True), encoding="utf-8")
    assert task_files.read_task(path) == (name, "task")
