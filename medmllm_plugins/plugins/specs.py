"""What plugins return from their hooks: plain declarations that name code by dotted path and never import it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from keyword import iskeyword
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from medmllm_plugins.errors import OptionError, PluginError, shown
from medmllm_plugins.utils.identifiers import is_identifier

_LONGEST_LINE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model family for ``lmms-eval --model NAME``.

    Exactly one of ``loader`` and ``wrapper`` is given.

    Attributes:
        name: what stands behind ``--model``; lower-case letters, digits and underscores.
        summary: one line for ``medmllm models``.
        loader: ``"package.module:function"``; the function takes a
            :class:`medmllm_plugins.models.options.LoadOptions` and returns a
            :class:`medmllm_plugins.models.base.LoadedModel`, and this package's wrapper does the rest.
        wrapper: ``"package.module.Class"``, an lmms-eval chat model class of the plugin's own.
        sizes: short size name, as it may stand in ``pretrained=``, to hub id.
        licence: licence of the weights, as their authors state it.
        citation: reference for the model.

    Raises:
        OptionError: a value is not of the form above.
    """

    name: str
    summary: str
    loader: str | None = None
    wrapper: str | None = None
    sizes: Mapping[str, str] = field(default_factory=dict, hash=False)
    licence: str = ""
    citation: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_line("summary", self.summary)
        if (self.loader is None) == (self.wrapper is None):
            raise OptionError(
                "Expected exactly one of the arguments `loader` and `wrapper`, "
                f"but got loader={shown(self.loader)} and wrapper={shown(self.wrapper)}."
            )
        if self.loader is not None:
            _check_function("loader", self.loader)
        if self.wrapper is not None:
            _check_class("wrapper", self.wrapper)
        if not isinstance(self.sizes, Mapping) or not all(
            isinstance(text, str) and text for pair in self.sizes.items() for text in pair
        ):
            raise OptionError(f"Expected argument `sizes` to map size names to hub ids, but got {shown(self.sizes)}.")
        for name in ("licence", "citation"):
            if not isinstance(getattr(self, name), str):
                raise OptionError(f"Expected argument `{name}` to be a string, but got {shown(getattr(self, name))}.")
        object.__setattr__(self, "sizes", MappingProxyType(dict(self.sizes)))


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
                f'Expected argument `path` to be an absolute folder or "package:folder", but got {shown(self.path)}.'
            )

    def resolve(self) -> Path:
        """Find the folder on disk, without importing the package.

        Raises:
            PluginError: there is no such package or folder, or the package is zipped.
        """
        if os.path.isabs(self.path):
            candidates = [Path(self.path)]
        else:
            package, _, folder = self.path.partition(":")
            spec = importlib.util.find_spec(package)
            if spec is None or spec.submodule_search_locations is None:
                raise PluginError(f"Expected {package!r} of {self.path!r} to be an installed package, but found none.")
            candidates = [Path(location) / folder for location in spec.submodule_search_locations]
        for candidate in candidates:
            if candidate.is_dir():
                return candidate
        looked_at = ", ".join(str(candidate) for candidate in candidates)
        raise PluginError(
            f"Expected {self.path!r} to be a folder on disk, but there is none at {looked_at}. "
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

    Raises:
        OptionError: a value is not of the form above.
    """

    name: str
    target: str
    summary: str

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_function("target", self.target)
        _check_line("summary", self.summary)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionSpec:
    """An attribution method for ``method=NAME`` of a ``med_attr`` task.

    Attributes:
        name: lower-case letters, digits and underscores.
        target: ``"package.module:function"``, a ``Method`` of :mod:`medmllm_plugins.attribution.methods.layer_methods`: it takes a
            ``AttributionInput``, names of layers and a ``MethodConfig``, and returns ``Scores`` for each layer.
        summary: one line for people.
        at: where it looks: ``"layers"``, the layers that the user chooses, or the name of the one layer it has values
            for, such as ``"pixels"``, ``"prompt"`` or ``"llm.embed"``.
        gradients: whether it takes gradients, which quantised weights do not give.
        citation: reference for the method.
        captum: whether it runs on Captum's code, which a paper then cites too.

    Raises:
        OptionError: a value is not of the form above.
    """

    name: str
    target: str
    summary: str
    at: str = "layers"
    gradients: bool = True
    citation: str = ""
    captum: bool = False

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_function("target", self.target)
        _check_line("summary", self.summary)
        _check_line("at", self.at)


def _dotted(path: str) -> bool:
    return all(part.isidentifier() and not iskeyword(part) for part in path.split("."))


def _check_name(value: object) -> None:
    if not is_identifier(value):
        raise OptionError(
            "Expected argument `name` to be lower-case letters, digits and underscores, the first no underscore, "
            f"but got {shown(value)}."
        )


def _check_line(argument: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip() or len(value.splitlines()) != 1 or len(value) > _LONGEST_LINE:
        raise OptionError(
            f"Expected argument `{argument}` to be one line of text of at most {_LONGEST_LINE} characters, but got "
            f"{shown(value)}."
        )


def _check_function(argument: str, value: object) -> None:
    module, _, function = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not _dotted(module) or not _dotted(function) or "." in function:
        raise OptionError(f'Expected argument `{argument}` to be "package.module:function", but got {shown(value)}.')


def _check_class(argument: str, value: object) -> None:
    if not isinstance(value, str) or "." not in value or not _dotted(value):
        raise OptionError(f'Expected argument `{argument}` to be "package.module.Class", but got {shown(value)}.')
