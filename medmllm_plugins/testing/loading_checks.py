"""Checks of how a model loads."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from medmllm_plugins.errors import MedMLLMError, one_line
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.checkpoint import find_folder
from medmllm_plugins.testing.check_outcomes import CheckFailed, NotApplicable, require, require_close
from medmllm_plugins.testing.check_subjects import ModelSubject


def check_loads(subject: ModelSubject) -> None:
    """Assert that the checkpoint loads, in evaluation mode and with frozen parameters.

    Dropout that is left on makes answers random. All other checks of the model need this one to pass.
    """
    loaded = subject.first_load
    if isinstance(loaded, Exception):
        raise CheckFailed(f"{subject.name}: expected the model to load, got {one_line(loaded)}") from loaded
    training = [name or "the model" for name, module in loaded.model.named_modules() if module.training]
    require(
        not training, f"{subject.name}: expected evaluation mode, got {training[:3]} in training mode. Call eval()."
    )
    trainable = [name for name, value in loaded.model.named_parameters() if value.requires_grad]
    require(
        not trainable,
        f"{subject.name}: expected frozen parameters, got {trainable[:3]} with requires_grad. Call "
        "model.requires_grad_(False).",
    )


def check_second_load_gives_the_same(subject: ModelSubject) -> None:
    """Assert that loading twice gives the same weights, fingerprint and label scores.

    A parameter that is missing in the checkpoint is drawn at random in each load, and the fingerprint names the stored
    answers of an interrupted run.
    """
    first = subject.loaded
    torch.manual_seed(int(torch.initial_seed() % 1000) + 1)  # so that what is drawn at random differs
    second = subject.load()
    for name, value in first.model.state_dict().items():
        require(
            torch.equal(value, second.model.state_dict()[name]),
            f"{subject.name}: expected equal weights in two loads, got others in {name}. Is it in the checkpoint?",
        )
    require(
        first.fingerprint == second.fingerprint,
        f"{subject.name}: expected one fingerprint in two loads, got {first.fingerprint[:12]} and "
        f"{second.fingerprint[:12]}. It must be that of the checkpoint's files.",
    )
    advice = "Something that is not among the weights is drawn at random or kept from the first load."
    require_close(scores(subject, second), scores(subject, first), f"{subject.name}: label scores", advice)


def check_save_and_load(subject: ModelSubject) -> None:
    """Assert that a model that is saved with ``save_pretrained`` and loaded again gives the same label scores.

    Fine-tuned and repaired checkpoints are saved so; a tensor that is no parameter or persistent buffer gets lost.
    """
    loaded = subject.loaded
    if subject.spec.loader is not None:
        raise NotApplicable(f"{subject.spec.loader} reads a checkpoint format of its own, which is not written")
    source = find_folder(subject.pretrained)
    target = subject.folder / "saved"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json"))
    loaded.model.save_pretrained(target)
    try:
        again = subject.load(str(target))
    except Exception as error:
        raise CheckFailed(
            f"{subject.name}: expected a saved model to load, got {one_line(error)}. Name its weights alike when it "
            "is saved and loaded."
        ) from error
    finally:
        shutil.rmtree(target, ignore_errors=True)
    advice = "Make each tensor a parameter or a persistent buffer, so that save_pretrained writes it."
    require_close(scores(subject, again), scores(subject, loaded), f"{subject.name}: label scores", advice)


def check_works_offline(subject: ModelSubject) -> None:
    """Assert that a checkpoint in a folder loads and answers without the network.

    Clusters often have none, and a file that is fetched from a hub may be another one tomorrow.
    """
    with no_network() as attempts:
        try:
            scores(subject, subject.load())
        except NotApplicable:
            raise
        except Exception as error:
            if not attempts:
                subject.loaded  # noqa: B018 - a model that never loads is reported by check_loads
                raise
            raise CheckFailed(_online(subject, attempts)) from error
    require(not attempts, _online(subject, attempts))


def _online(subject: ModelSubject, attempts: list[str]) -> str:
    return (
        f"{subject.name}: expected no use of the network, got a connection to {attempts[0] if attempts else ''}. Read "
        "files of the checkpoint's folder only, with local_files_only=True."
    )


@contextmanager
def no_network() -> Iterator[list[str]]:
    """Refuse all network connections of this process while the context is open; yield the list of those attempted."""
    attempts: list[str] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        address = next((item for item in arguments if not isinstance(item, socket.socket)), "")
        attempts.append(str(address))
        raise OSError(f"no network in this check: {address}")

    with (
        mock.patch.object(socket.socket, "connect", refuse),
        mock.patch.object(socket.socket, "connect_ex", refuse),
        mock.patch.object(socket, "getaddrinfo", refuse),
        mock.patch.object(socket, "create_connection", refuse),
    ):
        yield attempts


def check_model_errors_are_ours(subject: ModelSubject) -> None:
    """Assert that a wrong input raises a :class:`medmllm_plugins.errors.MedMLLMError`.

    Those are shown as one line that says what to do; any other exception ends a run with a traceback.
    """
    loaded, examples = subject.loaded, subject.examples
    (question, *_), (visual, *_) = examples.questions, examples.visuals
    wrong: dict[str, Callable[[], object]] = {
        "text in place of an image": lambda: loaded.prepare([question], ["image.png"]),  # type: ignore[list-item]
        "two questions about one image": lambda: loaded.prepare([question] * 2, [visual]),
        "an empty label": lambda: loaded.generate([question], [visual], max_new_tokens=0, labels=["", "no"]),
        "two equal labels": lambda: loaded.generate([question], [visual], max_new_tokens=0, labels=["no", "no"]),
        "an answer longer than the model takes": lambda: loaded.generate([question], [visual], max_new_tokens=10**9),
        "a folder without a checkpoint": lambda: subject.load(str(_empty(subject.folder))),
    }
    for what, call in wrong.items():
        try:
            call()
        except MedMLLMError:
            continue
        except Exception as error:
            raise CheckFailed(
                f"{subject.name}, {what}: expected a MedMLLMError, got {one_line(error)}. Raise a ModelError that says "
                "what to do."
            ) from error
        raise CheckFailed(f"{subject.name}, {what}: expected a MedMLLMError, got none. Check the input.")


def _empty(parent: Path) -> Path:
    folder = parent / "empty"
    folder.mkdir(exist_ok=True)
    return folder


def scores(subject: ModelSubject, loaded: LoadedModel) -> list[tuple[float, ...]]:
    """Return the label scores of all examples, each document alone."""
    result = []
    for row in range(len(subject.examples)):
        questions, visuals = subject.examples.batch([row])
        (item,) = loaded.generate(questions, visuals, max_new_tokens=0, labels=subject.examples.labels)
        result.append(label_scores(item))
    return result


def label_scores(generation: Any) -> tuple[float, ...]:
    """Return the label scores of an answer.

    Raises:
        CheckFailed: it has none.
    """
    if generation.scores is None:
        raise CheckFailed("Expected label scores, got None. `generate` returns them where `labels` are given.")
    return tuple(generation.scores)
