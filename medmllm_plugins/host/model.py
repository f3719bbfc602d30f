"""Our models as the host sees them: chat requests in, answers out, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger
from PIL import Image

from medmllm_plugins import __version__
from medmllm_plugins.data.core.image_controls import GREY
from medmllm_plugins.errors import ModelError, OptionError, one_line
from medmllm_plugins.features.control_features import pixels
from medmllm_plugins.features.recorder import FeatureRecorder, RecordedDocument
from medmllm_plugins.features.store import stored_ids
from medmllm_plugins.host import envelope, evaluation_run
from medmllm_plugins.host.model_arguments import local_device, merged, positive, run_folder
from medmllm_plugins.host.task_requests import (
    Key,
    attributions_of,
    by_task,
    check_settings,
    content_of,
    features_of,
    is_ours,
    key_of,
    predicts_only,
    stored_name,
)
from medmllm_plugins.models.base import FewShotPrompt, LoadedModel, Question, VisualInput
from medmllm_plugins.models.model_loading import load_model
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.plugins.specs import ModelSpec
from medmllm_plugins.prompts.attribution_options import AttributionOptions
from medmllm_plugins.runtime.batches import AUTO, LARGEST, Batches, BatchSize
from medmllm_plugins.runtime.journal import Answered, Journal
from medmllm_plugins.runtime.progress_bar import Bar

if TYPE_CHECKING:
    from medmllm_plugins.attribution.attribution_store import AttributionStore

DEFAULT_NEW_TOKENS = 64
EXPLAINED_ROWS = 8
"""Rows that attributions take together where the batch size is found by trying: gradients need room too."""
BLANK = Image.new("RGB", (336, 336), GREY)
"""The image that holds nothing, for the labels' scores without content; of one size, so that every process agrees."""


@dataclass(frozen=True, slots=True)
class _Question:
    """One request, as the model needs it."""

    text: Question
    shown: VisualInput
    max_new_tokens: int
    until: tuple[str, ...]
    labels: tuple[str, ...] | None
    wrapped: bool  # whether the task reads envelopes
    row: Mapping[str, Any]
    pixels: npt.NDArray[np.float16] | None  # for the floor of features, where these are kept


