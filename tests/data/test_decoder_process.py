"""Decoders in child processes: whatever happens to a child, the file is named and the next one is read."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmllm_plugins.data.readers import decoder_process
from medmllm_plugins.data.readers.decoder_process import decode, shut_down
from medmllm_plugins.errors import DataError

FUNCTIONS = """
import os, sys, time
import numpy as np

def numbers(payload, arguments):
    print("a decoder's chatter"); print("and its warnings", file=sys.stderr); os.write(1, b"x"); os.write(2, b"y")
    return np.frombuffer(payload, np.uint8) + arguments["add"]

def process(payload, arguments):
    return np.array([os.getpid(), "torch" in sys.modules], np.int64)

def crash(payload, arguments):
    os.abort()

def hang(payload, arguments):
    time.sleep(600)

def fail(payload, arguments):
    raise ValueError("ZzMarkerzZ")

def greedy(payload, arguments):
    return np.ones(arguments["bytes"], np.uint8)
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "own_decoders.py").write_text(FUNCTIONS)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    shut_down()
    yield "own_decoders"
    shut_down()


def numbers(functions: str, name: str = "a.dcm", payload: bytes = b"\1\2") -> np.ndarray:
    shape = (len(payload),)
    return decode(name, f"{functions}:numbers", payload, {"add": 1}, dtype=np.uint8, shape=shape)


def test_arrays_come_back_and_nothing_is_printed(functions: str, capfd: pytest.CaptureFixture[str]) -> None:
    large = bytes(range(200)) * 10_000
    for payload in (b"\1\2", b"", large):
        assert numbers(functions, payload=payload).tobytes() == bytes(value + 1 for value in payload)
    assert capfd.readouterr() == ("", "")


def test_a_child_serves_many_jobs_and_knows_no_torch(functions: str) -> None:
    answers = [decode("a", f"{functions}:process", b"", {}, dtype=np.int64, shape=(2,)).tolist() for _ in range(3)]
    assert len({process for process, _ in answers}) == 1 and answers[0][1] == 0
    assert answers[0][0] != os.getpid()


@pytest.mark.parametrize(
    ("name", "arguments", "seconds", "why"),
    [
        ("crash", {}, None, "a crash of the decoder"),
        ("hang", {}, 1.0, "no answer after 1 s"),
        ("fail", {}, None, "damaged data"),
        ("missing", {}, None, "damaged data"),
        ("numbers", {"add": 1}, None, r"others from the decoder"),
    ],
)
def test_a_failure_names_the_file_and_the_next_is_read(
    functions: str, name: str, arguments: dict[str, Any], seconds: float | None, why: str
) -> None:
    numbers(functions)
    with pytest.raises(DataError, match=rf"^scan\.dcm: expected .*{why}") as caught:
        decode("scan.dcm", f"{functions}:{name}", b"\1", arguments, dtype=np.uint8, shape=(1, 1, 1), seconds=seconds)
    assert "ZzMarkerzZ" not in str(caught.value)
    assert numbers(functions).tolist() == [2, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of memory for a process: needs Linux")
def test_memory_is_limited(functions: str) -> None:
    with pytest.raises(DataError, match="more memory"):
        decode("bomb.dcm", f"{functions}:greedy", b"", {"bytes": 2**30}, dtype=np.uint8, shape=(4,))
    answer = decode("big.dcm", f"{functions}:greedy", b"", {"bytes": 2**25}, dtype=np.uint8, shape=(2**25,))
    assert answer.all()


def test_threads_share_the_children(functions: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: numbers(functions, payload=bytes([n % 200])).tolist(), range(60)))
    assert answers == [[n % 200 + 1] for n in range(60)]
    assert len(decoder_process._POOL._all) <= decoder_process.CHILDREN


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forking: needs a platform that has it")
def test_after_a_fork_both_sides_have_their_own(functions: str) -> None:
    numbers(functions)
    # In a process of its own: this one may have threads, of which forking warns.
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np\n"
        "from medmllm_plugins.data.readers.decoder_process import decode\n"
        "ask = lambda: decode('a', 'own_decoders:process', b'', {}, dtype=np.int64, shape=(2,))[0]\n"
        "before = ask(); child = os.fork()\n"
        "if not child: os._exit(int(ask() == before))\n"
        "status = os.waitpid(child, 0)[1]\n"
        "print(status, ask() == before)\n"
    )
    command = [sys.executable, "-c", code, str(Path(sys.path[0]))]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert answer.stdout.split() == ["0", "True"], answer.stderr


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looking up a process by its number: needs Linux")
@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 9)"])
def test_children_end_with_their_parent(functions: str, end: str) -> None:
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np\n"
        "from medmllm_plugins.data.readers.decoder_process import decode\n"
        "print(decode('a', 'own_decoders:process', b'', {}, dtype=np.int64, shape=(2,))[0], flush=True)\n"
    )
    command = [sys.executable, "-c", code + end, str(Path(sys.path[0]))]
    child = int(subprocess.run(command, capture_output=True, text=True, timeout=60).stdout)
    until = time.monotonic() + 10
    while _runs(child):
        assert time.monotonic() < until
        time.sleep(0.05)
