"""Our tasks with the host's own OpenAI-compatible backend, answered by a small server on this machine."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

LABELS = ("round mass", "spiculated mass", "textured patch", "no finding")
FORMS = ("{}", "The answer is {}.", "**{}**")
LETTERS = "ABCD"


@dataclass
class Server:
    """What was asked, and how each question was answered."""

    address: str = ""
    questions: list[str] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    def answer(self, request: dict[str, Any]) -> str:
        (message,) = (candidate for candidate in request["messages"] if candidate["role"] == "user")
        text = " ".join(part["text"] for part in message["content"] if part["type"] == "text")
        urls = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
        (url,) = urls
        head, _, data = url.partition(",")
        assert re.fullmatch(r"data:image/(png|jpeg);base64", head)
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        image.load()
        number = len(self.answers)
        place = int(sum(image.convert("L").tobytes())) % len(LABELS)
        said = LETTERS[place] if re.search(r"\bA[.)]", text) else LABELS[place]
        self.questions.append(text)
        self.images.append(image)
        self.answers.append(LABELS[place])
        return FORMS[number % len(FORMS)].format(said)


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that answers ``/v1/chat/completions`` with a class that depends on the image alone."""
    state, lock = Server(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                text = state.answer(request)
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            completion = {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": request["model"],
                "choices": [choice],
            }
            body = json.dumps(completion).encode()
            self.send_response(200 if self.path == "/v1/chat/completions" else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        state.address = f"http://127.0.0.1:{http.server_address[1]}/v1"
        yield state
        http.shutdown()


@pytest.mark.parametrize("task", ["med_cls_demo", "med_cls_demo_letter"])
def test_text_answers_of_another_server_are_scored(
    evaluate: Callable[..., Any], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none needed")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    evaluated = evaluate(
        tmp_path / "out",
        model="openai",
        model_args=f"model_version=stub,base_url={server.address},num_concurrent=1,max_retries=1",
        tasks=[task],
        limit=12,
    )
    assert len(server.questions) == 12 and all("round mass" in question for question in server.questions)
    assert len(server.images) == 12
    values = evaluated.values(task)
    assert values["parsed,none"] == 1.0 and "auroc,none" not in values
    written = [json.loads(line) for line in (evaluated.folder / f"{task}.outcomes.jsonl").read_text().splitlines()]
    assert len(written) == 12 and all(row["scores"] is None for row in written)
    # Answers come back in another order than they were asked in, so they are compared as a whole.
    assert sorted(row["predicted"] for row in written) == sorted(server.answers)
    right = sum(row["predicted"] == row["label"] for row in written)
    assert values["accuracy,none"] == pytest.approx(right / 12)
