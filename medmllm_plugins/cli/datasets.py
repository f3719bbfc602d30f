"""``medmllm datasets --check``: what leaks in the data sets on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medmllm_plugins.cli.new_task import counts_table
from medmllm_plugins.data.core.dataset_spec import DatasetSpec, parse_spec
from medmllm_plugins.data.core.documents import FOLDS
from medmllm_plugins.data.core.leaks import RANDOM_TEST, Leaks, Pair, check
from medmllm_plugins.data.layouts.layout_registry import layout
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.dataset import Dataset, load_dataset
from medmllm_plugins.errors import DataError, MedMLLMError, OptionError, shown
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.plugins.task_files import read_yaml
from medmllm_plugins.utils.suggestions import did_you_mean
from medmllm_plugins.utils.user_dirs import DATA_VARIABLE

SHOWN: Final = 10
"""So many pairs or groups are listed for people; of the rest, the number. JSON has all."""


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome for one data set.

    Attributes:
        name: the data set's name.
        data: what was read; ``None`` where it could not be.
        leaks: what leaks; ``None`` likewise.
        error: why it could not be read.
    """

    name: str
    data: Dataset | None = None
    leaks: Leaks | None = None
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As a JSON-safe mapping."""
        if self.data is None or self.leaks is None:
            return {"name": self.name, "error": self.error}
        return {
            "name": self.name,
            "title": self.data.spec.title,
            "fingerprint": self.data.fingerprint,
            "folds_hash": self.data.folds_hash,
            "counts": self.data.counts(),
            "skipped": list(self.data.skipped),
            **self.leaks.to_dict(),
        }


def known_sets() -> dict[str, DatasetSpec]:
    """Data sets by name: declared ones, and those that stand in a task's own YAML file."""
    found = dataset_specs()
    for entry in get_manager().tasks().values():
        try:
            metadata = read_yaml(entry.path).get("metadata")
            ours = metadata.get("medmllm") if isinstance(metadata, Mapping) else None
            declared = ours.get("dataset") if isinstance(ours, Mapping) else None
            if isinstance(declared, Mapping):
                spec = parse_spec(declared, str(entry.path))
                found.setdefault(spec.name, spec)
        except (MedMLLMError, OSError):  # a faulty task is the host's to report
            continue
    return found


def check_sets(names: Sequence[str]) -> list[Report]:
    """Read data sets and look for leaks; files that cannot be read are left out and listed.

    Args:
        names: their names; none for all whose folder is on this machine.

    Raises:
        OptionError: there is no data set of a name.
    """
    sets = known_sets()
    if unknown := [name for name in names if name not in sets]:
        hint = did_you_mean(unknown[0], sets) or "`medmllm datasets` lists all."
        raise OptionError(f"Expected the name of a data set, got {shown(unknown[0])}. {hint}")
    wanted = list(dict.fromkeys(names)) or [name for name, spec in sets.items() if _is_here(spec)]
    return [_check(sets[name]) for name in wanted]


def status(reports: Sequence[Report], named: bool) -> int:
    """The exit status: 1 where something leaks, or a data set asked for by name cannot be read."""
    return int(any((one.leaks is not None and one.leaks.leaking) or (named and one.error) for one in reports))


def lines(report: Report) -> list[str]:
    """A report for people."""
    data, leaks = report.data, report.leaks
    if data is None or leaks is None:
        return [f"{report.name}: not checked", *(f"    {line}" for line in report.error.splitlines())]
    what = "volumes" if data.spec.dimensions == 3 else "images"
    sizes = {fold: len(data.select((fold,))) for fold in FOLDS}
    found = [
        f"documents  {len(data.documents)} ({', '.join(f'{fold} {count}' for fold, count in sizes.items())})",
        *counts_table(data),
        f"folds      {data.folds_hash}",
        f"groups     {leaks.groups}; on both sides of a split: {len(leaks.divided) or 'none'}",
        *_listed([f"{group}: {', '.join(folds)}" for group, folds in leaks.divided.items()]),
    ]
    identical = sum(pair.identical for pair in leaks.pairs)
    kind = (
        "identical pairs" if leaks.compared == "identical" else f"near-duplicate pairs, {identical} of them identical"
    )
    why = f" ({leaks.why})" if leaks.why else ""
    found.append(
        f"{what:<10} {len(leaks.pairs)} {kind}; on both sides of a split: {len(leaks.crossing) or 'none'}{why}"
    )
    found += _listed([_shown(pair) for pair in leaks.crossing])
    found.append(f"labels     pairs with two labels: {len(leaks.disagreeing) or 'none'}")
    found += _listed([_shown(pair) for pair in leaks.disagreeing])
    test = round(RANDOM_TEST * leaks.documents)
    found.append(
        f"otherwise  a random split, one by one, would be expected to leave {leaks.random_exposed:.0f} of {test} test "
        f"{what} with a counterpart in another fold, and {leaks.random_divided:.0f} with one of their group there"
    )
    if data.skipped:
        found += [f"left out   {len(data.skipped)} that cannot be read", *_listed(data.skipped)]
    if leaks.test_leaking:
        found.append(
            f"LEAK       {leaks.test_leaking} of {leaks.test} test {what} have a counterpart in another fold: "
            f"{leaks.exposed} show the same, {leaks.test_divided} are of one group"
        )
    elif leaks.leaking:
        found.append("LEAK       between the train and the validation fold; the test fold has no counterpart elsewhere")
    else:
        found.append("no leak across folds")
    return [f"{report.name}: {data.spec.title}", *(f"    {line}" for line in found)]


def _check(spec: DatasetSpec) -> Report:
    try:
        data = load_dataset(spec, on_error="skip")
        return Report(spec.name, data, check(data))
    except DataError as error:
        return Report(spec.name, error=str(error))


def _is_here(spec: DatasetSpec) -> bool:
    if not spec.folder:  # drawn by code
        return True
    root, folder = os.environ.get(DATA_VARIABLE), Path(spec.folder).expanduser()
    if not folder.is_absolute():
        if not root:
            return False
        folder = Path(root).expanduser() / folder
    try:
        return layout(spec.layout).is_there(spec, folder)
    except (DataError, OSError):  # a plugin's layout that cannot be had; `--check NAME` says why
        return False


def _listed(items: Sequence[str]) -> list[str]:
    more = [f"{'':<13}… and {len(items) - SHOWN} more (--json lists all)"] if len(items) > SHOWN else []
    return [*(f"{'':<13}{item}" for item in items[:SHOWN]), *more]


def _shown(pair: Pair) -> str:
    sign = "=" if pair.identical else "~"
    first, second = (
        f"{one.id} [{' + '.join(one.labels) or 'no finding'}, {one.fold}]" for one in (pair.first, pair.second)
    )
    return f"{first} {sign} {second}"