class MedicalMLLM(lmms):
    """A medical MLLM loaded by this package, behind the host's chat interface.

    Arguments are checked at once; the weights are loaded when the first answer is asked for, so that faults in the
    data, which the host reads after it has made the model, are found before minutes are spent on loading.

    Args:
        pretrained: a size name of the model, a hub id, or a folder.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
        dtype: ``"auto"`` (bfloat16 on a GPU that has it, else float32) or a floating-point type.
        attn_implementation: attention kernel of transformers; its default when ``None``.
        device_map: ``"auto"`` and others of accelerate's: spread a large model over all devices.
        load_in: ``"8bit"`` or ``"4bit"``, with bitsandbytes.
        peft: a LoRA adapter's folder or hub id.
        trust_remote_code: the very text of ``pretrained``, to let a checkpoint run the code it brings.
        system: a system prompt in place of the model's own.
        batch_size: documents a batch, or ``"auto"``: the largest that fits. A batch that does not fit is halved.
        max_batch_size: the largest batch that ``"auto"`` tries; the host's ``--max_batch_size``.
        max_new_tokens: longest answer; what the task asks for when ``None``.
        run_dir: folder for the manifest and the detailed results.
        unknown: anything else is an error that lists the arguments there are.

    Raises:
        OptionError: an argument has a wrong name or value.
    """

    is_simple = False
    spec: ClassVar[ModelSpec]

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        attn_implementation: str | None = None,
        device_map: str | None = None,
        load_in: str | None = None,
        peft: str | None = None,
        trust_remote_code: str | None = None,
        system: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | str = LARGEST,
        max_new_tokens: int | None = None,
        run_dir: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            own = ("batch_size", "max_batch_size", "max_new_tokens", "run_dir")
            known = ", ".join(sorted({*LoadOptions.__slots__, *own}))
            raise OptionError(f"{self.spec.name}: unknown model arguments {sorted(unknown)}; expected some of {known}.")
        if pretrained is None:
            sizes = ", ".join(self.spec.sizes) or "none"
            raise OptionError(
                f"{self.spec.name}: expected `pretrained=` to be a size ({sizes}), a hub id or a folder, found nothing."
            )
        self.batch_size = BatchSize(batch_size).size if batch_size != AUTO else AUTO
        self.max_batch_size = positive("max_batch_size", max_batch_size)
        self.max_new_tokens = None if max_new_tokens is None else positive("max_new_tokens", max_new_tokens)
        self.run_dir = run_folder(run_dir)
        self.options = LoadOptions(
            pretrained=str(pretrained),
            device=local_device(device),
            dtype=dtype,
            attn_implementation=attn_implementation,
            device_map=device_map,
            load_in=load_in,
            peft=None if peft is None else str(peft),
            trust_remote_code=None if trust_remote_code is None else str(trust_remote_code),
            system=system,
        )
        self.options.check()
        self._loaded: LoadedModel | None = None
        self._blank: dict[tuple[Question, tuple[str, ...]], tuple[float, ...] | None] = {}

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        """Make the model of ``--model_args`` and of the flags that the host adds to them.

        Raises:
            OptionError: both name an argument, with different values.
        """
        return cls(**merged(cls.spec.name, arg_string, additional_config or {}))

    chat_template = "the model's own, which this package's models always apply"
    """What the host writes down where ``--apply_chat_template`` is given."""
    tokenizer_name = ""

    def apply_chat_template(self, turns: Sequence[Mapping[str, Any]], **_: Any) -> str:
        """Return the plain text of chat turns, for the host's records: what reaches the model are messages."""
        return "\n".join(str(turn.get("content", "")) for turn in turns)

    @property
    def device(self) -> str:
        """The device the weights are on, or will be."""
        return str(self.options.torch_device)

    def load(self) -> LoadedModel:
        """The model itself, loaded at the first call."""
        if self._loaded is None:
            progress = evaluation_run.current()
            with progress.stage("load", self.device):
                self._loaded = load_model(self.spec, self.options)
            for warning in self._loaded.weight_warnings:
                logger.warning(f"{self.spec.name}: {warning}; answers may mean nothing.")
        return self._loaded

    def _facts(self, loaded: LoadedModel) -> dict[str, Any]:
        return {
            "name": self.spec.name,
            "pretrained": self.options.pretrained,
            "fingerprint": loaded.fingerprint,
            "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
            "device": str(loaded.device),
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "attn_implementation": loaded.model.config._attn_implementation,
            "device_map": self.options.device_map,
            "load_in": self.options.load_in,
            "peft": self.options.peft,
            "system": self.options.system,
            "doubts": list(loaded.weight_warnings),
            "max_length": loaded.max_length,
            "batch_size": self.batch_size,
            "max_new_tokens": self.max_new_tokens,
        }

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer the requests of any mix of tasks, greedily.

        Requests of our own tasks are answered with an envelope (text and label scores), those of any other task with
        plain text.

        Raises:
            ModelError: a request has not exactly one image, asks for sampling, or is too long for the model.
        """
        with evaluation_run.current().guarded():
            return self._generate(requests)

    def _generate(self, requests: list[Instance]) -> list[GenerationResult]:
        progress = evaluation_run.current()
        check_settings(requests, self.spec.name)  # before the weights are loaded
        loaded = self.load()
        progress.run_dir = self.run_dir
        self._foresee(loaded, requests)
        facts = self._facts(loaded)
        deciding = {key: value for key, value in facts.items() if key not in ("batch_size", "device")}
        deciding |= {"device": loaded.device.type, "version": __version__}
        progress.model(facts)
        journal = progress.open(self.spec.name, deciding)
        # A rank is padded with clones of its last request: answered once, given to all.
        unique = {key_of(request): request for request in requests}
        found: dict[str, Answered] = {}
        names = {key: stored_name(request) for key, request in unique.items() if is_ours(request)}
        stored = {
            task: stored_ids(progress.features_folder(task))
            for task in {str(request.args[4]) for request in unique.values() if features_of(request) is not None}
        }
        for key, name in names.items():
            # An answer whose features did not reach the disk is asked for again.
            kept = stored.get(key[0])
            if name in journal.known and (kept is None or self._row(unique[key])["id"] in kept):
                found[name] = journal.known[name]
        if found:
            progress.manifest["answers_of_an_earlier_start"] = len(found)
            logger.info(f"{self.spec.name}: {len(found)} of {len(unique)} answers are there from an earlier start.")
        answers = {key: found[name] for key, name in names.items() if name in found}
        with Bar(self.spec.name, len(unique), len(answers), shown=self.rank == 0) as bar:
            for task, group in by_task(unique[key] for key in unique if key not in answers).items():
                with progress.stage(f"answer {task}", self.device), self._capturing(loaded, task, group) as capture:
                    prompted = False
                    keep = _Durable(journal, capture)
                    for batch, questions, results in self._batches(loaded, group, capture):
                        if not prompted:
                            progress.task(task, {"prompt": loaded.render(questions[0].text)})
                            prompted = True
                        answers |= {key_of(request): result for request, result in zip(batch, results, strict=True)}
                        for one, question in zip(batch, questions, strict=True):
                            if (stored_as := names.get(key_of(one))) is not None:
                                identifier = stored_as if capture is None else str(question.row["id"])
                                keep.add(identifier, stored_as, answers[key_of(one)])
                        keep.flush()
                        bar.update(batch, results)
                    keep.close()
        for task, group in by_task(unique.values()).items():
            if (asked := attributions_of(group[0])) is not None and not predicts_only(group[0]):
                with progress.stage(f"explain {task}", self.device):
                    try:
                        self._explain(loaded, task, asked, group, answers)
                    # The answers are there and cost hours; they are scored and written whatever explaining meets.
                    except Exception as error:
                        logger.warning(f"{task}: no attributions: {one_line(error)}")
                        self._shelf(loaded, asked, group).fail(one_line(error))
        progress.answered()
        return [
            GenerationResult(text=one.text, token_counts=TokenCounts(output_tokens=one.tokens))
            for one in (answers[key_of(request)] for request in requests)
        ]

    def _foresee(self, loaded: LoadedModel, requests: Sequence[Instance]) -> None:
        """See that tasks can be explained as they ask before any is answered, which may take hours.

        Raises:
            OptionError: a method or a layer is none that the model has.
        """
        for group in by_task(requests).values():
            if (asked := attributions_of(group[0])) is not None:
                from medmllm_plugins.attribution.explainer import settle

                first = self._question(group[0])
                settle(loaded, asked, first.text, first.shown)

    @contextmanager
    def _capturing(
        self, loaded: LoadedModel, task: str, requests: Sequence[Instance]
    ) -> Iterator[FeatureRecorder | None]:
        """Keep the features of a task, where it asks for them."""
        features = features_of(requests[0])
        if features is None:
            yield None
            return
        told, progress = requests[0].metadata["medmllm"], evaluation_run.current()
        subject = RecordedDocument(
            task=task,
            dataset=str(told["dataset"]),
            labels=tuple(told["labels"]),
            dataset_fingerprint=str(told["data"]),
            model=self.spec.name,
            model_fingerprint=loaded.fingerprint,
        )
        first = self._question(requests[0])
        example = loaded.prepare([first.text], [first.shown])
        capture = FeatureRecorder(loaded, features, subject, progress.features_folder(task), self.rank, example)
        try:
            yield capture
        finally:
            capture.close()

    def _explain(
        self,
        loaded: LoadedModel,
        task: str,
        asked: AttributionOptions,
        requests: Sequence[Instance],
        answers: Mapping[Key, Answered],
    ) -> None:
        """Explain some answers of a task, now that it is known which are hits; each process some of its own."""
        from medmllm_plugins.attribution.document_sample import AnsweredDocument as Known
        from medmllm_plugins.attribution.document_sample import stratified
        from medmllm_plugins.attribution.explainer import explain

        owner, progress = requests[0].args[1].__self__, evaluation_run.current()
        by_id = {str(self._row(request)["id"]): request for request in requests}
        replies = {name: envelope.unpack(answers[key_of(request)].text) for name, request in by_id.items()}
        known = []
        for name, request in by_id.items():
            row = self._row(request)
            said = owner.rows.question(row).read(replies[name].text).label
            known.append(Known(name, str(row["label"]), said == row["label"]))
        share = asked.n // self.world_size + (self.rank < asked.n % self.world_size)
        items = []
        for name in stratified(known, share) if share else []:
            items.append(owner.item(self._row(by_id[name]), self._question(by_id[name]).shown, replies[name]))
        if not items:
            return
        batch = self.batch_size if isinstance(self.batch_size, int) else EXPLAINED_ROWS
        shelf = self._shelf(loaded, asked, requests)
        progress.task(task, {"explained": explain(loaded, asked, items, shelf, batch, self._log)})

    def _log(self, line: str) -> None:
        if self.rank == 0:
            logger.info(line)

    def _shelf(self, loaded: LoadedModel, asked: AttributionOptions, requests: Sequence[Instance]) -> AttributionStore:
        """Where this process puts what it explains of a task."""
        from medmllm_plugins.attribution.attribution_store import AttributionStore

        told = {**asked.to_dict(), "task": dict(requests[0].metadata["medmllm"]), "model": loaded.fingerprint}
        return AttributionStore(
            evaluation_run.current().attributions_folder(str(requests[0].args[4])), told, str(self.rank)
        )

    def _row(self, request: Instance) -> Mapping[str, Any]:
        """The row of a task that a request asks about."""
        _, _, _, doc_id, task, split = request.args
        row: Mapping[str, Any] = self.task_dict[task][split][doc_id]
        return row

    def _batches(
        self, loaded: LoadedModel, requests: Sequence[Instance], capture: FeatureRecorder | None = None
    ) -> Iterator[tuple[list[Instance], list[_Question], list[Answered]]]:
        """Answers in batches with one generation setting and one set of labels; see :class:`Batches`."""
        settings: dict[tuple[str, str, tuple[str, ...] | None], list[Instance]] = {}
        for request in requests:
            alike = (repr(sorted(request.args[2].items())), self._needs(request), self._labels(request))
            settings.setdefault(alike, []).append(request)
        size = BatchSize(self.batch_size, self.max_batch_size)
        for group in settings.values():

            def prepare(questions: list[_Question]) -> dict[str, Any]:
                return loaded.prepare([one.text for one in questions], [one.shown for one in questions])

            def answer(questions: list[_Question], inputs: dict[str, Any]) -> list[Answered]:
                return self._answer(loaded, questions, inputs, capture)

            ahead = loaded.device.type != "cpu"
            yield from Batches(size, self._question, _weight, prepare, answer, ahead=ahead).run(group)

    def _labels(self, request: Instance) -> tuple[str, ...] | None:
        """The answers to score: tasks of this package name them in each row."""
        if self._needs(request) == "features" or not is_ours(request):
            return None
        return tuple(self._row(request)["answers"])

    def _needs(self, request: Instance) -> str:
        """What of a document is needed.

        ``"answer"``; where features are kept, of the train fold these alone, and of
        the validation fold the label scores beside them, both of which a prefill gives.
        """
        if features_of(request) is None:
            return "answer"
        return {"train": "features", "validation": "scores"}.get(str(self._row(request)["fold"]), "answer")

    def _question(self, request: Instance) -> _Question:
        _, doc_to_messages, settings, doc_id, task, split = request.args
        doc, where = self.task_dict[task][split][doc_id], f"{task}, document {doc_id}"
        shows = self.load().shows
        # Of our own tasks a model of volumes gets the volume itself, not the pictures that others are shown.
        volume = (
            getattr(getattr(doc_to_messages, "__self__", None), "doc_to_volume", None) if shows == "volume" else None
        )
        shown: VisualInput
        text: Question
        if volume is not None:
            text, shown = doc_to_messages.__self__.doc_to_text(doc), volume(doc)
        else:
            text, pictures = content_of(doc_to_messages(doc), where, several=shows == "images")
            if shows == "volume":
                raise ModelError(
                    f"{where}: {self.spec.name} reads volumes; expected a task of this package on a 3D set."
                )
            if shows == "image" and len(pictures) != 1:
                raise ModelError(
                    f"{where}: expected one image a question, which is what {self.spec.name} takes, found "
                    f"{len(pictures)} images; show a volume as one picture with montage=9."
                )
            shown = pictures[0] if shows == "image" else pictures
        until = settings.get("until") or ()
        prefill_only = self._needs(request) != "answer"
        return _Question(
            text=text,
            shown=shown,
            max_new_tokens=0
            if prefill_only
            else self.max_new_tokens
            or self.load().max_new_tokens
            or int(settings.get("max_new_tokens") or DEFAULT_NEW_TOKENS),
            until=(until,) if isinstance(until, str) else tuple(until),
            labels=self._labels(request),
            wrapped=is_ours(request),
            row=doc,
            pixels=None if features_of(request) is None else pixels(shown),
        )

    def _blank_scores(self, loaded: LoadedModel, question: _Question) -> tuple[float, ...] | None:
        """Scores of the labels for the same question about an image that holds nothing; worked out once a question."""
        if question.labels is None or loaded.shows == "volume" or isinstance(question.text, FewShotPrompt):
            return None
        key = (question.text, question.labels)
        if key not in self._blank:
            shown = [BLANK] if loaded.shows == "images" else BLANK
            (found,) = loaded.generate([question.text], [shown], max_new_tokens=0, labels=question.labels)
            self._blank[key] = found.scores
        return self._blank[key]

    def _answer(
        self,
        loaded: LoadedModel,
        questions: Sequence[_Question],
        inputs: dict[str, Any],
        capture: FeatureRecorder | None = None,
    ) -> list[Answered]:
        first = questions[0]
        generations = loaded.generate(
            [question.text for question in questions],
            [question.shown for question in questions],
            max_new_tokens=first.max_new_tokens,
            labels=first.labels,
            inputs=inputs,
            # A model of a plugin's own may answer in a way of its own, and need not know of this unless it is probed.
            **({} if capture is None else {"watch": capture.watch}),
        )
        results, records = [], []
        for question, generation in zip(questions, generations, strict=True):
            text = generation.text
            for stop in question.until:
                text = text.split(stop)[0] if stop else text
            text = text.strip()
            if question.wrapped:
                reply = envelope.Reply(
                    text, generation.scores, generation.label_tokens, self._blank_scores(loaded, question)
                )
                if capture is not None:
                    records.append(_record(question.row, reply))
                text = envelope.pack(reply)
            results.append(Answered(text, generation.tokens))
        if capture is not None:
            labels = loaded.label_ids(first.text, first.row["answers"])
            shown = [question.pixels for question in questions if question.pixels is not None]
            capture.keep(records, inputs, shown, [ids[loaded.prefix_length :] for ids in labels])
        return results

    def clean(self) -> None:
        """Free the weights; the host calls this between the answers and the scoring."""
        evaluation_run.current().run_dir = self.run_dir  # where all answers were cached, nothing else tells it
        self._loaded = None
        super().clean()

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not offered: the host sends chat models no such requests; label scores come with the answers."""
        raise ModelError(
            f"{self.spec.name} answers generation tasks only; its label scores come with the answers of med_cls tasks."
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered: classification is one question and one answer."""
        raise ModelError(f"{self.spec.name} answers single-round generation tasks only.")


def _record(row: Mapping[str, Any], reply: envelope.Reply) -> dict[str, Any]:
    """What the index of a feature store tells of a document."""
    told = {name: row[name] for name in ("id", "document", "group", "fold", "label")}
    lists = {"scores": reply.scores, "blank": reply.blank, "label_tokens": reply.tokens}
    return {**told, "answer": reply.text, **{name: None if one is None else list(one) for name, one in lists.items()}}


class _Durable:
    """Answers on their way to the journal: where features are kept, these must be on disk first."""

    def __init__(self, journal: Journal, capture: FeatureRecorder | None) -> None:
        self._journal, self._capture = journal, capture
        self._waiting: dict[str, tuple[str, Answered]] = {}

    def add(self, identifier: str, name: str, answered: Answered) -> None:
        """Take an answer."""
        self._waiting[identifier] = (name, answered)

    def flush(self) -> None:
        """Write what can be written."""
        ready = list(self._waiting) if self._capture is None else self._capture.durable()
        done = dict(self._waiting.pop(identifier) for identifier in ready if identifier in self._waiting)
        if done:
            self._journal.add(done)

    def close(self) -> None:
        """Wait for the features that are still on their way, and write the rest."""
        if self._capture is not None:
            self._capture.close()
        self.flush()


def _weight(question: _Question) -> float:
    """How much there is to compute: pixels, or the voxels of a volume."""
    shown = question.shown
    if isinstance(shown, Image.Image):
        return float(shown.width * shown.height)
    if isinstance(shown, list | tuple):
        return float(sum(picture.width * picture.height for picture in shown))
    return float(shown.voxels.size)  # type: ignore[union-attr]
