"""The settings of a task: ``metadata.medmllm`` of its YAML, or arguments behind its name on the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BeforeValidator, WithJsonSchema

from medmllm_plugins.data.core.data_faults import OnError
from medmllm_plugins.data.core.dataset_spec import DatasetSpec, parse_spec
from medmllm_plugins.data.core.documents import FOLDS, Fold
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.volume_view import View
from medmllm_plugins.errors import OptionError, shown
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.prompts.attribution_options import AttributionOptions, Baseline
from medmllm_plugins.prompts.feature_options import EXTRA, FeatureOptions
from medmllm_plugins.prompts.patch_options import TOKENS, PatchOptions, Tokens
from medmllm_plugins.prompts.protocols import YES_NO, Protocol
from medmllm_plugins.prompts.wording import PARAPHRASES
from medmllm_plugins.utils.declared_model import DeclaredModel, Expected, read_declaration
from medmllm_plugins.utils.suggestions import did_you_mean

Purpose = Literal["classify", "probe", "attribute", "patch"]
ALL: Final = "all"
ANCHORS: Final = 48
"""Documents of the test fold on whose images squares are drawn for the positive control, by default."""
MASKED_DOCUMENTS: Final = 100
"""Documents of the test fold that are shown once more with the border masked, by default."""
_ATTRIBUTION: Final = AttributionOptions()
"""The defaults of what attribution tasks explain."""
_PATCHING: Final = PatchOptions()
"""The defaults of where patching tasks put states in."""


# Values behind a task's name are text, so these types also read "9" as a number and "train+test" as a list.


def _whole_number(value: object) -> int:
    text = str(value)
    if isinstance(value, bool) or not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ValueError
    return int(text)


def _paraphrase(value: object) -> int | str:
    if value == ALL:
        return ALL
    number = _whole_number(value)
    if number > PARAPHRASES:
        raise ValueError
    return number


def _names(value: object) -> tuple[str, ...]:
    parts = value.split("+") if isinstance(value, str) else value
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) and part for part in parts):
        raise ValueError
    return tuple(dict.fromkeys(parts))


def _some_of(known: tuple[str, ...]) -> Callable[[object], tuple[str, ...]]:
    def check(value: object) -> tuple[str, ...]:
        names = _names(value)
        if not set(names) <= set(known):
            raise ValueError
        return tuple(name for name in known if name in names)

    return check


def _list_schema(*names: str) -> WithJsonSchema:
    items = {"type": "string", **({"enum": list(names)} if names else {})}
    return WithJsonSchema({"type": "array", "items": items, "minItems": 1})


WholeNumber: TypeAlias = Annotated[int, BeforeValidator(_whole_number), Expected("a whole number")]
Text: TypeAlias = Annotated[str, BeforeValidator(str)]
Names: TypeAlias = Annotated[
    tuple[str, ...], BeforeValidator(_names), Expected("names, joined by + in a task's name"), _list_schema()
]


class TaskDeclaration(DeclaredModel):
    """What ``metadata.medmllm`` of a task's YAML may hold, and behind a task's name ``NAME:argument=value:…``.

    See :class:`TaskSettings` for the settings that follow from it.
    """

    dataset: Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]})]
    """The name of a declared data set, or a declaration."""
    protocol: Protocol = "closed_set"
    """How the class is asked for: with the list of classes, with letters, or without a list."""
    folds: Annotated[
        tuple[Fold, ...],
        BeforeValidator(_some_of(FOLDS)),
        Expected(f"some of {list(FOLDS)}, joined by + in a name"),
        _list_schema(*FOLDS),
    ] = ("test",)
    """The folds that are evaluated; default: test."""
    order: Literal["given", "varied"] = "given"
    """``varied`` asks about every document with the options in several orders."""
    paraphrase: Annotated[
        int | str,
        BeforeValidator(_paraphrase),
        Expected(f"a whole number, 0 to {PARAPHRASES} or {ALL!r}"),
        WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0, "maximum": PARAPHRASES}, {"const": ALL}]}),
    ] = 0
    """Which wording of the question; ``all`` asks about every document in every wording."""
    image: Literal["shown", "blank", "shuffled"] = "shown"
    """As a control, a blank image, or the image of a document of another group."""
    on_error: OnError = "raise"
    """``skip`` leaves out files that cannot be read, and lists them."""
    slices: WholeNumber = 9
    """Show this many slices of a volume, each as an image."""
    montage: WholeNumber = 9
    """Show this many slices of a volume in one image."""
    plane: Text = View().plane
    """Plane of the slices: axial, coronal or sagittal."""
    window: Text = ""
    """Intensity window of CT, by name or as centre/width."""
    size: WholeNumber = 0
    """Size of the images, if the data set comes in several."""
    frame: Text = "middle"
    """Which frame of multi-frame DICOM files is shown: first, middle, all or a number."""
    pool: Annotated[
        tuple[str, ...],
        BeforeValidator(_some_of(EXTRA)),
        Expected(f"some of {list(EXTRA)}, joined by + in a name"),
        _list_schema(*EXTRA),
    ] = ()
    """Probing tasks: further poolings to record."""
    random_encoder: Literal["on", "off"] = "on"
    """Probing tasks: whether to record control features of a randomly initialised vision tower."""
    anchors: WholeNumber = ANCHORS
    """Probing tasks: documents of the positive control; 0 asks no anchors at all."""
    masked: WholeNumber = MASKED_DOCUMENTS
    """Probing tasks: documents that are shown once more with the border masked; 0 for none."""
    finding: Text = ""
    """All tasks but med_cls on a multi-label set: the finding that is asked about."""
    n: WholeNumber = _ATTRIBUTION.n
    """Attribution and patching tasks: documents of each class; 25 by default where states are patched."""
    method: Names = _ATTRIBUTION.methods
    """Attribution tasks: methods."""
    layer: Names = _ATTRIBUTION.layers
    """Attribution tasks: layers for methods that explain at a layer."""
    target: Text = _ATTRIBUTION.target
    """Attribution tasks: what is explained, ``decision``, ``truth``, ``answer`` or a class."""
    baseline: Baseline = _ATTRIBUTION.baseline
    """Attribution tasks: the image that the document is compared with."""
    steps: WholeNumber = _ATTRIBUTION.steps
    """Attribution tasks: points on the path of methods that integrate."""
    every: WholeNumber = _PATCHING.every
    """Patching tasks: patch after every k-th block of the LLM; 0 for about eight blocks."""
    tokens: Annotated[
        tuple[Tokens, ...],
        BeforeValidator(_some_of(TOKENS)),
        Expected(f"some of {list(TOKENS)}, joined by + in a name"),
        _list_schema(*TOKENS),
    ] = _PATCHING.tokens
    """Patching tasks: the tokens whose states are put in at a block."""
    interchange: Literal["on", "off"] = "on"
    """Patching tasks: whether states of other documents are put in, too."""
    knockout: Literal["on", "off"] = "on"
    """Patching tasks: whether attention to the image is cut, too."""
    steering: Literal["on", "off"] = "off"
    """Patching tasks: whether states are pushed along directions of probes, too."""
    intervention: Names = ()
    """Patching tasks: interventions of plugins."""


ARGUMENTS: Final = tuple(name for name in TaskDeclaration.model_fields if name != "dataset")
"""What may follow a task's name, ``NAME:argument=value:…``."""
_PLAIN: Final = ("protocol", "folds", "order", "paraphrase", "image", "on_error")
_VIEW: Final = ("slices", "montage", "plane", "window")
_OPTIONS: Final = ("size", "frame")
_PROBING: Final = ("pool", "random_encoder", "anchors", "masked", "n", "every", "tokens", "finding")
_ATTRIBUTING: Final = ("n", "method", "layer", "target", "baseline", "steps", "finding")
_PATCHED: Final = ("n", "every", "tokens", "interchange", "knockout", "steering", "intervention", "finding")
AFTERWARDS: Final = (
    *("anchors", "masked"),
    *(name for name in dict.fromkeys((*_ATTRIBUTING, *_PATCHED)) if name != "finding"),
)
"""Arguments that say what is made of answers or asked after them, and decide nothing about the answers themselves."""
_INSPECTION: Final[Mapping[Purpose, tuple[str, tuple[str, ...]]]] = {
    "probe": ("med_probe", _PROBING),
    "attribute": ("med_attr", _ATTRIBUTING),
    "patch": ("med_patch", _PATCHED),
}
"""Purpose of tasks that look inside the model, to the prefix of their names and the arguments that only they take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """Everything that decides what is asked, and about which images; see :class:`TaskDeclaration` for the values.

    Attributes:
        dataset: the data set's declaration, its options changed by arguments.
        finding: the finding of a multi-label set that is asked about, if it is only one.
        anchors: documents of the positive control; 0 where no anchors are asked.
        masked: documents that are shown once more with the border masked.
    """

    dataset: DatasetSpec
    protocol: Protocol
    folds: tuple[Fold, ...]
    order: str
    paraphrase: int | str
    image: str
    on_error: OnError
    view: View
    finding: str | None = None
    features: FeatureOptions | None = None
    anchors: int = 0
    masked: int = 0
    attributions: AttributionOptions | None = None
    patching: PatchOptions | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, as in the manifest; they are part of the response cache's key."""
        inspection: dict[str, Any] = {}
        if self.features is not None:
            inspection = {"features": self.features.to_dict(), "finding": self.finding}
            inspection |= {"anchors": self.anchors, "masked": self.masked}
        if self.attributions is not None:
            inspection = {"attributions": self.attributions.to_dict(), "finding": self.finding}
        if self.patching is not None:
            inspection |= {"patching": self.patching.to_dict(), "finding": self.finding}
        return {
            "dataset": self.dataset.name,
            "dataset_options": dict(self.dataset.options),
            **{name: getattr(self, name) for name in _PLAIN},
            "folds": list(self.folds),
            "view": dataclasses.asdict(self.view) if self.dataset.dimensions == 3 else None,
            **inspection,
        }


