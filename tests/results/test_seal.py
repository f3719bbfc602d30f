"""The seal of a run folder: damage, edits and losses are named, and later writers keep what they did not write."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from medmllm_plugins.errors import DataError
from medmllm_plugins.results.seal import SEAL, check_seal, describe, take_out_of_seal, update_seal, write_seal
from medmllm_plugins.utils.locking import FolderLock

FILES = {
    "manifest.json": "{}",
    "t.metrics.json": '{"a": 1}',
    "t.metrics.csv": "metric,value\n",
    "t.label_scores.csv": "form\n",
    "t.outcomes.jsonl": "{}\n",
    "features/t/seal.json": "{}",
    "features/t/index/rank0-00000.parquet": "index",
    "features/t/rank0-00000.safetensors": "shard",
    "attributions/t/index.json": "{}",
    "attributions/t/maps/a.npz": "map",
}
BESIDE = ("report.html", ".lock", ".unfinished/x/answers.0.jsonl", "scans/0.png", "other.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {**FILES, **dict.fromkeys(BESIDE, "of somebody else")}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    write_seal(tmp_path)
    return tmp_path


def test_every_file_of_the_run_is_sealed_and_no_other(folder: Path) -> None:
    entries = json.loads((folder / SEAL).read_text())["files"]
    assert set(entries) == set(FILES)
    assert entries["t.metrics.json"]["size"] == 8 and len(entries["t.metrics.json"]["sha256"]) == 64
    assert check_seal(folder).sealed and not check_seal(folder).differing


DAMAGE: dict[str, Callable[[Path], object]] = {
    "its content is another": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1, *path.read_bytes()[1:]])),
    "bytes were sealed": lambda path: path.write_text(path.read_text() + " "),
    "it is missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fault", DAMAGE)
def test_each_file_that_differs_is_named(folder: Path, name: str, fault: str) -> None:
    DAMAGE[fault](folder / name)
    checked = check_seal(folder, lambda _: True)
    assert list(checked.differing) == [name] and fault in checked.differing[name]
    assert name in describe(checked.differing) and checked.among(name)
    assert checked.among("features/") == (checked.differing if name.startswith("features/") else {})
    if name.endswith(".safetensors") and fault == "its content is another":
        assert not check_seal(folder).differing  # the checksum of a shard is compared where it is read


def test_a_file_that_readers_would_take_figures_from_was_added(folder: Path) -> None:
    (folder / "u.outcomes.jsonl").write_text("{}")
    (folder / "u.metrics.csv").write_text("nobody reads it")
    assert dict(check_seal(folder).differing) == {"u.outcomes.jsonl": "it was added later"}


def test_later_writers_keep_the_entries_of_what_they_did_not_write(folder: Path) -> None:
    (folder / "t.metrics.json").write_text('{"a": 2}')
    (folder / "attributions/t/index.json").write_text("[1]")
    (folder / "attributions/t/maps/b.npz").write_text("another map")
    (folder / "attributions/t/maps/a.npz").unlink()
    (folder / "t.attributions.csv").write_text("method\n")
    update_seal(folder, ["attributions/t/", "t.attributions.csv"])
    assert list(check_seal(folder).differing) == ["t.metrics.json"]
    known, kept = {"features/t/rank0-00000.safetensors": "0" * 64}, {"t.metrics.json": {"size": 1, "sha256": ""}}
    write_seal(folder, known, kept)
    entries = json.loads((folder / SEAL).read_text())["files"]
    assert entries["features/t/rank0-00000.safetensors"] == {"size": 5, "sha256": "0" * 64}
    assert entries["t.metrics.json"]["size"] == 1


def test_no_seal_is_made_where_none_was_and_none_while_another_process_writes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medmllm_plugins.results.seal._WAIT", 0.0)
    lock = FolderLock(folder)
    assert lock.acquire() and not FolderLock(folder).acquire()
    with pytest.raises(DataError, match="in use"):
        update_seal(folder, ["t.metrics.json"])
    lock.release()
    update_seal(folder, ["t.metrics.json"])
    (folder / SEAL).unlink()
    update_seal(folder, ["t.metrics.json"])
    assert not (folder / SEAL).exists() and not check_seal(folder).sealed and "seal.json" in check_seal(folder).fault


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"medmllm_seal": 2, "files": {}}',
        '{"medmllm_seal": 1, "files": {"a": 3}}',
        "[" * 9999,
        *(
            json.dumps({"medmllm_seal": 1, "files": {name: {"size": 0, "sha256": ""}}})
            for name in ("/dev/zero", "../../x")
        ),
    ],
)
def test_a_seal_that_cannot_be_read_says_so(folder: Path, text: str) -> None:
    (folder / SEAL).write_text(text)
    checked = check_seal(folder)
    assert not checked.sealed and checked.fault.startswith("expected ") and not checked.differing
    with pytest.raises(DataError, match=r"seal\.json: expected"):
        update_seal(folder, ["t.metrics.json"])


def test_a_device_in_the_place_of_a_file_is_not_read(folder: Path) -> None:
    (folder / "t.metrics.csv").write_text("")
    update_seal(folder, ["t.metrics.csv"])
    (folder / "t.metrics.csv").unlink()
    (folder / "t.metrics.csv").symlink_to("/dev/zero")  # which has no end, and the size 0
    assert dict(check_seal(folder).differing) == {"t.metrics.csv": "it is no file"}


def test_a_lock_dies_with_its_process_and_leaves_no_file(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # holds the lock and is killed
        FolderLock(tmp_path).acquire()
        os.write(writer, b"1")
        while True:
            os.read(reader, 0)
    try:
        assert os.read(reader, 1) == b"1"
        lock = FolderLock(tmp_path)
        assert not lock.acquire()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert lock.acquire(5.0) and (tmp_path / ".lock").exists()
    lock.release()
    lock.release()
    assert not list(tmp_path.iterdir())


def test_what_is_written_again_may_be_broken_off(folder: Path) -> None:
    before = json.loads((folder / SEAL).read_text())
    take_out_of_seal(folder, ["attributions/t/"])
    (folder / "attributions/t/maps/a.npz").write_text("half")  # and here the command is killed
    (folder / "attributions/t/maps/b.npz").write_text("new")
    assert not check_seal(folder).differing and not (folder / ".lock").exists()
    (folder / "attributions/t/index.json").write_text("[]")  # still sealed, and so is all else
    (folder / "t.metrics.csv").write_text("")
    assert set(check_seal(folder).differing) == {"attributions/t/index.json", "t.metrics.csv"}
    (folder / "attributions/t/index.json").write_text("{}")
    (folder / "t.metrics.csv").write_text(FILES["t.metrics.csv"])
    update_seal(folder, ["attributions/t/"])
    assert set(json.loads((folder / SEAL).read_text())["files"]) == {*before["files"], "attributions/t/maps/b.npz"}
    (folder / SEAL).unlink()
    take_out_of_seal(folder, ["attributions/t/"])
    assert not (folder / SEAL).exists()
