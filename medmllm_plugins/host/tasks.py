"""Classification tasks as the host sees them: a YAML file names a data set and a protocol, this class does the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import datasets
from lmms_eval.api.task import ConfigurableMessagesTask, ConfigurableTask
from loguru import logger
from PIL import Image

from medmllm_plugins.answers.parsing import parse_answer
from medmllm_plugins.answers.prompts import closed_set
from medmllm_plugins.data.catalogue import dataset_specs
from medmllm_plugins.data.dataset import Dataset, load_dataset
from medmllm_plugins.data.documents import FOLDS, Document
from medmllm_plugins.errors import OptionError
from medmllm_plugins.host import bridge, envelope, run
from medmllm_plugins.metrics.outcomes import Outcome
from medmllm_plugins.metrics.summary import Summary, summarise

METRICS = ("accuracy", "balanced", "macro_f1", "mcc", "auroc", "parsed")
SPLIT = "test"
PROTOCOLS = ("closed_set",)
DEFAULT_GENERATION = {"max_new_tokens": 64, "do_sample": False, "temperature": 0.0, "until": []}


class ClassificationTask:
    """What a task's YAML names under ``class:``.

    The host makes such a task without telling it whether the model takes chat or simple requests; the bridge knows,
    and this class hands out the right one of the two.
    """

    def __new__(cls, config: dict[str, Any]) -> Any:
        """Return the task for the kind of model being evaluated; ``config`` is the YAML file's content."""
        return _TASKS[bridge.requested_task_type()](config=config)

    def __init__(self, config: dict[str, Any]) -> None:  # the host looks for `config` in this signature
        raise AssertionError("never reached: __new__ returns an instance of another class")


