"""Write the package of a new plugin from ``templates/``: code, test, README, and a workflow that publishes it."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from keyword import iskeyword
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import jinja2

from medmllm_plugins import __version__
from medmllm_plugins.errors import OptionError, shown
from medmllm_plugins.plugins.entry_points import normal
from medmllm_plugins.plugins.manager import Manager, get_manager
from medmllm_plugins.plugins.specs import is_identifier
from medmllm_plugins.utils.atomic_files import write_whole

Kind: TypeAlias = Literal["model", "dataset", "probe", "attribution", "intervention"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
OWN_FAMILY: Final = "own"
"""In place of a known architecture: the package gets a small one of its own."""
_DISTRIBUTION: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
"""The names that PyPI allows (the core metadata specification)."""
_LICENSE: Final = re.compile(r"[A-Za-z0-9.+() -]{1,200}")
_COMMON: Final = {
    "pyproject.toml": "pyproject.toml.jinja",
    "README.md": "README.md.jinja",
    ".gitignore": "gitignore.jinja",
    ".github/workflows/tests.yml": "workflow.yml.jinja",
}
_MODULES: Final[Mapping[Kind, Mapping[str, str]]] = {
    "model": {},
    "dataset": {
        "layout.py": "dataset_layout.py.jinja",
        "draw.py": "dataset_draw.py.jinja",
        "tasks/datasets/ITEM.yaml": "dataset_spec.yaml.jinja",
    },
    "probe": {"probe.py": "probe_module.py.jinja"},
    "attribution": {"method.py": "attribution_module.py.jinja"},
    "intervention": {"intervention.py": "intervention_module.py.jinja"},
}
"""Files inside the package beside ``__init__.py``, to their templates."""
_DECLARED: Final[Mapping[Kind, Callable[[Manager], object]]] = {
    "model": Manager.models,
    "dataset": Manager.tasks,
    "probe": Manager.probes,
    "attribution": Manager.attributions,
    "intervention": Manager.interventions,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPlugin:
    """The package of a new plugin.

    Attributes:
        name: name of the distribution, as in ``pip install NAME``.
        kind: what the plugin adds.
        family: for a model the ``model_type`` of its architecture, or :data:`OWN_FAMILY`.
        license: SPDX expression, such as ``Apache-2.0``; empty to leave the choice open.

    Raises:
        OptionError: the name cannot be that of a distribution, a Python package and a declaration, or is taken.
    """

    name: str
    kind: Kind
    family: str = "qwen2_5_vl"
    license: str = ""

    def __post_init__(self) -> None:
        if not _DISTRIBUTION.fullmatch(self.name) or len(self.name) > 50:
            raise OptionError(
                "Expected the name of a package, at most 50 letters, digits, dots, dashes and underscores that begin "
                f"and end with a letter or digit, got {shown(self.name)}."
            )
        if not self.package.isidentifier() or iskeyword(self.package) or not is_identifier(self.item):
            raise OptionError(
                f"Expected a name that can be imported, but {self.package!r} is no name of a Python package. Begin "
                "with a letter and avoid Python's keywords, such as medmllm-my-probe."
            )
        if self.package in sys.stdlib_module_names or _is_installed(self.package):
            raise OptionError(f"Expected a new name, but a package {self.package!r} is installed; choose another.")
        if self.item in dict(_DECLARED[self.kind](get_manager())):  # type: ignore[call-overload]
            raise OptionError(f"Expected a new name, but {self.kind} {self.item!r} exists; choose another.")
        if self.license and not _LICENSE.fullmatch(self.license):
            raise OptionError(
                f"Expected an SPDX expression such as Apache-2.0 or MIT as `--license`, got {shown(self.license)}."
            )

    @property
    def package(self) -> str:
        """Return the name for ``import``."""
        return normal(self.name).replace("-", "_")

    @property
    def item(self) -> str:
        """Return the name of what the plugin declares, as users write it on the command line."""
        return self.package.removeprefix("medmllm_") or self.package

    @property
    def commands(self) -> tuple[str, ...]:
        """Return commands that use the plugin, in order."""
        drawing = ("export MEDMLLM_DATA=/path/to/data", f"python -m {self.package}.draw $MEDMLLM_DATA")
        return (*(drawing if self.kind == "dataset" else ()), self._command)

    @property
    def _command(self) -> str:
        task = {
            "dataset": f"med_cls_{self.item}",
            "attribution": f"med_attr_demo:method={self.item}",
            "intervention": f"med_patch_demo:intervention={self.item}",
        }.get(self.kind, "med_probe_demo")
        if self.kind == "probe":
            return f"medmllm diagnose RUN_DIR --protocol {self.item}"
        model, checkpoint = (self.item, "FOLDER") if self.kind == "model" else ("medm_vl", "demo")
        return (
            f"lmms-eval --model {model} --model_args pretrained={checkpoint} --tasks {task} --batch_size 8 "
            "--output_path results"
        )

    def render(self) -> dict[str, str]:
        """Return the text of each file by its path in the package's folder, in POSIX form."""
        inside = {"__init__.py": f"{self.kind}_init.py.jinja", **_MODULES[self.kind]}
        if self.kind == "model" and self.family == OWN_FAMILY:
            inside["architecture.py"] = "model_architecture.py.jinja"
        templates = {
            **_COMMON,
            **{f"{self.package}/{path.replace('ITEM', self.item)}": name for path, name in inside.items()},
            f"tests/test_{self.package}.py": f"test_{self.kind}.py.jinja",
        }
        environment = _environment()
        return {path: environment.get_template(name).render(self._values()) for path, name in templates.items()}

    def _values(self) -> dict[str, Any]:
        """Return what the templates show."""
        major, minor = __version__.split(".")[:2]
        title = self.item.replace("_", " ")
        is_own = self.kind == "model" and self.family == OWN_FAMILY
        return {
            "name": self.name,
            "package": self.package,
            "item": self.item,
            "kind": self.kind,
            "family": self.family,
            "license": self.license,
            "title": title[:1].upper() + title[1:],
            "version": f"{major}.{minor}",
            "next_version": f"{major}.{int(minor) + 1}",
            "commands": self.commands,
            "description": _DESCRIPTIONS["own" if is_own else self.kind].format(family=self.family),
            "use": _USES["own" if is_own else self.kind],
        }

    def write(self, target: Path) -> list[Path]:
        """Write all files.

        Args:
            target: a folder that does not exist, or is empty.

        Returns:
            The files.

        Raises:
            OptionError: there is something in the folder, or it cannot be written.
        """
        texts = self.render()
        try:
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                raise OptionError(f"{target} exists, and nothing is overwritten; name another folder with --output.")
            for path, text in texts.items():
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                write_whole(target / path, text)
        except OSError as error:
            raise OptionError(
                f"{target}: expected a folder that can be written, got {error.strerror or error}. Name another one "
                "with --output."
            ) from error
        return [target / path for path in texts]


