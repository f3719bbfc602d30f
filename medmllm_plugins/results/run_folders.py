"""Run folders below a folder, so that a command takes what was given to an evaluation as ``--output_path``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from medmllm_plugins.errors import DataError, OptionError, shown

MANIFEST: Final = "manifest.json"
_PARENT: Final = "medmllm_runs"
_SHOWN: Final = 10


def run_folders(folder: Path) -> list[Path]:
    """Return the run folders that a path means, the oldest first.

    Args:
        folder: a run folder, which means itself; or the ``--output_path`` of evaluations, or the folder in it that
            holds their runs. Folders whose names begin with a dot, as those of unfinished answers do, are left out.

    Returns:
        The folder itself where there is no run below it, so that whoever reads it says what is missing.
    """
    if (folder / MANIFEST).is_file():
        return [folder]
    inside = [path.parent for pattern in (f"{_PARENT}/*", "*") for path in folder.glob(f"{pattern}/{MANIFEST}")]
    inside = [path for path in inside if not path.name.startswith(".")]
    return sorted(dict.fromkeys(inside), key=lambda path: (_started(path), path.name)) or [folder]


def one_run(folder: Path, *, holding: str = "") -> Path:
    """Return the one run folder that a path means.

    Args:
        folder: see :func:`run_folders`.
        holding: a folder that the run must have, such as ``"features"``, where several runs are to choose from.

    Raises:
        OptionError: there are several; the message lists them with their dates.
        DataError: ``folder`` does not exist.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: expected a run folder, got {'a file' if folder.exists() else 'nothing of that name'}. Name the "
            "folder that an evaluation's log ends with, or its --output_path."
        )
    runs = run_folders(folder)
    if len(runs) > 1 and holding:
        runs = [run for run in runs if (run / holding).is_dir()] or runs
    if len(runs) == 1:
        return runs[0]
    listed = "\n".join(f"  {run}  ({describe_run(run)})" for run in runs[-_SHOWN:][::-1])
    more = f"\n  … and {len(runs) - _SHOWN} older" if len(runs) > _SHOWN else ""
    raise OptionError(
        f"{folder}: expected one run, got {len(runs)}. Name one of them, here the latest first:\n{listed}{more}"
    )


def describe_run(folder: Path) -> str:
    """Return when a run was started, of which model and tasks, in a few words."""
    manifest = _manifest(folder)
    model, tasks = manifest.get("model"), manifest.get("tasks")
    name = model.get("name") if isinstance(model, dict) else None
    words = [_started(folder)[:16].replace("T", " ") or "no date"]
    words += [_cut(name)] if name else []
    words += [_cut(", ".join(map(str, tasks)))] if isinstance(tasks, dict) and tasks else []
    return ", ".join(words + ([] if manifest.get("finished") else ["not finished"]))


def _cut(text: object) -> str:
    return shown(" ".join(str(text).split()))[1:-1][:60]


def _started(folder: Path) -> str:
    return str(_manifest(folder).get("started") or "")


def _manifest(folder: Path) -> dict[str, object]:
    """Return the manifest as far as it can be read; whoever reads the run reports damage."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) else {}
