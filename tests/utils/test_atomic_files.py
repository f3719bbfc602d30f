"""Text files appear whole, private ones to their owner alone, and what killed processes left goes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from medmllm_plugins.utils.atomic_files import remove_drafts, write_whole


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_private_file_is_its_owners_alone_and_stays_so(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_whole(tmp_path / "manifest.json", "{}", private=True)
        assert mode(tmp_path / "manifest.json") == 0o600
        (tmp_path / "manifest.json").chmod(0o644)
        write_whole(tmp_path / "manifest.json", "ä\r\n", private=True)
        assert mode(tmp_path / "manifest.json") == 0o600
        assert (tmp_path / "manifest.json").read_bytes() == "ä\r\n".encode()
        write_whole(tmp_path / "other.csv", "")
        assert mode(tmp_path / "other.csv") == 0o644
    finally:
        os.umask(before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "other.csv"]


def test_a_file_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write_whole(tmp_path / "a", "old")
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "a", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_a_lone_surrogate_is_written_as_json_writes_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.json", json.dumps({"title": "x \ud800"}, ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"title": "x \ud800"}


def test_drafts_of_killed_processes_go_and_no_others(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    stale = [".manifest.json.%d.tmp", ".%d.tmp", "features/t/.rank0-00000.safetensors.%d.tmp"]
    kept = [f".a.json.{os.getpid()}.tmp", ".hidden.tmp", "notes.1.tmp", f"scans/.x.{dead.pid}.tmp", ".lock"]
    for name in (*(name % dead.pid for name in stale), *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    remove_drafts(tmp_path, ("features", "attributions"))
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(kept)