_DESCRIPTIONS: Final = {
    "model": "A checkpoint of the {family} family.",
    "own": "A ConvNet, an MLP connector and a Llama.",
    "dataset": "Images with bright and dark discs, a folder for each class.",
    "probe": "A nearest-centroid probe.",
    "attribution": "The length of the target's gradient at each row.",
    "intervention": "The image turned by 180 degrees, and a grey image.",
}
_USES: Final = {
    "model": "`FOLDER` is a checkpoint; `sizes` in `__init__.py` gives hub ids short names, such as `pretrained=7b`.",
    "own": "`FOLDER` is a checkpoint, as `save_pretrained` writes it. `architecture.py` says where its layers are.",
    "dataset": "`draw.py` draws the images, `layout.py` reads them, and the file in `tasks/datasets` has the classes.",
    "probe": "`RUN_DIR` is a run of a `med_probe` task. `probe.py` has the probe.",
    "attribution": "`method.py` has the method; the report of the run shows its maps and their checks.",
    "intervention": "`intervention.py` has the intervention; the report of the run shows what the answers lose.",
}


def _is_installed(package: str) -> bool:
    """Return whether a package of that name can be imported, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # such as a module without a spec
        return True


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(
            lambda name: files(str(__package__)).joinpath("templates", name).read_text("utf-8")
        ),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # source code, not HTML
    )
