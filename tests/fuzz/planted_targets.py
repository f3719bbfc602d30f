"""Readers with faults, one for each rule, which the harness has to find."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fuzz.mutators import flip_bit
from fuzz.target import Target

from medmllm_plugins.errors import DataError

BAD: Final = 17
"""Number of the case at which each planted fault shows."""


def _planted(name: str, act: Callable[[Path], object], seconds: float = 2.0) -> Target:
    def read(folder: Path) -> object:
        if folder.name.endswith(f"-{BAD}"):
            return act(folder)
        if folder.name.endswith("4"):
            raise DataError(f"{folder}: expected a file, got another.")
        return "fine"

    return Target(
        name=name, seeds=lambda: {"whole": {"a.bin": bytes(64)}}, read=read, mutators={"*": flip_bit}, seconds=seconds
    )


def _raise(error: BaseException) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        raise error

    return act


def _hidden_memory(folder: Path) -> object:
    try:
        return len(bytearray(3 << 30))
    except MemoryError:
        raise DataError(f"{folder}: expected a smaller file.") from None


def _busy(folder: Path) -> object:
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    return None


def _noise(folder: Path) -> object:
    os.write(2, b"noise " * 20_000)
    return None


def _stale(folder: Path) -> object:
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.free.argtypes = [ctypes.c_void_p]
    address = library.malloc(4096)
    try:
        return ctypes.string_at(address + 64, 16).hex()
    finally:
        library.free(address)


def _overflow(folder: Path) -> object:
    ctypes.pythonapi.PyMem_RawMalloc.restype = ctypes.c_void_p
    ctypes.pythonapi.PyMem_RawFree.argtypes = [ctypes.c_void_p]
    address = ctypes.pythonapi.PyMem_RawMalloc(20)
    ctypes.memset(address, 0, 20)
    # A byte too many, which does no harm without the checks. They keep a byte there that depends on the address: any
    # fixed value is now and then the right one.
    behind = ctypes.c_ubyte.from_address(address + 20)
    behind.value ^= 0xFF
    ctypes.pythonapi.PyMem_RawFree(address)
    return "fine"


def _abort(folder: Path) -> object:
    os.kill(os.getpid(), signal.SIGABRT)
    return None


def _hang(folder: Path) -> object:
    time.sleep(600)
    return None


def _leave(folder: Path) -> object:
    sys.stdout.flush()
    os._exit(3)


TARGETS: Final = {
    target.name: target
    for target in (
        _planted("error", _raise(KeyError("shape"))),
        _planted("exit", _raise(SystemExit(0))),
        _planted("memory_error", _raise(MemoryError())),
        _planted("hidden_memory", _hidden_memory),
        _planted("message", _raise(DataError("x" * 2000))),
        _planted("seconds", _busy, 0.1),
        _planted("output", _noise),
        _planted("unstable", _stale),
        _planted("overflow", _overflow),
        _planted("abort", _abort),
        _planted("leave", _leave),
        _planted("hang", _hang),
        _planted("sound", lambda folder: "fine"),
    )
}
