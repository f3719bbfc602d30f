"""Faults of a data set: the first are shown, and where there are more, a file that the message names holds all."""

from __future__ import annotations

import logging
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medmllm_plugins.data.core.data_faults import FAULTS_SHOWN, Faults
from medmllm_plugins.errors import DataError


def message(count: int, title: str = "Chest X-rays / of ours", download: str = "example.org") -> str:
    faults = Faults(title, "scans/", download=download)
    for index in range(count):
        faults.file(f"scans/{index:03d}.png: expected an image, got nothing")
    with pytest.raises(DataError) as caught:
        faults.stop()
    return str(caught.value)


def named_file(text: str) -> Path:
    match = re.search(r"all of them are in (\S+)$", text, re.MULTILINE)
    assert match is not None, text
    return Path(match[1])


@pytest.mark.parametrize("cache", ["", "remembered"])
def test_a_file_holds_all_faults(cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMLLM_CACHE", str(tmp_path / cache) if cache else "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    text = message(45)
    assert f"and {45 - FAULTS_SHOWN} more" in text and text.count("expected an image") == FAULTS_SHOWN
    path = named_file(text)
    assert path.is_absolute() and path.is_relative_to(tmp_path)
    assert path.read_text().splitlines() == [f"scans/{i:03d}.png: expected an image, got nothing" for i in range(45)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600  # files are named after patients at times
    assert text.endswith("get the set again from example.org.")


def test_a_later_list_replaces_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMLLM_CACHE", str(tmp_path))
    first, second = named_file(message(30)), named_file(message(25))
    assert first == second and len(first.read_text().splitlines()) == 25
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_few_faults_are_all_in_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMLLM_CACHE", str(tmp_path))
    text = message(FAULTS_SHOWN)
    assert text.count("expected an image") == FAULTS_SHOWN and "more" not in text
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_hides_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDMLLM_CACHE", str(tmp_path / "file" / "below"))
    text = message(30)
    assert "could not be written" in text and "30 faults" in text


@pytest.mark.parametrize("title", ["../../etc/x", "é漢", "a" * 300, ""])
def test_no_title_leads_out_of_the_folder(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMLLM_CACHE", str(tmp_path))
    assert named_file(message(21, title)).parent == tmp_path / "faults"


def test_files_that_were_left_out_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    faults = Faults("Set", "scans/", on_error="skip")
    for index in range(23):
        faults.file(f"{index}: no image")
    with caplog.at_level(logging.WARNING):
        faults.report()
    assert "23 files left out" in caplog.text and "and 3 more; the manifest of a run lists all" in caplog.text


def test_a_fault_that_lists_others_is_cut_and_whole_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDMLLM_CACHE", str(tmp_path))
    faults = Faults("Set", "scans/")
    long = "table.csv: " + "; ".join(f"line {line}: expected 3 cells, got 1" for line in range(500))
    faults.add(long)
    with pytest.raises(DataError) as caught:
        faults.stop()
    assert len(str(caught.value)) < 1000 + len(str(tmp_path))
    assert named_file(str(caught.value)).read_text() == long + "\n"


def test_threads_may_list_the_same_set_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMLLM_CACHE", str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: message(30), range(200)))
    assert not [text for text in texts if "could not be written" in text]
    assert [path.name for path in (tmp_path / "faults").iterdir()] == [named_file(texts[0]).name]