def read_settings(task: object, metadata: object, *, purpose: Purpose = "classify") -> TaskSettings:
    """Check ``metadata.medmllm`` of a task.

    ``metadata`` is that of the task's YAML file; see :class:`TaskDeclaration` for the keys of its ``medmllm``. A
    probing task evaluates all folds and records features; an attribution task explains answers, a patching task puts
    the states of another model in.

    Raises:
        OptionError: a key or a value is wrong, or no data set has that name.
        DataError: the declaration of the data set is wrong.
    """
    source = f"Task {shown(task)}"
    declared = metadata.get("medmllm") if isinstance(metadata, Mapping) else None
    if not isinstance(declared, Mapping) or "dataset" not in declared:
        raise OptionError(f"{source}: expected `metadata: {{medmllm: {{dataset: NAME}}}}`, got {shown(metadata)}.")
    declaration = read_declaration(TaskDeclaration, declared, source, error=OptionError)
    try:
        return _settings(declaration, str(task), purpose)
    except OptionError as error:
        raise OptionError(f"{source}: {error}") from error


def _settings(declaration: TaskDeclaration, task: str, purpose: Purpose) -> TaskSettings:
    spec = _spec(declaration.dataset, task)
    values = {name: getattr(declaration, name) for name in declaration.model_fields_set}
    view: dict[str, Any] = {name: values[name] for name in _VIEW if name in values}
    options: dict[str, Any] = {name: values[name] for name in _OPTIONS if name in values}
    if spec.dimensions == 2 and spec.layout == "table" and "window" in view:
        options["window"] = view.pop("window")
    settings = TaskSettings(
        dataset=spec.model_copy(update={"options": {**spec.options, **options}}),
        view=_view(view),
        **{name: getattr(declaration, name) for name in _PLAIN},
    )
    _check_together(settings, view, options)
    _check_purpose(set(values), purpose)
    by_purpose = {"probe": _probing, "attribute": _attributing, "patch": _patching}
    return by_purpose[purpose](settings, declaration) if purpose in by_purpose else settings


