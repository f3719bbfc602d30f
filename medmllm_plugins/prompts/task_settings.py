"""Settings of a task: ``metadata.medmllm`` of its YAML, and arguments after its name on the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from medmllm_plugins.data.core.data_faults import ON_ERROR, OnError
from medmllm_plugins.data.core.dataset_spec import DatasetSpec, parse_spec
from medmllm_plugins.data.core.documents import FOLDS, Fold
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.volume_view import View
from medmllm_plugins.errors import OptionError, shown
from medmllm_plugins.prompts.attribution_options import BASELINES, AttributionOptions
from medmllm_plugins.prompts.feature_options import EXTRA, FeatureOptions
from medmllm_plugins.prompts.protocols import PROTOCOLS, YES_NO, Protocol
from medmllm_plugins.prompts.wording import PARAPHRASES
from medmllm_plugins.utils.suggestions import did_you_mean

Purpose = Literal["classify", "probe", "attribute"]
CLASSIFYING: Final = "classify"
PROBING: Final = "probe"
ATTRIBUTING: Final = "attribute"
ORDERS: Final = ("given", "varied")
IMAGES: Final = ("shown", "blank", "shuffled")
ALL: Final = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """Everything that decides what is asked, and about which images.

    Attributes:
        dataset: the data set's declaration, its options changed by arguments.
        protocol: ``"closed_set"``, ``"letter"`` or ``"open"``.
        folds: which folds are evaluated.
        order: ``"given"``, or ``"varied"``: every document is asked with the options in several orders.
        paraphrase: which wording, 0 to 3, or ``"all"``: every document is asked in every wording.
        image: ``"shown"``, or as a control ``"blank"`` or ``"shuffled"`` (another group's image).
        on_error: ``"raise"``, or ``"skip"``: leave out files that cannot be read, and list them.
        view: how volumes are shown.
        finding: which finding of a multi-label set is asked about, where it is one.
        features: what is to be kept of a model's stages; ``None`` where the task does not probe.
        attributions: what is to be explained; ``None`` where the task explains nothing.
    """

    dataset: DatasetSpec
    protocol: Protocol = "closed_set"
    folds: tuple[Fold, ...] = ("test",)
    order: str = "given"
    paraphrase: int | str = 0
    image: str = "shown"
    on_error: OnError = "raise"
    view: View = field(default_factory=View)
    finding: str | None = None
    features: FeatureOptions | None = None
    attributions: AttributionOptions | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, for the manifest and the response cache's key."""
        more: dict[str, Any] = {}
        if self.features is not None:
            more = {"features": self.features.to_dict(), "finding": self.finding}
        if self.attributions is not None:
            more = {"attributions": self.attributions.to_dict(), "finding": self.finding}
        return {
            "dataset": self.dataset.name,
            "dataset_options": dict(self.dataset.options),
            "protocol": self.protocol,
            "folds": list(self.folds),
            "order": self.order,
            "paraphrase": self.paraphrase,
            "image": self.image,
            "on_error": self.on_error,
            "view": dataclasses.asdict(self.view) if self.dataset.dimensions == 3 else None,
            **more,
        }


def _choice(*allowed: str) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if value not in allowed:
            raise OptionError(f"Expected `{name}` to be one of {list(allowed)}, got {shown(value)}.")
        return value

    return check


def _whole(name: str, value: Any) -> int:
    text = str(value)
    if isinstance(value, bool) or not text.isascii() or not text.isdigit() or len(text) > 9:
        raise OptionError(f"Expected `{name}` to be a whole number, got {shown(value)}.")
    return int(text)


def _paraphrase(name: str, value: Any) -> int | str:
    if value == ALL:
        return ALL
    number = _whole(name, value)
    if number > PARAPHRASES:
        raise OptionError(f"Expected `{name}` to be 0 to {PARAPHRASES} or {ALL!r}, got {shown(value)}.")
    return number


def _folds(name: str, value: Any) -> tuple[Fold, ...]:
    parts = value.split("+") if isinstance(value, str) else value
    if not isinstance(parts, list) or not parts or any(part not in FOLDS for part in parts):
        raise OptionError(f"Expected `{name}` to be some of {list(FOLDS)}, joined by + in a name, got {shown(value)}.")
    return tuple(fold for fold in FOLDS if fold in parts)


def _text(name: str, value: Any) -> str:
    return str(value)


def _several(name: str, value: Any) -> tuple[str, ...]:
    parts = value.split("+") if isinstance(value, str) else value
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) and part for part in parts):
        raise OptionError(f"Expected `{name}` to be names, joined by + in a task's name, got {shown(value)}.")
    return tuple(dict.fromkeys(parts))


