"""YAML of users and plugins: what is too large, deep or long is refused at once, with a short message."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from medmllm_plugins.errors import DataError
from medmllm_plugins.utils.bounded_yaml import MAX_BYTES, MAX_DEPTH, parse_yaml, read_yaml_file

LETTERS = "abcdefghi"
BOMB = "a: &a [l,l,l,l,l,l,l,l,l]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{earlier}'] * 9)}]\n" for earlier, name in itertools.pairwise(LETTERS)
)
"""Some hundred bytes that stand for 9 ** 9 values."""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(BOMB, "values, those counted that aliases repeat", id="bomb"),
        pytest.param("a: &a [*a]", "an alias \\*a of its own parent", id="circle"),
        pytest.param("a: &a {b: 1}\nc: [" + "{<<: *a}," * 9000 + "]", "values, those counted", id="merged keys"),
        pytest.param("a: &a " + "x" * 9000 + "\nb: [" + "*a," * 5000 + "]", "values, those counted", id="long texts"),
        pytest.param("[" * 2000, "nesting deeper", id="brackets"),
        pytest.param("{a: " * 2000, "nesting deeper", id="braces"),
        pytest.param("- " * 2000, "nesting deeper", id="dashes"),
        pytest.param("".join(" " * depth + "a:\n" for depth in range(500)), "nesting deeper", id="indentation"),
        pytest.param("a: " + "1" * 5000, "a number of more than", id="number"),
        pytest.param("a: 0x" + "f" * 9000, "a number of more than", id="hexadecimal number"),
        pytest.param("a: " + "x" * 20_000, "a text of more than", id="text"),
        pytest.param("a: 1\na: 2", "the key 'a' a second time", id="key twice"),
        pytest.param("a: {b: 1, 'b': 2}", "the key 'b' a second time", id="key twice below"),
        pytest.param("1: x\n0x1: y", "the key 1 a second time", id="number twice"),
        pytest.param("? [a, b]\n: 1", "a key that is no text", id="list as key"),
        pytest.param("a: 2020-13-01", "month must be in", id="date"),
        pytest.param("a: !!python/object/apply:os.system [x]", "constructor", id="tag"),
        pytest.param("a: 1\n---\nb: 2", "another document", id="two documents"),
    ],
)
def test_what_is_out_of_bounds_is_refused_at_once(text: str, says: str) -> None:
    began = time.process_time()
    with pytest.raises(DataError, match=f"^x.yaml, line [0-9]+: expected YAML, got .*{says}") as caught:
        parse_yaml(text, "x.yaml", error=DataError)
    assert time.process_time() - began < 2
    assert len(str(caught.value)) < 300


def test_aliases_and_merged_keys_within_bounds_are_followed() -> None:
    text = "base: &base {x: 1, y: 2}\nother: {<<: *base, y: 3}\nlist: [*base, *base]\n"
    file = parse_yaml(text, "x.yaml", error=DataError)
    assert file.content == yaml.safe_load(text)
    assert file.lines == {"base": 1, "other": 2, "list": 3}


def test_nesting_up_to_the_bound_is_read() -> None:
    text = "[" * (MAX_DEPTH - 1) + "1" + "]" * (MAX_DEPTH - 1)
    assert parse_yaml(text, "x.yaml", error=DataError).content == yaml.safe_load(text)


def test_tags_are_text_only_where_asked() -> None:
    assert parse_yaml("a: !function b.c", "x", error=DataError, any_tag=True).content == {"a": "b.c"}
    with pytest.raises(DataError, match="!function"):
        parse_yaml("a: !function b.c", "x", error=DataError)


def test_large_files_pipes_and_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    for name, says in (("large", "at most 256 KiB"), ("folder", "expected a file"), ("pipe", "expected a file")):
        with pytest.raises(DataError, match=f"{name}.yaml: .*{says}"):
            read_yaml_file(tmp_path / f"{name}.yaml", error=DataError)


_PIECES = ["a", "1", ": ", "\n", "- ", "[", "]", "{", "}", "&a ", "*a", "<<", "? ", "!!set ", "!!omap ", "!!binary "]
_PIECES += [
    "|\n ",
    ">\n ",
    "'",
    '"',
    "#",
    "%",
    "---\n",
    ",",
    "  ",
    "\t",
    "\u2028",
    "\\x",
    "2020-01-01",
    "0o7",
    ".nan",
    "~",
]


@given(st.lists(st.sampled_from(_PIECES), max_size=40).map("".join))
def test_any_text_is_read_or_refused_by_our_error(text: str) -> None:
    try:
        parse_yaml(text, "x.yaml", error=DataError, any_tag=True)
    except DataError as error:
        assert str(error).startswith("x.yaml, line ")
        assert len(str(error)) < 400