def _check_purpose(names: set[str], purpose: Purpose) -> None:
    """Refuse arguments that only tasks of another purpose take."""
    allowed = _INSPECTION[purpose][1] if purpose in _INSPECTION else ()
    if foreign := sorted(names & {*_PROBING, *_ATTRIBUTING, *_PATCHED} - set(allowed)):
        where = " and ".join(prefix for prefix, known in _INSPECTION.values() if set(foreign) & set(known))
        raise OptionError(f"{foreign} apply to {where} tasks only.")


def _spec(dataset: object, task: str) -> DatasetSpec:
    if isinstance(dataset, Mapping):
        return parse_spec(dataset, task)
    specs = dataset_specs()
    if not isinstance(dataset, str) or dataset not in specs:
        hint = did_you_mean(str(dataset), specs) or "`medmllm datasets` lists all."
        raise OptionError(f"No data set is called {shown(dataset)}. {hint}")
    return specs[dataset]


def _view(values: Mapping[str, Any]) -> View:
    if "slices" in values and "montage" in values:
        raise OptionError("Expected either `slices` (one image each) or `montage` (one image), got both.")
    count = values.get("montage", values.get("slices"))
    others = {key: values[key] for key in ("plane", "window") if key in values}
    return View(**others) if count is None else View(slices=count, montage="montage" in values, **others)


