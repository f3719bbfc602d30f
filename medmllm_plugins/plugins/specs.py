"""Declarations that plugins return from their hooks; they name code by dotted path and never import it."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from keyword import iskeyword
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Final

from medmllm_plugins.errors import OptionError, PluginError, shown

DEMO: Final = "demo"
"""The size name of the checkpoint that ships with this package."""
_LONGEST_LINE = 1000
_LONGEST_TEXT = 10_000
_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,99}")


def is_identifier(value: object) -> bool:
    """Return whether a value is a name: lower-case letters, digits and underscores, at most 100 of them."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptStyle:
    """How a model is prompted through its chat template.

    Attributes:
        system: the system prompt; ``None`` for the default of the chat template.
        question: the user's text; ``{question}`` stands for the question.
        opening: what the model writes before an answer, such as an opening tag; labels are scored after it.
        template: arguments of the chat template, such as ``{"enable_thinking": False}``.
        max_new_tokens: maximum length of the answer if the model needs more than a task allows, to reason first.

    Raises:
        OptionError: a value is not of the form above.
    """

    system: str | None = None
    question: str = "{question}"
    opening: str = ""
    template: Mapping[str, Any] = field(default_factory=dict, hash=False)
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.system is not None:
            _check_text("system", self.system)
        _check_text("question", self.question)
        _check_text("opening", self.opening)
        if "{question}" not in self.question:
            raise OptionError(f"Expected argument `question` to hold {{question}}, got {shown(self.question)}.")
        if not isinstance(self.template, Mapping):
            raise OptionError(f"Expected argument `template` to be a mapping, got {shown(self.template)}.")
        if self.max_new_tokens is not None and (type(self.max_new_tokens) is not int or self.max_new_tokens < 1):
            raise OptionError(
                f"Expected argument `max_new_tokens` to be a positive whole number, got {shown(self.max_new_tokens)}."
            )
        object.__setattr__(self, "template", MappingProxyType(dict(self.template)))

    def ask(self, question: str) -> str:
        """Return the user's text for a question."""
        return self.question.replace("{question}", question)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model for ``lmms-eval --model NAME``.

    A checkpoint of a family that transformers knows needs neither ``loader`` nor ``wrapper``.

    Attributes:
        name: the name after ``--model``; lower-case letters, digits and underscores.
        summary: one line for ``medmllm models``.
        sizes: short size name, as it may be written after ``pretrained=``, to hub id.
        base: size name to hub id of the general model that this size was tuned from, which ``twin=base`` stands for;
            without those that have no single one.
        family: the architecture: a ``model_type`` that this package knows
            (:mod:`medmllm_plugins.models.families.family_registry`), or ``"package.module:Class"``, a class of the
            plugin's own derived from :class:`medmllm_plugins.models.families.family.Family`. Any known one if empty.
        prompt_style: how it is prompted; has no effect with a ``loader`` or ``wrapper``.
        loader: ``"package.module:function"``, for a checkpoint format of its own: the function takes a
            :class:`medmllm_plugins.models.options.LoadOptions` and returns a
            :class:`medmllm_plugins.models.base.LoadedModel`.
        wrapper: ``"package.module.Class"``, a complete lmms-eval chat model class of the plugin's own.
        licence: licence of the weights, as their authors state it.
        citation: reference for the model.

    Raises:
        OptionError: a value is not of the form above.
    """

    name: str
    summary: str
    sizes: Mapping[str, str] = field(default_factory=dict, hash=False)
    base: Mapping[str, str] = field(default_factory=dict, hash=False)
    family: str = ""
    prompt_style: PromptStyle = field(default_factory=PromptStyle)
    loader: str | None = None
    wrapper: str | None = None
    licence: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_line("summary", self.summary)
        if self.loader is not None and self.wrapper is not None:
            raise OptionError(
                "Expected at most one of the arguments `loader` and `wrapper`, "
                f"got loader={shown(self.loader)} and wrapper={shown(self.wrapper)}."
            )
        if self.loader is not None:
            _check_function("loader", self.loader)
        if self.wrapper is not None and (
            not isinstance(self.wrapper, str) or "." not in self.wrapper or not _dotted(self.wrapper)
        ):
            raise OptionError(f'Expected argument `wrapper` to be "package.module.Class", got {shown(self.wrapper)}.')
        if isinstance(self.family, str) and ":" in self.family:
            _check_function("family", self.family)
        elif not isinstance(self.family, str) or (self.family and not is_identifier(self.family)):
            raise OptionError(
                f'Expected argument `family` to be a `model_type` or "package.module:Class", got {shown(self.family)}.'
            )
        if not isinstance(self.prompt_style, PromptStyle):
            raise OptionError(f"Expected argument `prompt_style` to be a PromptStyle, got {shown(self.prompt_style)}.")
        for name in ("sizes", "base"):
            ids = getattr(self, name)
            if not isinstance(ids, Mapping) or not all(
                isinstance(text, str) and text for pair in ids.items() for text in pair
            ):
                raise OptionError(f"Expected argument `{name}` to map size names to hub ids, got {shown(ids)}.")
        if unknown := sorted(set(self.base) - set(self.sizes)):
            raise OptionError(f"Expected argument `base` to have names of `sizes`, got {unknown}.")
        _check_text("licence", self.licence)
        _check_text("citation", self.citation)
        object.__setattr__(self, "sizes", MappingProxyType(dict(self.sizes)))
        object.__setattr__(self, "base", MappingProxyType(dict(self.base)))

    def base_of(self, pretrained: str) -> str | None:
        """Return the hub id of the general model that a checkpoint was tuned from; ``None`` if it is not known.

        Args:
            pretrained: a size name, a hub id, or a folder that has the name of one.
        """
        for size, checkpoint in self.sizes.items():
            if pretrained in (size, checkpoint) or Path(pretrained).name == PurePosixPath(checkpoint).name:
                return self.base.get(size)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFolder:
    """A folder of task YAML files; its ``datasets`` subfolder holds data-set declarations.

    Attributes:
        path: an absolute folder, or ``"package:folder"``, a folder inside an installed package. Name a top-level
            package (``"package:sub/folder"``): to find a nested one, Python imports the packages around it.

    Raises:
        OptionError: ``path`` has neither form. Whether the folder exists is checked by :meth:`resolve`.
    """

    path: str

    def __post_init__(self) -> None:
        if isinstance(self.path, str) and os.path.isabs(self.path):
            return
        package, _, folder = self.path.partition(":") if isinstance(self.path, str) else ("", "", "")
        inside = PurePosixPath(folder)
        if not _dotted(package) or not folder or inside.is_absolute() or ".." in inside.parts:
            raise OptionError(
                f'Expected argument `path` to be an absolute folder or "package:folder", got {shown(self.path)}.'
            )

    def resolve(self) -> Path:
        """Return the folder on disk, without importing the package.

        Raises:
            PluginError: there is no such package or folder, or the package is zipped.
        """
        if os.path.isabs(self.path):
            candidates = [Path(self.path)]
        else:
            package, _, folder = self.path.partition(":")
            spec = importlib.util.find_spec(package)
            if spec is None or spec.submodule_search_locations is None:
                raise PluginError(f"Expected {package!r} of {self.path!r} to be an installed package, got none.")
            candidates = [Path(location) / folder for location in spec.submodule_search_locations]
        for candidate in candidates:
            if candidate.is_dir():
                return candidate
        searched = ", ".join(str(candidate) for candidate in candidates)
        raise PluginError(
            f"Expected {self.path!r} to be a folder on disk, but there is none at {searched}. "
            "Is it listed in the package's package-data, and the package not zipped?"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSpec:
    """A probe for ``medmllm diagnose --protocol NAME``.

    Attributes:
        name: lower-case letters, digits and underscores.
        target: ``"package.module:function"``, which takes a ``ProbeData`` and returns a ``FittedProbe``, both of
            :mod:`medmllm_plugins.probes.probe_methods`.
        summary: one line for people.
        description: completes "The probe is" in the methods section of a report; its name if empty.
        citation: reference for the probe.

    Raises:
        OptionError: a value is not of the form above.
    """

    name: str
    target: str
    summary: str
    description: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        _check_analysis(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionSpec:
    """An attribution method for ``method=NAME`` of a ``med_attr`` task.

    Attributes:
        name: lower-case letters, digits and underscores.
        target: ``"package.module:function"``, a ``Method`` of
            :mod:`medmllm_plugins.attribution.methods.layer_methods`: it takes an ``AttributionInput``, names of layers
            and a ``MethodConfig``, and returns ``Scores`` for each layer.
        summary: one line for people.
        description: follows its name in the methods section of a report.
        citation: reference for the method.
        at: ``"layers"``, those that the user chooses, or the only layer that it attributes to, such as
            ``"pixels"``, ``"prompt"`` or ``"llm.embed"``.
        gradients: whether it needs gradients, which quantised weights do not have.
        captum: whether it runs Captum's code, so that the report cites Captum too.

    Raises:
        OptionError: a value is not of the form above.
    """

    name: str
    target: str
    summary: str
    description: str = ""
    citation: str = ""
    at: str = "layers"
    gradients: bool = True
    captum: bool = False

    def __post_init__(self) -> None:
        _check_analysis(self)
        _check_line("at", self.at)


@dataclass(frozen=True, slots=True, kw_only=True)
class InterventionSpec:
    """An intervention for ``intervention=NAME`` of a ``med_patch`` task.

    Attributes:
        name: lower-case letters, digits and underscores.
        target: ``"package.module:function"``, which takes a ``LoadedModel``, the question, the images of a batch of
            documents, the labels and the number of blocks between two sites (0 for the default), and returns the label
            scores of each document by the name of a condition.
        summary: one line for people.
        description: follows its name in the methods section of a report.
        citation: reference for the intervention.

    Raises:
        OptionError: a value is not of the form above.
    """

    name: str
    target: str
    summary: str
    description: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        _check_analysis(self)


def _check_analysis(spec: ProbeSpec | AttributionSpec | InterventionSpec) -> None:
    _check_name(spec.name)
    _check_function("target", spec.target)
    _check_line("summary", spec.summary)
    _check_text("description", spec.description)
    _check_text("citation", spec.citation)


def _dotted(path: str) -> bool:
    return all(part.isidentifier() and not iskeyword(part) for part in path.split("."))


def _check_name(value: object) -> None:
    if not is_identifier(value):
        raise OptionError(
            "Expected argument `name` to be lower-case letters, digits and underscores, the first no underscore, "
            f"got {shown(value)}."
        )


def _check_line(argument: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip() or len(value.splitlines()) != 1 or len(value) > _LONGEST_LINE:
        raise OptionError(
            f"Expected argument `{argument}` to be one line of text of at most {_LONGEST_LINE} characters, got "
            f"{shown(value)}."
        )


def _check_function(argument: str, value: object) -> None:
    module, _, function = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not _dotted(module) or not _dotted(function) or "." in function:
        raise OptionError(f'Expected argument `{argument}` to be "package.module:function", got {shown(value)}.')


def _check_text(argument: str, value: object) -> None:
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise OptionError(f"Expected argument `{argument}` to be a string, got {shown(value)}.")
