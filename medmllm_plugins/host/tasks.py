"""Classification tasks as the host sees them: a task names a data set and a protocol, this module does the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from lmms_eval.api.reasoning import parse_reasoning_tags_config, strip_reasoning_tags
from lmms_eval.api.task import ConfigurableMessagesTask, ConfigurableTask
from loguru import logger
from PIL import Image

from medmllm_plugins.data.loading.dataset import load_dataset
from medmllm_plugins.errors import OptionError
from medmllm_plugins.host import command_line, envelope, flags
from medmllm_plugins.host.task_dataset import SPLIT, TaskDataset
from medmllm_plugins.host.task_loading import task_loading
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.readability import AnySummary
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.prompts.task_content import Row, TaskContent
from medmllm_plugins.prompts.task_settings import Purpose, read_settings
from medmllm_plugins.results import scoring
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.journal import Reply

BYPASS = "bypass"
"""The metric that the host has in place of all others where answers are collected and not scored."""
DEFAULT_GENERATION = {"max_new_tokens": 64, "do_sample": False, "temperature": 0.0, "until": []}


class ClassificationTask:
    """What a task's YAML names under ``class:``.

    The host makes such a task without telling it whether the model takes chat or simple requests. The load under way
    knows (:mod:`medmllm_plugins.host.task_loading`), and this class returns the right one of the two.
    """

    kinds: ClassVar[Mapping[str, type[Classification]]]

    def __new__(cls, config: dict[str, Any]) -> Any:
        """Return the task for the kind of model being evaluated; ``config`` is the YAML file's content."""
        return cls.kinds[task_loading().task_type](config=config)

    def __init__(self, config: dict[str, Any]) -> None:  # the host looks for `config` in this signature
        raise AssertionError("never reached: __new__ returns an instance of another class")


