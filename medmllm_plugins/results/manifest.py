"""The manifest of a run: what was evaluated, by which command, with which software, and what it cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from medmllm_plugins.errors import DataError
from medmllm_plugins.metrics.intervals import Estimate
from medmllm_plugins.prompts.task_settings import ALL, TaskDeclaration
from medmllm_plugins.redaction import shareable_manifest
from medmllm_plugins.results.file_names import MANIFEST
from medmllm_plugins.utils.atomic_files import write_whole
from medmllm_plugins.utils.json_values import mapping
from medmllm_plugins.utils.record import Record, VersionedRecord, check_version, read_fields

_DEFAULTS: Final = TaskDeclaration(dataset="")


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsEntry(Record):
    """The settings of a task, as :meth:`~medmllm_plugins.prompts.task_settings.TaskSettings.to_dict` returns them.

    Settings that a manifest lacks have the defaults of a task's declaration.

    Attributes:
        dataset: name of the data set.
        dataset_options: options of the data set, such as the size of its images.
        protocol: how the classes are listed in the question.
        folds: folds that are evaluated.
        order: ``varied`` where each document is asked about with its options in several orders.
        paraphrase: number of the wording; ``all`` where each document is asked about in every wording.
        image: ``shown``, or ``blank`` or ``shuffled`` for a control.
        on_error: what is done with files that cannot be read.
        view: how volumes are shown; ``null`` for images.
        finding: the finding of a multi-label set that is asked about, if it is only one.
        features: options of the features that are recorded; ``null`` for a task without probes.
        anchors: documents of the positive control; ``null`` for a task without probes, 0 where no anchors are asked.
        masked: documents shown once more with the border masked, likewise.
        attributions: options of the attributions; ``null`` for a task without any.
        patching: which states are put in, and for which documents; of a task with probes where there is a twin.
    """

    dataset: str = ""
    dataset_options: Mapping[str, Any] = field(default_factory=dict)
    protocol: str = _DEFAULTS.protocol
    folds: tuple[str, ...] = _DEFAULTS.folds
    order: str = _DEFAULTS.order
    paraphrase: int | str = _DEFAULTS.paraphrase
    image: str = _DEFAULTS.image
    on_error: str = _DEFAULTS.on_error
    view: Mapping[str, Any] | None = None
    finding: str | None = None
    features: Mapping[str, Any] | None = None
    anchors: int | None = None
    masked: int | None = None
    attributions: Mapping[str, Any] | None = None
    patching: Mapping[str, Any] | None = None

    @property
    def varied(self) -> str:
        """What varies between the questions about one document: ``"order"``, ``"wording"``, or nothing."""
        if self.order == "varied":
            return "order"
        return "wording" if self.paraphrase == ALL else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeEntry(Record):
    """The result of a task's probes in short; all of it is in ``TASK.probes.json``.

    Attributes:
        failed: why there are no probes; ``null`` where there are.
        named: the failure mode that is named, if one is.
        verdicts: the verdict on each failure mode.
        best: the site whose probe is best on the validation fold.
        anchors: verdicts of the ``text`` anchor and the ``positive`` control.
        printed: the figures that lmms-eval prints, by metric.
        seconds: wall time by step.
        warnings: what limits the results.
    """

    failed: str | None = None
    named: str | None = None
    verdicts: Mapping[str, str] = field(default_factory=dict)
    best: str = ""
    anchors: Mapping[str, str] = field(default_factory=dict)
    printed: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplanationEntry(Record):
    """The attributions of a task in short; all of it is in ``attributions/TASK/index.json``.

    Attributes:
        failed: why there are no attributions; ``null`` where there are.
        documents: documents that the first process explained.
        printed: the figures that lmms-eval prints, by metric.
    """

    failed: str | None = None
    documents: int = 0
    printed: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchEntry(Record):
    """The result of a task's twin patching in short; all of it is in ``TASK.patching.json``.

    Attributes:
        failed: why there is none; ``null`` where there is.
        headline: the result in two or three sentences.
        printed: the figures that lmms-eval prints, by metric.
    """

    failed: str | None = None
    headline: str = ""
    printed: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEntry(Record):
    """A task in the manifest: its settings, data, prompt and results. It is filled as the run proceeds.

    Attributes:
        settings: what is asked, and about which data; ``null`` for a task of lmms-eval itself.
        labels: the classes in order; of a multi-label set the findings.
        kind: ``multiclass``, ``ordinal`` or ``multilabel``; empty where it is not known.
        positive: the class whose sensitivity is reported, if there is one.
        orders: the order in which each variant of the question lists the classes, where that is what varies.
        dataset_fingerprint: hash of all documents and their content; empty where it is not known.
        folds_hash: hash of the folds; empty where it is not known.
        counts: documents by fold and class.
        documents: documents that are asked about.
        questions: questions about them.
        shots: solved examples before each question.
        skipped: files that were left out.
        warnings: what limits the data set.
        notes: what its declaration says that a reader must know.
        overlaps: data sets that share images with it, and why.
        leaks: a warning about groups of documents in the train and the test fold; empty where there are none.
        prompt: the first prompt, as the model got it; empty where it is not known.
        prompts: where documents are asked in several ways, the first prompt of each way by finding and variant, such as
            ``Effusion | order 1``.
        predicted: answers that were not scored (``--predict_only``).
        evaluated: answers that were scored; ``null`` before.
        metrics: the metrics by name; ``null`` before they are computed.
        unreadable: why the metrics say little, where too few answers could be read; else empty.
        baseline: method of the reference classifier and how it was fitted; ``null`` for a model.
        probes: result of the probes; ``null`` without any.
        explanations: the attributions; ``null`` without any.
        patching: result of twin patching; ``null`` without any.
    """

    settings: SettingsEntry | None = None
    labels: tuple[str, ...] = ()
    kind: str = ""
    positive: str | None = None
    orders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dataset_fingerprint: str = ""
    folds_hash: str = ""
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    documents: int | None = None
    questions: int | None = None
    shots: int | None = None
    skipped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    overlaps: Mapping[str, str] = field(default_factory=dict)
    leaks: str = ""
    prompt: str = ""
    prompts: Mapping[str, str] = field(default_factory=dict)
    predicted: int | None = None
    evaluated: int | None = None
    metrics: Mapping[str, Estimate] | None = None
    unreadable: str = ""
    baseline: Mapping[str, Any] | None = None
    probes: ProbeEntry | None = None
    explanations: ExplanationEntry | None = None
    patching: PatchEntry | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry(Record):
    """The model in the manifest.

    Attributes:
        name: name of the model, as ``--model`` takes it, or of the reference classifier.
        pretrained: the checkpoint.
        fingerprint: hash of its weights.
        parameters: number of parameters.
        device: where it was run.
        dtype: type of its weights.
        attn_implementation: implementation of attention.
        device_map: how it was spread over devices.
        load_in: how it was quantised while loading.
        peft: the LoRA adapter that was merged.
        repair: the folder of a repair that ``medmllm repair`` fitted.
        twin: the checkpoint that patching tasks take states from.
        twin_peft: the LoRA adapter that was merged into it.
        twin_fingerprint: hash of its weights.
        twin_states: ``disk`` where the two were loaded in turn.
        system: the system prompt in place of the model's own.
        weight_warnings: weights that look untrained.
        max_length: tokens that it takes at most.
        batch_size: questions answered together; ``auto`` where that was measured.
        max_new_tokens: tokens of an answer at most.
        method: method of a reference classifier.
    """

    name: str
    pretrained: str | None = None
    fingerprint: str | None = None
    parameters: int | None = None
    device: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    device_map: str | None = None
    load_in: str | None = None
    peft: str | None = None
    repair: str | None = None
    twin: str | None = None
    twin_peft: str | None = None
    twin_fingerprint: str | None = None
    twin_states: str | None = None
    system: str | None = None
    weight_warnings: tuple[str, ...] = ()
    max_length: int | None = None
    batch_size: int | str | None = None
    max_new_tokens: int | None = None
    method: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageUsage(Record):
    """Time and memory of one stage of a run.

    Attributes:
        name: the stage, such as ``answer med_cls_busi``.
        seconds: wall time; stages of one name are added up.
        process_peak_bytes: peak memory of the process so far, as the operating system reports it.
        device_peak_bytes: peak memory on the GPU during the stage; ``null`` on a CPU.
    """

    name: str
    seconds: float
    process_peak_bytes: int
    device_peak_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(Record):
    """An earlier evaluation whose results are in the same folder.

    Attributes:
        tasks: names of its tasks.
        started: when it started, ISO 8601 in UTC.
        finished: when it finished; ``null`` where it did not.
        command: arguments of its command.
        stages: time and memory by stage.
    """

    tasks: tuple[str, ...]
    started: str | None = None
    finished: str | None = None
    command: Mapping[str, Any] | None = None
    stages: tuple[StageUsage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(VersionedRecord):
    """The manifest of a run: the content of ``manifest.json``, without keys and passwords.

    Its version is that of the whole run folder, the lines of ``TASK.outcomes.jsonl`` included.

    Attributes:
        started: when the run started, ISO 8601 in UTC.
        finished: when it finished; ``null`` where it did not.
        platform: operating system.
        versions: versions of the packages in use; ``null`` for one that is not installed.
        plugins: plugins in use.
        command: arguments of the command; ``null`` where lmms-eval was called from Python.
        seed: the seeds of lmms-eval.
        model: the model; ``null`` before it is loaded.
        tasks: the tasks by name.
        stages: time and memory by stage.
        evaluations: earlier evaluations that share the folder.
        answers_of_an_earlier_start: answers that were taken from an earlier, interrupted start of this run.
    """

    FORMAT: ClassVar[str] = "medmllm_manifest"

    started: str | None = None
    finished: str | None = None
    platform: str = ""
    versions: Mapping[str, str | None] = field(default_factory=dict)
    plugins: Any = None
    command: Mapping[str, Any] | None = None
    seed: Any = None
    model: ModelEntry | None = None
    tasks: Mapping[str, TaskEntry] = field(default_factory=dict)
    stages: tuple[StageUsage, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    answers_of_an_earlier_start: int = 0

    @classmethod
    def from_dict(cls, content: object) -> Self:
        """Read a manifest as far as it can be read; one without a version is read as the current one.

        Raises:
            DataError: it is of a newer version.
        """
        versioned = {cls.FORMAT: cls.VERSION, **mapping(content)}
        check_version(versioned, cls.FORMAT, cls.VERSION)
        return cls(**read_fields(cls, versioned))

    def shareable(self) -> dict[str, Any]:
        """Return the content of the file: :meth:`to_dict` without keys and passwords."""
        return shareable_manifest(self.to_dict())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest into a run folder, whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    text = json.dumps(manifest.shareable(), indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / MANIFEST, text, private=True)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder whose results are about to be used, or kept.

    Raises:
        DataError: the folder has no manifest, or one that is damaged, of a newer version, or not to be read by you.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest.from_dict(content)
        if manifest.tasks.keys() != dict(content["tasks"]).keys():
            raise ValueError("damaged entries of tasks")
        return manifest
    except DataError as error:
        raise DataError(f"{path}: {error}.") from error
    except PermissionError as error:
        raise DataError(
            f"{path}: expected a file that you may read, got one that its owner alone may, since it holds the "
            f"arguments of a command. Its owner lets you with: chmod a+r {path}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{folder}: expected a run folder with a {MANIFEST}, got {error}. Name the folder that the log of an "
            "evaluation ends with."
        ) from error