def _probing(settings: TaskSettings, declaration: TaskDeclaration) -> TaskSettings:
    """Return the settings of a task that probes: all folds, one question a document."""
    if "folds" in declaration.model_fields_set:
        raise OptionError("Probes are fitted on the train fold and tested on the test fold: leave `folds` out.")
    finding = _check_one_question(settings, declaration, "Probes need", "a probe is of one finding")
    features = FeatureOptions(extra=declaration.pool, random_encoder=declaration.random_encoder == "on")
    return dataclasses.replace(
        settings,
        folds=FOLDS,
        finding=finding,
        features=features,
        anchors=declaration.anchors,
        masked=declaration.masked,
        patching=_patch_options(declaration),
    )


def _attributing(settings: TaskSettings, declaration: TaskDeclaration) -> TaskSettings:
    """Return the settings of a task that explains: one question a document."""
    finding = _check_one_question(settings, declaration, "Attributions need", "an attribution is of one finding")
    if settings.image != "shown":
        raise OptionError("Attributions explain the image that was shown: leave `image` out.")
    options = AttributionOptions(
        n=declaration.n,
        methods=declaration.method,
        layers=declaration.layer,
        target=declaration.target,
        baseline=declaration.baseline,
        steps=declaration.steps,
    )
    options.check(tuple(YES_NO) if settings.dataset.kind == "multilabel" else settings.dataset.labels)
    return dataclasses.replace(settings, finding=finding, attributions=options)


def _patching(settings: TaskSettings, declaration: TaskDeclaration) -> TaskSettings:
    """Return the settings of a task that patches: one question a document."""
    if settings.folds != ("test",):
        raise OptionError("States are patched on documents of the test fold: leave `folds` out.")
    finding = _check_one_question(settings, declaration, "Patching needs", "patching is of one finding")
    options = dataclasses.replace(
        _patch_options(declaration),
        interchange=declaration.interchange == "on",
        knockout=declaration.knockout == "on",
        steering=declaration.steering == "on",
        interventions=declaration.intervention,
    )
    known = get_manager().interventions()
    if unknown := [name for name in options.interventions if name not in known]:
        raise OptionError(
            f"Expected `intervention` to be some of {', '.join(known) or 'those of plugins (none is installed)'}, got "
            f"{', '.join(unknown)}."
        )
    return dataclasses.replace(settings, finding=finding, patching=options)


def _patch_options(declaration: TaskDeclaration) -> PatchOptions:
    n = declaration.n if "n" in declaration.model_fields_set else _PATCHING.n
    options = PatchOptions(n=n, every=declaration.every, tokens=declaration.tokens)
    return dataclasses.replace(options, interchange=False, knockout=False)


def _check_one_question(settings: TaskSettings, declaration: TaskDeclaration, who: str, why: str) -> str | None:
    """Check that each document is asked about once, and return the finding that is asked about."""
    finding = declaration.finding if "finding" in declaration.model_fields_set else None
    if settings.order != "given" or settings.paraphrase == ALL:
        raise OptionError(
            f"{who} one question for each document: expected order=given and one paraphrase, got several."
        )
    spec = settings.dataset
    if spec.kind != "multilabel":
        if finding is not None:
            raise OptionError(f"{spec.title} has one class an image: `finding` does not apply.")
    elif finding not in spec.labels:
        raise OptionError(
            f"{spec.title} is multi-label, and {why}: expected finding= one of {list(spec.labels)}, got {finding!r}."
        )
    return finding


def _check_together(settings: TaskSettings, view: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    spec = settings.dataset
    if spec.kind == "multilabel" and (settings.protocol != "closed_set" or settings.order != "given"):
        raise OptionError(
            f"{spec.title} asks one yes/no question for each finding: expected protocol closed_set and order given, "
            f"got {settings.protocol} and {settings.order}."
        )
    if settings.protocol == "open" and settings.order != "given":
        raise OptionError("An open question lists no options: expected order given, got varied.")
    if settings.order == "varied" and settings.paraphrase == ALL:
        raise OptionError("Expected either order=varied or paraphrase=all, got both.")
    if spec.kind == "multilabel" and settings.paraphrase == ALL:
        raise OptionError(f"{spec.title} is multi-label: expected one wording, got paraphrase=all.")
    if view and spec.dimensions == 2:
        raise OptionError(f"{spec.title} holds images, not volumes: {sorted(view)} do not apply.")
    if "size" in options and spec.layout != "medmnist":
        raise OptionError(f"{spec.title} comes in one size: `size` does not apply.")
    if "frame" in options and not (spec.layout == "table" and spec.dimensions == 2):
        raise OptionError(f"{spec.title} has no multi-frame DICOM files: `frame` does not apply.")
