"""CSV tables as spreadsheets write them: any of three delimiters, any line ending, with or without a BOM."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from medmllm_plugins.data.core.data_faults import Faults
from medmllm_plugins.data.readers.decode_limit import check_decoded_size, max_decoded_bytes
from medmllm_plugins.errors import DataError, shown
from medmllm_plugins.utils.regular_files import open_regular, size_of

Row = Mapping[str, str]
"""Column to cell, without blanks around either."""

_DELIMITERS = ",;\t"
_FOREIGN = {
    b"PK\x03\x04": "a spreadsheet or archive",
    b"\xd0\xcf\x11\xe0": "a spreadsheet",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}


_TEXT_BYTES = 8
"""Memory that a byte of the file takes while it is read: as bytes, as text, and in the reader's buffer."""
_ROW_BYTES, _CELL_BYTES = 320, 60
"""Memory that a row and a cell take beside their text."""


def read_rows(path: Path, columns: Sequence[str], faults: Faults) -> list[tuple[int, Row]]:
    """Read a CSV table with a header.

    The delimiter is the one of comma, semicolon and tab that the header line holds most often. Quoted cells may hold
    it, and line breaks. Lines without any text are passed over.

    Columns beside ``columns`` may be there. What is wrong goes to ``faults`` as a fault of the set, since a table that
    cannot be understood in one place may be misunderstood in others.

    Returns:
        Rows with the number of the line on which each ends. None where the file or its header cannot be read, or where
        the table would take more memory than the limit of :mod:`medmllm_plugins.data.readers.decode_limit`.
    """
    try:
        with open_regular(path, "a CSV table") as opened:
            check_decoded_size(path, size_of(opened) * _TEXT_BYTES)
            content = opened.read()
    except DataError as error:
        faults.add(str(error))
        return []
    for start, what in _FOREIGN.items():
        if content.startswith(start):
            faults.add(f"{path}: expected a CSV table in UTF-8, got {what}; save it as CSV (UTF-8)")
            return []
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"{content[error.start]:#04x}"
        faults.add(f"{path}, line {line}: expected UTF-8, got byte {byte}; save the table as CSV (UTF-8)")
        return []
    first = next((line for line in io.StringIO(text, newline="") if line.strip()), "")
    delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, Row]] = []
    header: list[str] | None = None
    memory = len(content) * _TEXT_BYTES
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if header is None:
                # Spreadsheets leave empty columns at the right.
                header = cells[: max(index for index, cell in enumerate(cells) if cell) + 1]
                if not _good_header(path, reader.line_num, header, columns, faults):
                    return []
                continue
            memory += _ROW_BYTES + _CELL_BYTES * len(cells)
            if memory > max_decoded_bytes():
                check_decoded_size(path, memory)
            if len(cells) < len(header) or any(cells[len(header) :]):
                faults.add(f"{path}, line {reader.line_num}: expected {len(header)} cells, got {len(cells)}")
            else:
                rows.append((reader.line_num, dict(zip(header, cells, strict=False))))
    except DataError as error:
        faults.add(str(error))
        return []
    except csv.Error as error:
        faults.add(f"{path}, line {reader.line_num}: expected CSV, got {error}")
    if header is None:
        faults.add(f"{path}: expected a CSV table with a header, got an empty file")
    return rows


def _good_header(path: Path, line: int, header: Sequence[str], columns: Sequence[str], faults: Faults) -> bool:
    repeated = [name for name, count in Counter(header).items() if count > 1]
    missing = [column for column in columns if column not in header]
    if repeated:
        faults.add(f"{path}, line {line}: expected column names that differ, got {shown(repeated)} more than once")
    if missing:
        faults.add(f"{path}, line {line}: expected the columns {shown(missing)}, got {shown(list(header))}")
    return not repeated and not missing
