"""Run native decoders: the child process of ``decoder_process``, started as a script.

A job names a function ``package.module:function(payload, arguments)`` that returns a NumPy array. Errors are answered
in one word, since decoders quote headers in their messages. Jobs and answers are JSON and raw bytes, never pickles: a
decoder that was taken over must not be able to make the parent run anything.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import struct
import sys
from typing import Any, BinaryIO

import numpy as np
import psutil

FRAME = struct.Struct("<IQ")
"""Start of each message: length of its JSON and of its payload, in bytes."""


def main() -> None:
    """Answer jobs from standard input until it is closed."""
    # Native libraries print to the descriptors 1 and 2; answers go through a copy.
    answers = os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    jobs = sys.stdin.buffer
    sys.path[:] = json.loads(sys.argv[1])
    while len(start := jobs.read(FRAME.size)) == FRAME.size:
        text, size = FRAME.unpack(start)
        job = json.loads(jobs.read(text))
        _answer(answers, job, jobs.read(size))


def _answer(answers: BinaryIO, job: dict[str, Any], payload: bytes) -> None:
    try:
        module, _, name = job["function"].partition(":")
        function = getattr(importlib.import_module(module), name)
        limit_memory(job["memory"])
        array = np.ascontiguousarray(function(payload, job["arguments"]))
    except MemoryError:
        content = b""
        head: dict[str, Any] = {"error": "memory"}
    except Exception as error:
        content = b""
        head = {"error": "decoder", "type": type(error).__name__}
    else:
        content = array.tobytes()
        head = {"dtype": array.dtype.str, "shape": list(array.shape)}
    text = json.dumps(head).encode()
    answers.write(FRAME.pack(len(text), len(content)) + text)
    answers.write(content)
    answers.flush()


def limit_memory(budget: int) -> None:
    """Let this process take at most ``budget`` bytes of address space beyond what it has.

    macOS and Windows have no such limit; there, the time limit remains.
    """
    process = psutil.Process()
    if not hasattr(process, "rlimit"):
        return
    limit = process.memory_info().vms + budget
    _, hard = process.rlimit(psutil.RLIMIT_AS)
    process.rlimit(psutil.RLIMIT_AS, (limit if hard == psutil.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    main()