def _pool(name: str, value: Any) -> tuple[str, ...]:
    parts = value.split("+") if isinstance(value, str) else value
    if not isinstance(parts, list) or not parts or any(part not in EXTRA for part in parts):
        raise OptionError(f"Expected `{name}` to be some of {list(EXTRA)}, joined by + in a name, got {shown(value)}.")
    return tuple(pooling for pooling in EXTRA if pooling in parts)


_PLAIN: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "protocol": _choice(*PROTOCOLS),
    "folds": _folds,
    "order": _choice(*ORDERS),
    "paraphrase": _paraphrase,
    "image": _choice(*IMAGES),
    "on_error": _choice(*ON_ERROR),
}
_VIEW: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "slices": _whole,
    "montage": _whole,
    "plane": _text,
    "window": _text,
}
_OPTIONS: Final[Mapping[str, Callable[[str, Any], Any]]] = {"size": _whole, "frame": _text}
_PROBING: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "pool": _pool,
    "random_encoder": _choice("on", "off"),
    "finding": _text,
}
_ATTRIBUTING: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "n": _whole,
    "method": _several,
    "layer": _several,
    "target": _text,
    "baseline": _choice(*BASELINES),
    "steps": _whole,
    "finding": _text,
}
ARGUMENTS: Final = tuple(dict.fromkeys((*_PLAIN, *_VIEW, *_OPTIONS, *_PROBING, *_ATTRIBUTING)))
"""Arguments after a task's name, ``NAME:argument=value:…``, and keys of ``metadata.medmllm`` in a YAML."""
AFTERWARDS: Final = tuple(name for name in _ATTRIBUTING if name != "finding")
"""Arguments that decide how answers are explained, and not the answers themselves."""
_OWN: Final[Mapping[Purpose, Mapping[str, Any]]] = {PROBING: _PROBING, ATTRIBUTING: _ATTRIBUTING}
_WHERE: Final = (("med_probe", _PROBING), ("med_attr", _ATTRIBUTING))