class Classification(ConfigurableTask):
    """Classification of one data set; ``metadata.medmllm`` is read by :mod:`medmllm_plugins.prompts.task_settings`."""

    PURPOSE: ClassVar[Purpose] = "classify"
    LOWER_IS_BETTER: ClassVar[frozenset[str]] = scoring.LOWER_IS_BETTER
    """Metrics that the host prints with an arrow down."""

    def __init__(self, config: dict[str, Any]) -> None:
        config = {key: value for key, value in config.items() if key != "class"}
        loading = task_loading()
        self.session = loading.session
        _check_command(loading.task_type)
        settings = read_settings(config.get("task"), config.get("metadata"), purpose=self.PURPOSE)
        with self.run.stage("data"):
            data = load_dataset(settings.dataset, on_error=settings.on_error)
        self.content = TaskContent(str(config.get("task")), settings, data)
        self._scored: tuple[int, AnySummary] | None = None
        super().__init__(
            config={
                **config,
                # All of this is part of the response cache's key: answers cached for other data, other folds or
                # another way of asking are not used for these.
                "metadata": {**config["metadata"], "medmllm": self.content.metadata},
                "generation_kwargs": {**DEFAULT_GENERATION, **(config.get("generation_kwargs") or {})},
                "test_split": SPLIT,
                "cluster_key": "group",
            }
        )

    @property
    def run(self) -> EvaluationRun:
        """The run that the task is part of."""
        return self.session.run

    @property
    def name(self) -> str:
        """The task's name, arguments included."""
        return str(self.config.task)

    @property
    def _model_name(self) -> str:
        """The model's name on the host's command line, which names a run folder that has no other name."""
        return getattr(getattr(self, "args", None), "model", None) or "model"

    def _prepare_metric_and_aggregation(self) -> None:
        metrics = self.metrics()
        self._metric_fn_list = dict.fromkeys(metrics)
        self._metric_fn_kwargs: dict[str, dict[str, Any]] = {metric: {} for metric in metrics}
        self._aggregation_list = {metric: self._aggregation(metric) for metric in metrics}
        self._higher_is_better = {metric: metric not in self.LOWER_IS_BETTER for metric in metrics}

    def override_metric(self, metric_name: str) -> None:
        """Leave scoring out, which is what the host asks for with ``bypass`` (``--predict_only``).

        Answers stay in the journal: the same command without ``--predict_only`` scores them without asking again.
        """
        super().override_metric(metric_name)
        if metric_name == BYPASS:
            self.content.predict_only = True
            self._aggregation_list = {BYPASS: self._collected}

    def _collected(self, values: list[dict[str, Any]]) -> str:
        self.run.predicted(self.name, len(values))
        logger.info(
            f"{self.name}: {len(values)} answers, not scored. The same command without --predict_only scores them "
            "without asking again."
        )
        return "N/A"

    def metrics(self) -> tuple[str, ...]:
        """Return the metrics that the host prints."""
        return scoring.metrics(self.content.settings)

    def download(self, dataset_kwargs: Any = None) -> None:
        """Give the host its rows: nothing is downloaded."""
        self.dataset = TaskDataset.of(self.content, self.session)
        self.dataset_no_image = self.dataset

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the requests; the first moment at which the task knows the command line and is part of a run.

        Raises:
            OptionError: a flag of the host asks for something that this task cannot do.
        """
        content, run = self.content, self.session.join(self.name)
        run.arguments(getattr(self, "args", None))
        counts = {
            "documents": len(content.rows.documents),
            "questions": len(content.row_list),
            "shots": self._example_count,
        }
        run.task(self.name, **scoring.facts(content.settings, content.data, **counts))
        checked = self._checked(kwargs)
        offset, limit = checked.get("offset") or 0, checked.get("limit")
        content.evaluated = range(len(content.row_list))[offset:][:limit]
        super().build_all_requests(**checked)

    def _checked(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Check what the host asks of the requests, also where it was called from Python."""
        args, count = getattr(self, "args", None), len(self.content.row_list)
        flags.check_shots(self._example_count)
        flags.check_repeats(self.config.repeats)
        flags.check_fraction(getattr(args, "limit", None), count, arguments.get("limit"), self.name)
        if (offset := arguments.get("offset") or 0) >= count:
            raise OptionError(f"{self.name}: expected --offset below the number of questions, {count}, got {offset}.")
        if arguments.get("limit") == 0:
            raise OptionError(f"{self.name}: expected --limit to leave at least one question, got 0.")
        if arguments.get("system_instruction") is not None and isinstance(self, ConfigurableMessagesTask):
            raise OptionError(
                f"{self.name}: --system_instruction reaches no chat model. Use the argument system=… of the models of "
                "this package."
            )
        if arguments.get("cache_requests"):
            logger.info(f"{self.name}: --cache_requests is ignored; requests follow the data as they are now.")
        return {**arguments, "cache_requests": False, "rewrite_requests_cache": False}

    @property
    def _example_count(self) -> int:
        """Number of few-shot examples before each question: the host's ``--num_fewshot``."""
        return int(self.config.num_fewshot or 0)

    def fewshot_context(self, doc: Row, num_fewshot: int, *args: Any, **kwargs: Any) -> Any:
        """Return the whole text of a request to a simple model, solved examples first; their images come in that order.

        Of the host's further arguments only the system instruction is used: a chat model gets messages, and applies
        its own template to them.
        """
        context = super().fewshot_context(doc, 0, *args[:1])
        examples = self.content.examples(doc, self._example_count)
        solved = [f"{self.doc_to_text(doc)}\n{answer}\n\n" for _, answer in examples]
        return "".join(solved) + context if solved else context

    def doc_to_text(self, doc: Row, *args: Any) -> str:
        """Return the question of a row."""
        return self.content.question(doc).text

    def doc_to_visual(self, doc: Row) -> list[Image.Image]:
        """Return the RGB images of a row: those of the examples first, then its own."""
        examples = self.content.examples(doc, self._example_count)
        images = [image for document, _ in examples for image in self.content.document_images(document)]
        return [*images, *self.content.images(doc)]

    def doc_to_target(self, doc: Row, *args: Any) -> str:
        """Return the class of a row."""
        return str(doc["label"])

    def process_results(self, doc: Row, results: Sequence[str]) -> dict[str, Any]:
        """Parse one answer.

        Returns:
            For each metric the record of the row, from which the aggregation computes it; that of ``accuracy`` also
            carries the answer, and ``score`` and ``group``, by which the host computes its own standard errors. Where
            nothing is scored, the answer alone.
        """
        reply = self._reply(str(results[0] or ""))
        if self.content.predict_only:
            return {BYPASS: {"id": doc["id"], "answer": reply.text}}
        answer = self.content.read_answer(doc, reply.text)
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
            tokens=reply.label_tokens,
            blank=reply.blank_scores,
        )
        values: dict[str, Any] = {metric: {"outcome": outcome.to_dict()} for metric in self._aggregation_list}
        score = float(answer.label == doc["label"])
        values["accuracy"] = {**values["accuracy"], "score": score, "group": doc["group"], "answer": reply.text}
        if reply.scores is None:
            values.pop("auroc", None)  # a text answer ranks nothing
        return values

    def _reply(self, response: str) -> Reply:
        """Read a response, without the reasoning that the host would have cut out (``--reasoning_tags``)."""
        reply = envelope.unpack(response)
        tags = parse_reasoning_tags_config(
            cli_value=getattr(getattr(self, "args", None), "reasoning_tags", None),
            task_value=getattr(self.config, "reasoning_tags", None),
        )
        return reply if tags is None else replace(reply, text=strip_reasoning_tags(reply.text, tags))

    def _aggregation(self, metric: str) -> Callable[[list[dict[str, Any]]], float | str]:
        def aggregate(values: list[dict[str, Any]]) -> float | str:
            with self.run.closed_on_error():
                outcomes = [Outcome.from_dict(value["outcome"]) for value in values]
                summary = self._score(outcomes)
                if metric == "accuracy":
                    self._write(summary, outcomes, {value["outcome"]["id"]: value["answer"] for value in values})
            estimate = summary.metrics.get(metric)
            return "N/A" if estimate is None else estimate.value

        return aggregate

    def _score(self, outcomes: Sequence[Outcome]) -> AnySummary:
        """Compute all metrics at once, since one resampling serves them all; the host asks for them one by one."""
        key = hash(tuple(outcomes))
        if self._scored is None or self._scored[0] != key:
            with self.run.stage("score"):
                self._scored = (key, scoring.score(outcomes, self.content.settings))
        return self._scored[1]

    def _write(self, summary: AnySummary, outcomes: Sequence[Outcome], answers: Mapping[str, str]) -> None:
        """Write the details into the run folder; the host's own table holds the values alone."""
        run, settings = self.run, self.content.settings
        folder = run.folder_for(self._model_name)
        scoring.write(folder, self.name, summary, outcomes, answers, self.content.data)
        warning = scoring.unreadable_warning(summary, settings.dataset, run.manifest.model)
        run.scored(self.name, summary, warning)
        if warning:
            logger.warning(f"{self.name}: {warning} Details: {folder}")
        else:
            logger.info(f"{self.name}: {summary.headline()} Details: {folder}")
        questions = self.content.scored_questions
        sentence = scoring.result_sentence(self.name, summary, questions=questions, warning=warning)
        command_line.note_result(sentence, run.output_path or folder)


class SimpleClassification(Classification):
    """For the host's simple models, such as ``dummy``."""

    OUTPUT_TYPE: ClassVar[str | None] = None


class ChatClassification(Classification, ConfigurableMessagesTask):
    """For the host's chat models, ours among them."""

    def doc_to_messages(self, doc: Row, **rounds: Any) -> list[dict[str, Any]]:
        """Return a user turn with the images and the question; before it the solved examples, one turn each."""
        question = self.doc_to_text(doc)
        messages = []
        for document, answer in self.content.examples(doc, self._example_count):
            messages.append(_user(self.content.document_images(document), question))
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return [*messages, _user(self.content.images(doc), question)]


def _check_command(task_type: str) -> None:
    """Refuse flags before the data are read, also where the host's index did not know that the task is ours."""
    command_line.concern_us()
    if (args := command_line.arguments()) is not None:
        flags.check_command(args, task=True, model=args.model in get_manager().models(), chat=task_type == "chat")


def _user(images: Sequence[Image.Image], question: str) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "image", "url": image} for image in images]
    return {"role": "user", "content": [*content, {"type": "text", "text": question}]}


ClassificationTask.kinds = {"simple": SimpleClassification, "chat": ChatClassification}
