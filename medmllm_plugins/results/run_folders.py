"""Run folders below a folder, so that a command takes what was given to an evaluation as ``--output_path``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from medmllm_plugins.errors import DataError, OptionError, shown
from medmllm_plugins.results.file_names import MANIFEST, RUNS
from medmllm_plugins.results.manifest import Manifest, read_manifest

BLIND: Final = "majority"
"""Method of the reference classifier that sees no image."""
_SHOWN: Final = 10
_DEPTH: Final = 4
"""Levels of folders that are searched for runs."""


def run_folders(folder: Path) -> list[Path]:
    """Return the run folders that a path means, the oldest first.

    Args:
        folder: a run folder, which means itself; or the ``--output_path`` of evaluations, the folder in it that holds
            their runs, or a folder of several of these, up to :data:`_DEPTH` levels above the runs. Folders whose names
            begin with a dot, as those of unfinished answers do, are left out.

    Returns:
        The folder itself where there is no run below it, so that whoever reads it says what is missing.
    """
    if (folder / MANIFEST).is_file():
        return [folder]
    return sorted(_runs_below(folder, _DEPTH), key=lambda path: (_started(path), path.name)) or [folder]


def _runs_below(folder: Path, levels: int) -> Iterator[Path]:
    """Yield the run folders below a folder; what is inside of one is not searched."""
    for path in _subfolders(folder):
        if (path / MANIFEST).is_file() and (folder.name == RUNS or _is_ours(path) or levels == _DEPTH):
            yield path
        elif levels > 1:
            yield from _runs_below(path, levels - 1)


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:  # a folder that cannot be read, or no folder
        return []


def _is_ours(folder: Path) -> bool:
    """Return whether a manifest is that of a run: other programs have files of that name, too."""
    return _manifest(folder) != Manifest()


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
    name = manifest.model.name if manifest.model else ""
    words = [(manifest.started or "no date")[:16].replace("T", " ")]
    words += [_cut(name)] if name else []
    words += [_cut(", ".join(manifest.tasks))] if manifest.tasks else []
    return ", ".join(words + ([] if manifest.finished else ["not finished"]))


def run_label(folder: Path) -> str:
    """Return a short name of the model of a run, with its checkpoint, adapter and repair; the folder's without one."""
    manifest = _manifest(folder)
    model = manifest.model
    if model is None or not model.name:
        # A model of lmms-eval's own has no entry, but its name is in the command.
        return _cut(str((manifest.command or {}).get("model") or folder.resolve().name))
    size = f" ({_cut(Path(model.pretrained).name)})" if model.pretrained else ""
    changes = {"adapter": model.peft, "repair": model.repair}
    return f"{_cut(model.name)}{size}" + "".join(
        f", {kind} {_cut(Path(path).name)}" for kind, path in changes.items() if path
    )


def finished_baselines(parents: Iterable[Path], fingerprint: str, pattern: str = "*") -> list[Path]:
    """Return the finished runs of reference classifiers that see images of a data set, the oldest first.

    Args:
        parents: folders of run folders.
        fingerprint: fingerprint of the data.
        pattern: which names of run folders to consider.
    """
    baselines = []
    for path in {path for parent in parents for path in parent.glob(f"{pattern}/{MANIFEST}")}:
        manifest = _manifest(path.parent)  # of a run that is being written, or damaged: the user did not name it
        method = (manifest.command or {}).get("baseline")
        same = any(entry.dataset_fingerprint == fingerprint for entry in manifest.tasks.values())
        if method and method != BLIND and same and manifest.finished:
            baselines.append((str(manifest.started), path.parent))
    return [folder for _, folder in sorted(baselines)]


def _cut(text: object) -> str:
    return shown(" ".join(str(text).split()))[1:-1][:60]


def _started(folder: Path) -> str:
    return _manifest(folder).started or ""


def _manifest(folder: Path) -> Manifest:
    """Return the manifest, an empty one where it cannot be read; whoever reads the run reports damage."""
    try:
        return read_manifest(folder)
    except DataError:
        return Manifest()