def read_settings(task: object, metadata: object, *, purpose: Purpose = CLASSIFYING) -> TaskSettings:
    """Check ``metadata.medmllm`` of a task.

    Args:
        task: the task's name, for messages.
        metadata: the ``metadata`` of its YAML. ``medmllm.dataset`` is the name of a declared data set, or a
            declaration.
        purpose: whether the task asks only; or probes a model's stages, and so asks about all folds and keeps
            features; or explains answers.

    Raises:
        OptionError: a key or a value is wrong, or no data set has that name.
        DataError: the declaration is wrong.
    """
    values = metadata.get("medmllm") if isinstance(metadata, Mapping) else None
    if not isinstance(values, Mapping) or "dataset" not in values:
        raise OptionError(
            f"Task {shown(task)}: expected `metadata: {{medmllm: {{dataset: NAME}}}}`, got {shown(metadata)}."
        )
    if unknown := sorted(shown(key) for key in values if key not in ("dataset", *ARGUMENTS)):
        raise OptionError(
            f"Task {shown(task)}: expected keys among dataset, {', '.join(ARGUMENTS)}, got {', '.join(unknown[:5])}."
        )
    try:
        spec = _spec(values["dataset"], str(task))
        plain = {key: check(key, values[key]) for key, check in _PLAIN.items() if key in values}
        view = {key: check(key, values[key]) for key, check in _VIEW.items() if key in values}
        options = {key: check(key, values[key]) for key, check in _OPTIONS.items() if key in values}
        if spec.dimensions == 2 and spec.layout == "table" and "window" in view:
            options["window"] = view.pop("window")
        own = {**_PROBING, **_ATTRIBUTING} if purpose == CLASSIFYING else _OWN[purpose]
        arguments = {key: check(key, values[key]) for key, check in own.items() if key in values}
        others = sorted({*_PROBING, *_ATTRIBUTING} & set(values) - set(own))
        settings = TaskSettings(
            dataset=dataclasses.replace(spec, options={**spec.options, **options}), view=_view(view), **plain
        )
        _check_together(settings, view, options)
        if others or (purpose == CLASSIFYING and arguments):
            foreign = sorted(others or arguments)
            where = " and ".join(prefix for prefix, keys in _WHERE if set(foreign) & set(keys))
            raise OptionError(f"{foreign} apply to {where} tasks only.")
        if purpose == PROBING:
            settings = _probing(settings, plain, arguments)
        elif purpose == ATTRIBUTING:
            settings = _attributing(settings, arguments)
    except OptionError as error:
        raise OptionError(f"Task {shown(task)}: {error}") from error
    return settings


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
    options = {key: values[key] for key in ("plane", "window") if key in values}
    return View(**options) if count is None else View(slices=count, montage="montage" in values, **options)


def _probing(settings: TaskSettings, plain: Mapping[str, Any], arguments: Mapping[str, Any]) -> TaskSettings:
    """Return the settings of a task that probes: all folds, one question for each document."""
    if "folds" in plain:
        raise OptionError("Probes are fitted on the train fold and tested on the test fold: leave `folds` out.")
    finding = _one_question(settings, arguments.get("finding"), "Probes", "a probe predicts one finding")
    features = FeatureOptions(
        extra=arguments.get("pool", ()), random_encoder=arguments.get("random_encoder", "on") == "on"
    )
    return dataclasses.replace(settings, folds=FOLDS, finding=finding, features=features)


def _attributing(settings: TaskSettings, arguments: Mapping[str, Any]) -> TaskSettings:
    """Return the settings of a task that explains: one question for each document."""
    finding = _one_question(settings, arguments.get("finding"), "Attributions", "an attribution explains one finding")
    if settings.image != "shown":
        raise OptionError("Attributions explain the image that was shown: leave `image` out.")
    names = {"method": "methods", "layer": "layers"}
    options = AttributionOptions(**{names.get(key, key): value for key, value in arguments.items() if key != "finding"})
    options.check(tuple(YES_NO) if settings.dataset.kind == "multilabel" else settings.dataset.labels)
    return dataclasses.replace(settings, finding=finding, attributions=options)


def _one_question(settings: TaskSettings, finding: str | None, who: str, why: str) -> str | None:
    """Return the finding that is asked about, after checking that each document is asked about once."""
    if settings.order != "given" or settings.paraphrase == ALL:
        raise OptionError(
            f"{who} need one question for each image: expected order=given and one paraphrase, got several."
        )
    labels = settings.dataset.labels
    if settings.dataset.kind == "multilabel":
        if finding not in labels:
            raise OptionError(
                f"{settings.dataset.title} is multi-label, and {why}: expected finding= one of {list(labels)}, got "
                f"{finding!r}."
            )
    elif finding is not None:
        raise OptionError(f"{settings.dataset.title} has one class for each image: leave `finding` out.")
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
        raise OptionError(f"{spec.title} holds images, not volumes: leave {sorted(view)} out.")
    if "size" in options and spec.layout != "medmnist":
        raise OptionError(f"{spec.title} comes in one size: leave `size` out.")
    if "frame" in options and not (spec.layout == "table" and spec.dimensions == 2):
        raise OptionError(f"{spec.title} holds no films: leave `frame` out.")
