"""What is installed, what is found, what is missing, and the command that mends it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.layouts.layout_registry import layout
from medmllm_plugins.data.loading.catalogue import dataset_specs, read_catalogue
from medmllm_plugins.errors import DataError, one_line
from medmllm_plugins.plugins.entry_points import damaged_entry_points
from medmllm_plugins.plugins.manager import DISABLE, get_manager
from medmllm_plugins.plugins.plugin_records import IN_PROCESS, USER, Failure
from medmllm_plugins.prompts.task_names import declared_tasks
from medmllm_plugins.utils.environment import package_versions
from medmllm_plugins.utils.user_dirs import DATA_VARIABLE

State = Literal["ok", "missing", "broken"]


DATA_SET: Final = "data set "
"""What the findings about data sets begin with."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    Attributes:
        what: its name.
        state: ``ok``; ``missing`` (something optional is not there); ``broken`` (evaluation will not work).
        detail: what was found.
        mend: the command or step that puts it right; empty when there is nothing to do.
    """

    what: str
    state: State
    detail: str
    mend: str = ""

    def to_dict(self) -> dict[str, str]:
        """As a JSON-safe mapping."""
        return asdict(self)


def examine() -> list[Finding]:
    """Look at packages, devices, the demo checkpoint, data sets and plugins, in that order."""
    return [*_packages(), _device(), _demo(), *_datasets(), *_plugins()]


def brief(findings: Sequence[Finding]) -> list[Finding]:
    """The findings with all missing data sets in one, at the end of the data sets that are there."""
    missing = [found for found in findings if found.state == "missing" and found.what.startswith(DATA_SET)]
    if len(missing) < 2:
        return list(findings)
    names = ", ".join(found.what.removeprefix(DATA_SET) for found in missing)
    where = os.environ.get(DATA_VARIABLE)
    together = Finding(
        f"{len(missing)} other data sets",
        "missing",
        f"not below {Path(where).expanduser().resolve()}: {names}"
        if where
        else f"${DATA_VARIABLE} is not set: {names}",
        "medmllm datasets NAME says where to get one; medmllm doctor --all lists all",
    )
    kept = [found for found in findings if found not in missing]
    last = max((i for i, found in enumerate(kept) if found.what.startswith(DATA_SET)), default=len(kept) - 1)
    return [*kept[: last + 1], together, *kept[last + 1 :]]


def _packages() -> list[Finding]:
    return [
        Finding(name, "ok", version)
        if version is not None
        else Finding(name, "broken", "not installed", f"pip install {name}")
        for name, version in package_versions().items()
    ]


def _device() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library of torch's that does not load here
        return Finding("device", "broken", f"torch cannot be imported: {one_line(error)}", "pip install torch")
    if not torch.cuda.is_available():
        return Finding(
            "device",
            "ok",
            "CPU only (float32)",
            f"for a GPU, install a driver that knows CUDA {torch.version.cuda}" if torch.version.cuda else "",
        )
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    dtype = "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return Finding("device", "ok", f"{names} (default dtype {dtype})")


def _demo() -> Finding:
    folder = resources.files("medmllm_plugins") / "models" / "demo"
    missing = [name for name in ("config.json", "model.safetensors", "tokenizer.json") if not (folder / name).is_file()]
    if missing:
        mend = "pip install --force-reinstall --no-deps medmllm-plugins"
        return Finding("demo checkpoint", "broken", f"{', '.join(missing)} not found", mend)
    return Finding("demo checkpoint", "ok", "embedded; use --model medm_vl --model_args pretrained=demo")


def _datasets() -> list[Finding]:
    return [
        Finding(f"{DATA_SET}{row['name']}", "ok", row["found"])
        if row["found"]
        else Finding(f"{DATA_SET}{row['name']}", "missing", f"not found at {row['looked_at']}", row["mend"])
        for row in datasets()
    ] + [
        Finding("faulty declaration", "missing", fault, "correct or remove this file; all others work")
        for fault in read_catalogue().faults
    ]


def datasets() -> list[dict[str, Any]]:
    """Every declared data set: what it is, its task, and whether its folder is there."""
    variable = os.environ.get(DATA_VARIABLE)
    tasks = declared_tasks()
    rows = []
    for spec in dataset_specs().values():
        folder = Path(variable).expanduser() / spec.folder if variable and spec.folder else None
        if not spec.folder:
            found, looked_at, mend = "drawn by code", "", ""
        elif folder is None:
            found, looked_at = "", f"${DATA_VARIABLE} (not set)"
            mend = f"export {DATA_VARIABLE}=FOLDER holding {spec.folder}/; get the set from {spec.download}"
        elif _is_there(spec, folder):
            found, looked_at, mend = str(folder.resolve()), str(folder.resolve()), ""
        else:
            found, looked_at, mend = "", str(folder.resolve()), f"get the set from {spec.download}"
        task = f"med_cls_{spec.name}"
        rows.append(
            {
                "name": spec.name,
                "title": spec.title,
                "classes": list(spec.labels),
                "task": task if task in tasks else None,
                "licence": spec.licence,
                "citation": spec.citation,
                "found": found,
                "looked_at": looked_at,
                "mend": mend,
            }
        )
    return rows


def _is_there(spec: DatasetSpec, folder: Path) -> bool:
    try:
        return layout(spec.layout).is_there(spec, folder)
    except (DataError, OSError):  # a plugin's layout that cannot be had, a folder that cannot be looked into
        return False


def models() -> list[dict[str, Any]]:
    """Every registered model: name, sizes and where each comes from."""
    return [
        {
            "name": spec.name,
            "summary": spec.summary,
            "sizes": dict(spec.sizes),
            "licence": spec.licence,
            "citation": spec.citation,
        }
        for spec in get_manager().models().values()
    ]


def _plugins() -> list[Finding]:
    manager = get_manager()
    good = [
        Finding(f"plugin {plugin.name}", "ok", f"{plugin.distribution} {plugin.version}")
        for plugin in manager.plugins
        if not plugin.disabled
    ]
    bad = [
        Finding(
            f"plugin {failure.plugin}",
            "missing",
            str(failure),
            _mend(failure),
        )
        for failure in manager.failures
    ]
    slow = [Finding("slow plugin", "ok", notice, "MEDMLLM_DISABLE=NAME leaves it out") for notice in manager.notices]
    return [*good, *bad, *slow, *_metadata()]


def _metadata() -> list[Finding]:
    """Installed packages whose entry points cannot be read: the host then sees no plugin at all."""
    return [
        Finding(
            f"metadata of {distribution}",
            "broken",
            f"lmms-eval finds no plugin, ours included: {message}",
            f"pip install --force-reinstall --no-deps {distribution}; meanwhile use `medmllm lmms-eval …`",
        )
        for distribution, message in damaged_entry_points().items()
    ]


def _mend(failure: Failure) -> str:
    if failure.distribution == IN_PROCESS:
        return "mend it where this process registers it"
    if failure.plugin == USER.name:
        return "correct or remove it; all others work"
    if not failure.distribution:
        return f"name only plugins that `medmllm plugins` lists in {DISABLE}"
    return f"pip install --upgrade {failure.distribution}, or MEDMLLM_DISABLE={failure.plugin}"
