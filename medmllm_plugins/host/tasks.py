"""Classification tasks as the host sees them: a data set and a protocol are named, this module does the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import datasets
from lmms_eval.api.reasoning import parse_reasoning_tags_config, strip_reasoning_tags
from lmms_eval.api.task import ConfigurableMessagesTask, ConfigurableTask
from loguru import logger
from PIL import Image

from medmllm_plugins.data.core.documents import Document
from medmllm_plugins.data.core.image_controls import blank, partners
from medmllm_plugins.data.loading.dataset import Dataset, load_dataset
from medmllm_plugins.data.loading.few_shot import FewShotExamples
from medmllm_plugins.errors import OptionError
from medmllm_plugins.host import command_line, entry_point, envelope, evaluation_run, flags
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.prompts.task_rows import TaskRows, right_answer
from medmllm_plugins.prompts.task_settings import Purpose, TaskSettings, read_settings
from medmllm_plugins.results import scoring
from medmllm_plugins.results.metric_files import AnySummary

if TYPE_CHECKING:
    from medmllm_plugins.data.readers.volumes import Volume

SPLIT = "test"
BYPASS = "bypass"
"""The metric that the host has in place of all others where answers are collected and not scored."""
DEFAULT_GENERATION = {"max_new_tokens": 64, "do_sample": False, "temperature": 0.0, "until": []}


class ClassificationTask:
    """What a task's YAML names under ``class:``.

    The host makes such a task without telling it whether the model takes chat or simple requests; the bridge knows,
    and this class hands out the right one of the two.
    """

    kinds: ClassVar[Mapping[str, type[Classification]]]

    def __new__(cls, config: dict[str, Any]) -> Any:
        """Return the task for the kind of model being evaluated; ``config`` is the YAML file's content."""
        return cls.kinds[entry_point.requested_task_type()](config=config)

    def __init__(self, config: dict[str, Any]) -> None:  # the host looks for `config` in this signature
        raise AssertionError("never reached: __new__ returns an instance of another class")


