"""CSV tables: what spreadsheets write is read alike, and what is wrong is named with its line."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.layouts.csv_rows import read_rows
from medmllm_plugins.errors import DataError

COLUMNS = ("image", "label")
ROWS = [{"image": "a.png", "label": "yes"}, {"image": "b.png", "label": "no"}]


def read(path: Path, content: str | bytes, columns: tuple[str, ...] = COLUMNS) -> list[dict[str, str]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    faults = Faults("set", str(path))
    rows = read_rows(path, columns, faults)
    faults.stop()
    return [dict(row) for _, row in rows]


@pytest.mark.parametrize(
    "content",
    [
        "image,label\na.png,yes\nb.png,no\n",
        "image,label\r\na.png,yes\r\nb.png,no\r\n",
        "image,label\ra.png,yes\rb.png,no",
        "\ufeffimage,label\na.png,yes\nb.png,no",
        "image;label\na.png;yes\nb.png;no\n",
        "image\tlabel\na.png\tyes\nb.png\tno\n",
        "\n image , label \n\na.png , yes\n,\nb.png,no\n\n",
        'image,label,,\n"a.png","yes",,\nb.png,no,,\n',
    ],
    ids=["plain", "crlf", "cr", "bom", "semicolon", "tab", "blanks", "empty columns"],
)
def test_every_way_to_write_a_table(tmp_path: Path, content: str) -> None:
    assert read(tmp_path / "t.csv", content) == ROWS


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "empty file"),
        ("\n\n", "empty file"),
        ("image,class\na.png,yes", r"line 1: expected the columns \['label'\], got \['image', 'class'\]"),
        ("image,label,label\na.png,yes,no", r"line 1: expected column names that differ, got \['label'\]"),
        ("image,label\na.png\n", "line 2: expected 2 cells, got 1"),
        ("image,label\na.png,yes,more\n", "line 2: expected 2 cells, got 3"),
        ('image,label\n"a.png,yes\n', "expected CSV, got unexpected end of data"),
        ("image,label\nä.png,yes\n".encode("latin-1"), "line 2: expected UTF-8, got byte 0xe4"),
        ("image,label\n".encode("utf-16"), "UTF-16; save it as CSV"),
        (b"PK\x03\x04rest", "a spreadsheet or archive; save it as CSV"),
        (b"\xd0\xcf\x11\xe0rest", "a spreadsheet; save it as CSV"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, content: str | bytes, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read(tmp_path / "t.csv", content)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    faults = Faults("set", "")
    assert read_rows(tmp_path / "none.csv", COLUMNS, faults) == []
    with pytest.raises(DataError, match=r"none\.csv: expected a CSV table, got one that cannot be read"):
        faults.stop()


CELLS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6),
    delimiter=st.sampled_from(",;\t"),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_what_the_standard_writer_writes_is_read(
    tmp_path: Path, rows: list[tuple[str, str]], delimiter: str, ending: str
) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=ending).writerows([COLUMNS, *rows])
    assert read(tmp_path / "t.csv", text.getvalue()) == [dict(zip(COLUMNS, row, strict=True)) for row in rows]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_table_or_one_error(tmp_path: Path, content: bytes) -> None:
    try:
        read(tmp_path / "t.csv", content)
    except DataError as error:
        assert str(tmp_path / "t.csv") in str(error)


@pytest.mark.parametrize("content", [b"a\n" * 4000, b"a\n" + b"x" * 140_000, b"a," * 20_000])
def test_a_table_larger_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setenv("MEDMLLM_MAX_DECODED", "300K" if b"," in content else "1M")
    (tmp_path / "rows.csv").write_bytes(content)
    faults = Faults("set", "")
    assert read_rows(tmp_path / "rows.csv", [], faults) == []
    with pytest.raises(DataError, match=r"rows\.csv: expected at most [0-9,]+ bytes of decoded data"):
        faults.stop()