class _Classification(ConfigurableTask):
    """Closed-set classification of one data set.

    ``metadata.medmllm`` of the YAML holds ``dataset`` (a declared data set), ``protocol`` (``closed_set``) and
    ``folds`` (which folds to evaluate; ``[test]`` when absent).
    """

    def __init__(self, config: dict[str, Any]) -> None:
        config = {key: value for key, value in config.items() if key != "class"}
        self.settings = settings = _settings(config)
        self.data: Dataset = _load(settings["dataset"])
        self.evaluated: tuple[Document, ...] = tuple(
            sorted(self.data.select(settings["folds"]), key=lambda document: _shuffled(document.id))
        )
        self._documents = {document.id: document for document in self.evaluated}
        self._summary: tuple[int, Summary] | None = None
        metadata = dict(config["metadata"])
        # All of this reaches the model with each request, and is part of the response cache's key: answers cached
        # for other data, other folds or other labels are not taken for these.
        metadata["medmllm"] = {**settings, "labels": list(self.data.spec.labels), "data": self.data.fingerprint}
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

    def _prepare_metric_and_aggregation(self) -> None:
        self._metric_fn_list = dict.fromkeys(METRICS)
        self._metric_fn_kwargs: dict[str, dict[str, Any]] = {metric: {} for metric in METRICS}
        self._aggregation_list = {metric: self._aggregation(metric) for metric in METRICS}
        self._higher_is_better = dict.fromkeys(METRICS, True)

    def download(self, dataset_kwargs: Any = None) -> None:
        """Give the host its rows: no download, and no image or path among them, so none reaches a log."""
        rows = [
            {"id": document.id, "label": document.label, "group": document.group, "fold": document.fold}
            for document in self.evaluated
        ]
        self.dataset = datasets.DatasetDict({SPLIT: datasets.Dataset.from_list(rows)})
        self.dataset_no_image = self.dataset

    def build_all_requests(self, **kwargs: Any) -> None:
        """Build the requests; the first moment at which the task knows the command line and is part of a run."""
        progress = run.joined_by(self.config.task)
        progress.arguments(getattr(self, "args", None))
        progress.task(
            self.config.task,
            {
                "dataset": self.data.spec.name,
                "protocol": self.settings["protocol"],
                "folds": self.settings["folds"],
                "dataset_fingerprint": self.data.fingerprint,
                "counts": self.data.counts(),
                "documents": len(self.evaluated),
            },
        )
        super().build_all_requests(**kwargs)

    def doc_to_text(self, doc: Mapping[str, Any], *args: Any) -> str:
        """The question about one document."""
        return closed_set(self.data.spec.modality, self.data.spec.labels)

    def doc_to_visual(self, doc: Mapping[str, Any]) -> list[Image.Image]:
        """The image of one document, RGB."""
        return [self.data.image(self._documents[doc["id"]])]

    def doc_to_target(self, doc: Mapping[str, Any], *args: Any) -> str:
        """The class of one document."""
        return str(doc["label"])

    def process_results(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """Parse one answer.

        Returns:
            For each metric the record of the document, from which the aggregation computes it; that of ``accuracy``
            carries ``score`` and ``group`` beside it, by which the host computes its own standard errors.
        """
        reply = envelope.unpack(str(results[0] or ""))
        answer = parse_answer(reply.text, self.data.spec.classes)
        outcome = Outcome(
            id=doc["id"],
            group=doc["group"],
            label=doc["label"],
            predicted=answer.label,
            status=answer.status,
            scores=reply.scores,
        )
        record = outcome.to_dict()
        values: dict[str, Any] = {metric: {"outcome": record} for metric in METRICS}
        values["accuracy"] = {**values["accuracy"], "score": float(answer.label == doc["label"]), "group": doc["group"]}
        if reply.scores is None:
            del values["auroc"]  # a text answer ranks nothing
        return values

    def _aggregation(self, metric: str) -> Callable[[list[dict[str, Any]]], float | str]:
        def aggregate(values: list[dict[str, Any]]) -> float | str:
            summary = self._summarise([Outcome.from_dict(value["outcome"]) for value in values])
            if metric == "accuracy":
                self._write(summary)
            estimate = summary.metrics.get(metric)
            return "N/A" if estimate is None else estimate.value

        return aggregate

    def _summarise(self, outcomes: Sequence[Outcome]) -> Summary:
        """All metrics at once, since one resampling serves them all; the host asks for them one by one."""
        key = hash(tuple(outcomes))
        if self._summary is None or self._summary[0] != key:
            with run.current().stage("score"):
                self._summary = (key, summarise(outcomes, self.data.spec.labels, self.data.spec.positive))
        return self._summary[1]

    def _write(self, summary: Summary) -> None:
        """Put the details into the run folder; the host's own table holds the values alone."""
        progress = run.current()
        folder = progress.open(getattr(getattr(self, "args", None), "model", None) or "model")
        summary.write(folder, self.config.task)
        progress.task(self.config.task, {"evaluated": summary.n, "metrics": summary.to_dict()["metrics"]})
        logger.info(f"{self.config.task}: {summary.headline()} Details: {folder}")


class _SimpleClassification(_Classification):
    """For the host's simple models, such as ``dummy``."""

    OUTPUT_TYPE: ClassVar[str | None] = None


class _ChatClassification(_Classification, ConfigurableMessagesTask):
    """For the host's chat models, ours among them."""

    def doc_to_messages(self, doc: Mapping[str, Any], **rounds: Any) -> list[dict[str, Any]]:
        """One user turn: the image, then the question."""
        content: list[dict[str, Any]] = [{"type": "image", "url": image} for image in self.doc_to_visual(doc)]
        return [{"role": "user", "content": [*content, {"type": "text", "text": self.doc_to_text(doc)}]}]


_TASKS: dict[str, type[_Classification]] = {"simple": _SimpleClassification, "chat": _ChatClassification}


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check ``metadata.medmllm`` of a task's YAML."""
    name = config.get("task")
    metadata = config.get("metadata")
    found = metadata.get("medmllm") if isinstance(metadata, Mapping) else None
    if not isinstance(found, Mapping) or "dataset" not in found:
        raise OptionError(f"Task {name!r}: expected `metadata: {{medmllm: {{dataset: NAME}}}}`, found {metadata!r}.")
    if unknown := sorted(set(found) - {"dataset", "protocol", "folds"}):
        raise OptionError(f"Task {name!r}: unknown keys {unknown} in medmllm; expected dataset, protocol, folds.")
    protocol = found.get("protocol", "closed_set")
    if protocol not in PROTOCOLS:
        raise OptionError(f"Task {name!r}: expected `protocol` to be one of {list(PROTOCOLS)}, found {protocol!r}.")
    folds = found.get("folds", [SPLIT])
    if not isinstance(folds, list) or not folds or set(folds) - set(FOLDS):
        raise OptionError(f"Task {name!r}: expected `folds` to be a list of {list(FOLDS)}, found {folds!r}.")
    return {"dataset": str(found["dataset"]), "protocol": protocol, "folds": list(folds)}


def _load(name: str) -> Dataset:
    specs = dataset_specs()
    if name not in specs:
        raise OptionError(f"No data set is called {name!r}; declared are {sorted(specs)}.")
    with run.current().stage("data"):
        return load_dataset(specs[name])


def _shuffled(identifier: str) -> str:
    """A fixed order in which classes mix, so that the host's ``--limit`` takes a sample and not one class."""
    return hashlib.sha256(identifier.encode()).hexdigest()
