"""Threads that decode files are limited by processors and memory."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import medmllm_plugins
from medmllm_plugins.data.readers import reader_threads as module
from medmllm_plugins.data.readers.decode_limit import VARIABLE
from medmllm_plugins.data.readers.reader_threads import available_memory, reader_threads, worst_case_bytes

GIB = 1024**3


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 16 processors with 40 GiB of available memory, and the folder of its control group."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(module, "_CGROUP", tmp_path)
    set_available(monkeypatch, 40 * GIB)
    return tmp_path


def set_available(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=size))


def test_with_much_memory_there_are_eight(machine: Path) -> None:
    assert available_memory() == 40 * GIB and reader_threads() == 8


@pytest.mark.parametrize(("free", "threads"), [(0, 1), (GIB, 1), (3 * GIB, 2), (5 * GIB, 4)])
def test_memory_limits_them(machine: Path, monkeypatch: pytest.MonkeyPatch, free: int, threads: int) -> None:
    set_available(monkeypatch, free)
    assert reader_threads() == threads


def test_a_larger_limit_takes_fewer(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "8G")
    assert reader_threads() == 2 and worst_case_bytes() > 16 * GIB


def test_the_container_counts_too(machine: Path) -> None:
    (machine / "memory.max").write_text(f"{4 * GIB}\n")
    (machine / "memory.current").write_text(f"{3 * GIB}\n")
    (machine / "memory.stat").write_text(f"anon 5\ninactive_file {2 * GIB}\n")
    assert available_memory() == 3 * GIB and reader_threads() == 2
    (machine / "memory.max").write_text("max\n")
    assert available_memory() == 40 * GIB


def test_few_processors_limit_them(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert reader_threads() == 2


def test_no_pool_that_reads_files_counts_its_threads_itself() -> None:
    package = Path(medmllm_plugins.__file__).parent
    for room in ("data", "host", "reference"):
        for path in (package / room).glob("*.py"):
            text = path.read_text(encoding="utf-8")
            for pool in re.findall(r"ThreadPoolExecutor\((?:max_workers=)?([^,)]*)", text):
                assert pool in ("reader_threads(", "workers", "1", "CHILDREN", "min(processors("), f"{path}: {pool}"
            if path.name != "reader_threads.py":
                assert "cpu_count" not in text, path