class Classification(ConfigurableTask):
    """Classification of one data set; ``metadata.medmllm`` is read by :mod:`medmllm_plugins.prompts.task_settings`."""

    PURPOSE: ClassVar[Purpose] = "classify"
    LOWER_IS_BETTER: ClassVar[frozenset[str]] = scoring.LOWER_IS_BETTER
    """Metrics that the host prints with an arrow down."""

    def __init__(self, config: dict[str, Any]) -> None:
        config = {key: value for key, value in config.items() if key != "class"}
        self._check_command()
        self.settings: TaskSettings = read_settings(config.get("task"), config.get("metadata"), purpose=self.PURPOSE)
        with evaluation_run.current().stage("data"):
            self.data: Dataset = load_dataset(self.settings.dataset, on_error=self.settings.on_error)
        documents = self.data.select(self.settings.folds)
        self.rows = TaskRows(self.settings, documents)
        self._documents = {document.id: document for document in documents}
        self._partners = partners(documents) if self.settings.image == "shuffled" else {}
        self._shots: dict[str, FewShotExamples] = {}
        self._scored: tuple[int, AnySummary] | None = None
        metadata = dict(config["metadata"])
        # All of this reaches the model with each request, and is part of the response cache's key: answers cached
        # for other data, other folds or another way of asking are not taken for these.
        metadata["medmllm"] = {
            **self.settings.to_dict(),
            "data": self.data.fingerprint,
            "labels": list(self.rows.classes),
        }
        generation = {**DEFAULT_GENERATION, **(config.get("generation_kwargs") or {})}
        super().__init__(
            config={
                **config,
                "metadata": metadata,
                "generation_kwargs": generation,
                "test_split": SPLIT,
                "cluster_key": "group",
            }
        )

    @staticmethod
    def _check_command() -> None:
        """Refuse flags before the data are read, also where the host's index did not know this task for ours."""
        command_line.concern_us()
        if (args := command_line.arguments()) is not None:
            ours = args.model in get_manager().models()
            chat = entry_point.requested_task_type() == "chat"
            flags.check_command(args, task=True, model=ours, chat=chat)

    def _prepare_metric_and_aggregation(self) -> None:
        metrics = self.metrics()
        self._metric_fn_list = dict.fromkeys(metrics)
        self._metric_fn_kwargs: dict[str, dict[str, Any]] = {metric: {} for metric in metrics}
        self._aggregation_list = {metric: self._aggregation(metric) for metric in metrics}
        self._higher_is_better = {metric: metric not in self.LOWER_IS_BETTER for metric in metrics}

    def override_metric(self, metric_name: str) -> None:
        """Leave scoring out, which is what the host asks for with ``bypass`` (``--predict_only``).

        Answers stay in the journal: the same command without ``--predict_only`` scores them and asks nothing again.
        """
        super().override_metric(metric_name)
        if metric_name == BYPASS:
            self._aggregation_list = {BYPASS: self._collected}

    @property
    def predicts_only(self) -> bool:
        """Whether answers are collected and not scored."""
        return BYPASS in self._aggregation_list

    def _collected(self, values: list[dict[str, Any]]) -> str:
        evaluation_run.current().predicted(str(self.config.task), len(values))
        logger.info(
            f"{self.config.task}: {len(values)} answers, not scored. The same command without --predict_only scores "
            "them and asks nothing again."
        )
        return "N/A"

    def metrics(self) -> tuple[str, ...]:
        """The metrics that the host prints."""
        return scoring.metrics(self.settings)

    def download(self, dataset_kwargs: Any = None) -> None:
        """Give the host its rows: no download, and no image or path among them, so none reaches a log."""
        self.dataset = datasets.DatasetDict({SPLIT: datasets.Dataset.from_list(list(self.rows))})
        self.dataset_no_image = self.dataset

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the requests; the first moment at which the task knows the command line and is part of a run.

        Raises:
            OptionError: a flag of the host asks for something that this task cannot do.
        """
        progress = evaluation_run.joined_by(self.config.task)
        progress.arguments(getattr(self, "args", None))
        rows = {"documents": len(self.rows.documents), "questions": len(self.dataset[SPLIT]), "shots": self.shots}
        progress.task(self.config.task, scoring.facts(self.settings, self.data, **rows))
        super().build_all_requests(**self._checked(kwargs))

    def _checked(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What the host asks of the requests, checked also where it was called from Python."""
        args, count = getattr(self, "args", None), len(self.dataset[SPLIT])
        flags.check_shots(self.shots)
        flags.check_repeats(self.config.repeats)
        flags.check_fraction(getattr(args, "limit", None), count, asked.get("limit"), str(self.config.task))
        if (offset := asked.get("offset") or 0) >= count:
            raise OptionError(
                f"{self.config.task}: expected --offset below the number of questions, {count}, got {offset}."
            )
        if asked.get("limit") == 0:
            raise OptionError(f"{self.config.task}: expected --limit to leave at least one question, got 0.")
        if asked.get("system_instruction") is not None and isinstance(self, ConfigurableMessagesTask):
            raise OptionError(
                f"{self.config.task}: --system_instruction reaches no chat model. Use the argument system=… of the "
                "models of this package."
            )
        if asked.get("cache_requests"):
            logger.info(
                f"{self.config.task}: --cache_requests is left aside; requests follow the data as they are now."
            )
        return {**asked, "cache_requests": False, "rewrite_requests_cache": False}

    @property
    def shots(self) -> int:
        """Number of few-shot examples before each question: the host's ``--num_fewshot``."""
        return int(self.config.num_fewshot or 0)

    def fewshot_context(self, doc: Mapping[str, Any], num_fewshot: int, *args: Any, **kwargs: Any) -> Any:
        """The whole text of a request to a simple model, solved examples first; their pictures come in that order.

        Of the host's further arguments the system instruction alone is taken: a chat model gets messages, and applies
        its own template to them.
        """
        asked = super().fewshot_context(doc, 0, *args[:1])
        solved = [f"{self.doc_to_text(doc)}\n{answer}\n\n" for _, answer in self._examples(doc)]
        return "".join(solved) + asked if solved else asked

    def doc_to_text(self, doc: Mapping[str, Any], *args: Any) -> str:
        """The question of one row."""
        return self.rows.question(doc).text

    def doc_to_visual(self, doc: Mapping[str, Any]) -> list[Image.Image]:
        """The pictures of one row, RGB: those of the examples first, then its own."""
        shown = [picture for shot, _ in self._examples(doc) for picture in self._pictures(shot)]
        return [*shown, *self._asked_about(doc)]

    def doc_to_volume(self, doc: Mapping[str, Any]) -> Volume:
        """The volume of one row, for models that read volumes; of a 2D set, and of controls, there is none.

        Raises:
            OptionError: the task asks about images, or about a control image.
            DataError: the volume cannot be read any more.
        """
        if self.settings.dataset.dimensions != 3 or self.settings.image != "shown":
            raise OptionError(
                f"{self.config.task}: expected a 3D set with image=shown, since the model reads volumes, found "
                f"{self.settings.dataset.dimensions}D and image={self.settings.image}."
            )
        return self.data.volume(self._documents[doc["document"]])

    def doc_to_target(self, doc: Mapping[str, Any], *args: Any) -> str:
        """The class of one row."""
        return str(doc["label"])

    def _pictures(self, document: Document) -> list[Image.Image]:
        return self.settings.view.pictures(self.data, document)

    def _asked_about(self, doc: Mapping[str, Any]) -> list[Image.Image]:
        """The pictures of the document asked about, or of the control that stands in for it."""
        document = self._documents[doc["document"]]
        if self.settings.image == "shuffled":
            return self._pictures(self._partners[document.id])
        pictures = self._pictures(document)
        return [blank(picture) for picture in pictures] if self.settings.image == "blank" else pictures

    def _examples(self, doc: Mapping[str, Any]) -> list[tuple[Document, str]]:
        """Few-shot examples for one row, each with its right answer."""
        if not self.shots:
            return []
        finding, question = doc["finding"] or None, self.rows.question(doc)
        shots = self._shots.get(doc["finding"])
        if shots is None:
            shots = FewShotExamples(
                self.data.documents, tuple(question.classes), lambda shot: right_answer(shot, finding)
            )
            self._shots[doc["finding"]] = shots
        answers = dict(zip(question.classes, question.labels, strict=True))
        chosen = shots.before(self._documents[doc["document"]], self.shots)
        return [(shot, answers[right_answer(shot, finding)]) for shot in chosen]

    def is_parsed(self, doc_id: int, response: str) -> bool:
        """Whether a class can be read out of the answer to a row."""
        row = self.dataset[SPLIT][doc_id]
        return bool(self.rows.question(row).read(envelope.unpack(response).text).status == "parsed")

    def process_results(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """Parse one answer.

        Returns:
            For each metric the record of the row, from which the aggregation computes it; that of ``accuracy``
            carries ``score`` and ``group`` beside it, by which the host computes its own standard errors, and the
            answer. Where nothing is scored, the answer alone.
        """
        reply = self._reply(str(results[0] or ""))
        if self.predicts_only:
            return {BYPASS: {"id": doc["id"], "answer": reply.text}}
        answer = self.rows.question(doc).read(reply.text)
        outcome = Outcome(
            id=doc["id"],
            group=doc["group"],
            label=doc["label"],
            predicted=answer.label,
            status=answer.status,
            scores=reply.scores,
            finding=doc["finding"] or None,
            variant=doc["variant"],
            document=doc["document"],
            tokens=reply.tokens,
            blank=reply.blank,
        )
        values: dict[str, Any] = {metric: {"outcome": outcome.to_dict()} for metric in self._aggregation_list}
        right = float(answer.label == doc["label"])
        values["accuracy"] = {**values["accuracy"], "score": right, "group": doc["group"], "answer": reply.text}
        if reply.scores is None:
            values.pop("auroc", None)  # a text answer ranks nothing
        return values

    def _reply(self, response: str) -> envelope.Reply:
        """Read a response, without the reasoning that the host would have cut out (``--reasoning_tags``)."""
        reply = envelope.unpack(response)
        tags = parse_reasoning_tags_config(
            cli_value=getattr(getattr(self, "args", None), "reasoning_tags", None),
            task_value=getattr(self.config, "reasoning_tags", None),
        )
        return reply if tags is None else replace(reply, text=strip_reasoning_tags(reply.text, tags))

    def _aggregation(self, metric: str) -> Callable[[list[dict[str, Any]]], float | str]:
        def aggregate(values: list[dict[str, Any]]) -> float | str:
            with evaluation_run.current().closed_on_error():
                outcomes = [Outcome.from_dict(value["outcome"]) for value in values]
                summary = self._score(outcomes)
                if metric == "accuracy":
                    self._write(summary, outcomes, {value["outcome"]["id"]: value["answer"] for value in values})
            estimate = summary.metrics.get(metric)
            return "N/A" if estimate is None else estimate.value

        return aggregate

    def _score(self, outcomes: Sequence[Outcome]) -> AnySummary:
        """All metrics at once, since one resampling serves them all; the host asks for them one by one."""
        key = hash(tuple(outcomes))
        if self._scored is None or self._scored[0] != key:
            with evaluation_run.current().stage("score"):
                self._scored = (key, scoring.score(outcomes, self.settings))
        return self._scored[1]

    def _write(self, summary: AnySummary, outcomes: Sequence[Outcome], answers: Mapping[str, str]) -> None:
        """Put the details into the run folder; the host's own table holds the values alone."""
        progress = evaluation_run.current()
        folder = progress.folder_for(getattr(getattr(self, "args", None), "model", None) or "model")
        scoring.write(folder, self.config.task, summary, outcomes, answers, self.data)
        figures = summary.to_dict()
        warning = scoring.unreadable_warning(figures, self.settings, progress.manifest["model"])
        facts = {"evaluated": summary.n, "metrics": figures["metrics"], "unreadable": warning}
        progress.scored(self.config.task, facts)
        if warning:
            logger.warning(f"{self.config.task}: {warning} Details: {folder}")
        else:
            logger.info(f"{self.config.task}: {summary.headline()} Details: {folder}")


class SimpleClassification(Classification):
    """For the host's simple models, such as ``dummy``."""

    OUTPUT_TYPE: ClassVar[str | None] = None


class ChatClassification(Classification, ConfigurableMessagesTask):
    """For the host's chat models, ours among them."""

    def doc_to_messages(self, doc: Mapping[str, Any], **rounds: Any) -> list[dict[str, Any]]:
        """A user turn with the pictures and the question; before it the solved examples, one turn each."""
        question = self.doc_to_text(doc)
        messages = []
        for shot, answer in self._examples(doc):
            messages.append(_user(self._pictures(shot), question))
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return [*messages, _user(self._asked_about(doc), question)]


def _user(pictures: Sequence[Image.Image], question: str) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "image", "url": picture} for picture in pictures]
    return {"role": "user", "content": [*content, {"type": "text", "text": question}]}


ClassificationTask.kinds = {"simple": SimpleClassification, "chat": ChatClassification}
