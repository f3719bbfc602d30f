"""Run native decoders in child processes: a crash, a hang or a memory bomb costs one file, never the run.

Decoders that were not written for hostile files (JPEG, JPEG-LS and JPEG 2000 in GDCM) are called by the name of a
Python function. Children start when needed and serve several jobs; each job has a limit of time and, on Linux, of
memory. They import neither torch nor the host, see no file of the user, print nothing, and end with their parent.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from queue import LifoQueue
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from medmllm_plugins.data.readers import decoder_worker
from medmllm_plugins.data.readers.decoder_worker import FRAME
from medmllm_plugins.errors import DataError
from medmllm_plugins.utils.environment import processors

CHILDREN: Final = min(2, processors())
"""Most children at a time; further threads wait."""
SECONDS: Final = 60.0
"""Time limit of a job, plus a second for each 2 MiB of decoded data; includes the start of a child."""
_BASE_MEMORY: Final = 256 * 1024**2
_LARGEST_HEAD: Final = 1 << 16


def decode(
    path: object,
    function: str,
    payload: bytes,
    arguments: Mapping[str, Any],
    *,
    dtype: npt.DTypeLike,
    shape: tuple[int, ...],
    seconds: float | None = None,
) -> npt.NDArray[Any]:
    """Run a decoder in a child process.

    ``function``, ``"package.module:function"``, takes the compressed ``payload`` and ``arguments`` in types that JSON
    has, and returns an array of ``dtype`` and ``shape``. By default its time is limited by :data:`SECONDS`.

    Raises:
        DataError: the decoder raised, ran out of memory or time, or crashed; or returned another array than expected.
    """
    wanted = np.dtype(dtype)
    size = wanted.itemsize * math.prod(shape)
    job = {"function": function, "arguments": dict(arguments), "memory": _BASE_MEMORY + 4 * size + 2 * len(payload)}
    limit = SECONDS + size / (2 * 1024**2) if seconds is None else seconds
    head, content = _POOL.run(path, job, payload, limit, size)
    if "error" in head:
        why = "more memory than a picture of its size needs" if head["error"] == "memory" else "damaged data"
        raise DataError(
            f"{path}: expected compressed pixels that decode, got {why}. Get the file again, or decompress it with "
            "another program."
        )
    if head.get("dtype") != wanted.str or head.get("shape") != list(shape) or len(content) != size:
        raise DataError(
            f"{path}: expected pixels {list(shape)} of type {wanted}, got others from the decoder. Get the file again."
        )
    return np.frombuffer(content, wanted).reshape(shape)


class _Child:
    """A process that runs one job at a time."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", str(Path(decoder_worker.__file__)), json.dumps([*map(str, sys.path)])]
        environment = {**os.environ, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=environment,
        )
        self.late = False

    def run(self, job: Mapping[str, Any], payload: bytes, seconds: float, largest: int) -> tuple[Any, bytearray]:
        """Send a job and wait for the answer.

        Raises:
            OSError, EOFError, ValueError: the child died, was killed for being late, or answers nonsense.
        """
        timer = threading.Timer(seconds, self._kill_late)
        timer.daemon = True
        timer.start()
        try:
            text = json.dumps(job).encode()
            self._send(FRAME.pack(len(text), len(payload)) + text)
            self._send(payload)
            length, size = FRAME.unpack(self._receive(FRAME.size))
            if length > _LARGEST_HEAD or size > largest:
                raise ValueError("an answer of that length was not asked for")
            head = json.loads(self._receive(length))
            if not isinstance(head, dict):
                raise ValueError("an answer of that kind was not asked for")
            return head, self._receive(size)
        finally:
            timer.cancel()

    def _send(self, content: bytes) -> None:
        assert self.process.stdin is not None
        remaining = memoryview(content)
        while remaining:
            remaining = remaining[self.process.stdin.write(remaining) or 0 :]

    def _receive(self, size: int) -> bytearray:
        assert self.process.stdout is not None
        content = bytearray(size)
        remaining = memoryview(content)
        while remaining:
            count = self.process.stdout.readinto(remaining)  # type: ignore[attr-defined]  # a raw pipe
            if not count:
                raise EOFError
            remaining = remaining[count:]
        return content

    def _kill_late(self) -> None:
        self.late = True
        self.process.kill()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # a job that was never read may be in it
                    stream.close()


class _Pool:
    """At most :data:`CHILDREN` children, started when all others are busy."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: LifoQueue[_Child | None] = LifoQueue()
        for _ in range(CHILDREN):
            self._idle.put(None)  # one that is not started yet
        self._all: set[_Child] = set()

    def run(
        self, path: object, job: Mapping[str, Any], payload: bytes, seconds: float, largest: int
    ) -> tuple[Any, bytearray]:
        child, usable = self._idle.get(), None
        try:
            if child is None or child.process.poll() is not None:
                child = self._replace(child)
            try:
                answer = child.run(job, payload, seconds, largest)
            except (OSError, EOFError, ValueError):
                why = f"no answer after {seconds:.0f} s" if child.late else "a crash of the decoder"
                raise DataError(
                    f"{path}: expected compressed pixels that decode, got {why}. The file is damaged: get it again."
                ) from None
            usable = child
            return answer
        finally:
            if usable is None:  # also after Ctrl-C in an answer: what follows in the pipe belongs to this job
                self._drop(child)
            self._idle.put(usable)

    def _replace(self, dead: _Child | None) -> _Child:
        self._drop(dead)
        child = _Child()
        with self._lock:
            self._all.add(child)
        return child

    def _drop(self, child: _Child | None) -> None:
        if child is not None:
            with self._lock:
                self._all.discard(child)
            child.close()

    def close(self) -> None:
        """End all children, busy ones too."""
        with self._lock:
            children, self._all = self._all, set()
        for child in children:
            child.close()


_POOL = _Pool()


def shut_down() -> None:
    """End all children; the next job starts new ones."""
    _POOL.close()


def _forget() -> None:
    """Start with no children after a fork: the pipes belong to the parent."""
    global _POOL
    _POOL = _Pool()


atexit.register(shut_down)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
