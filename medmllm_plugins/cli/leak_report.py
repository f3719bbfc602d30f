"""What leaks in the data sets on this machine, for ``medmllm datasets --check``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from medmllm_plugins.cli.dataset_summary import counts_table
from medmllm_plugins.data.core.dataset_spec import DatasetSpec, parse_spec
from medmllm_plugins.data.core.documents import FOLDS
from medmllm_plugins.data.core.leaks import RANDOM_TEST, Leaks, Pair
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.dataset import Dataset, load_dataset
from medmllm_plugins.data.loading.dataset_folder import is_present
from medmllm_plugins.data.loading.leak_scan import scan_for_leaks
from medmllm_plugins.errors import DataError, MedMLLMError, OptionError, shown
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.plugins.task_files import read_yaml
from medmllm_plugins.prompts.task_names import settings_of
from medmllm_plugins.utils.suggestions import did_you_mean

SHOWN: Final = 10
"""Pairs or groups listed in the text; JSON lists all."""


@dataclass(frozen=True, slots=True)
class LeakReport:
    """The outcome for one data set; where it cannot be read, ``error`` says why, and the others are ``None``."""

    name: str
    data: Dataset | None = None
    leaks: Leaks | None = None
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-safe mapping."""
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


def known_specs() -> dict[str, DatasetSpec]:
    """Return data sets by name: declared ones, and those inside a task's own YAML file."""
    specs = dataset_specs()
    for entry in get_manager().tasks().values():
        try:
            declared = (settings_of(read_yaml(entry.path)) or {}).get("dataset")
            if isinstance(declared, Mapping):
                spec = parse_spec(declared, str(entry.path))
                specs.setdefault(spec.name, spec)
        except (MedMLLMError, OSError):  # the host reports faulty tasks
            continue
    return specs


def check_datasets(names: Sequence[str]) -> list[LeakReport]:
    """Read data sets and look for leaks; files that cannot be read are left out and listed."""
    specs = known_specs()
    if unknown := [name for name in names if name not in specs]:
        raise unknown_dataset(unknown[0], specs)
    return [_check(specs[name]) for name in dict.fromkeys(names) or [name for name in specs if is_present(specs[name])]]


def unknown_dataset(name: str, known: Mapping[str, object] | Sequence[str]) -> OptionError:
    """Return the error about the name of a data set that does not exist."""
    hint = did_you_mean(name, known) or "`medmllm datasets` lists all."
    return OptionError(f"Expected the name of a data set, got {shown(name)}. {hint}")


def exit_status(reports: Sequence[LeakReport], named: bool) -> int:
    """Return 1 if anything leaks, or if a data set that the user named cannot be read."""
    return int(
        any((report.leaks is not None and report.leaks.leaking) or (named and report.error) for report in reports)
    )


def report_lines(report: LeakReport) -> list[str]:
    """Return the text about a data set, line by line."""
    data, leaks = report.data, report.leaks
    if data is None or leaks is None:
        return [f"{report.name}: not checked", *(f"    {line}" for line in report.error.splitlines())]
    noun = "volumes" if data.spec.dimensions == 3 else "images"
    return [f"{report.name}: {data.spec.title}", *(f"    {line}" for line in _details(data, leaks, noun))]


def _details(data: Dataset, leaks: Leaks, noun: str) -> Iterator[str]:
    sizes = ", ".join(f"{fold} {len(data.select((fold,)))}" for fold in FOLDS)
    yield f"documents  {len(data.documents)} ({sizes})"
    yield from counts_table(data)
    yield f"folds      {data.folds_hash}"
    yield f"groups     {leaks.groups}; in more than one fold: {len(leaks.divided) or 'none'}"
    yield from _listed([f"{group}: {', '.join(folds)}" for group, folds in leaks.divided.items()])
    identical = sum(pair.identical for pair in leaks.pairs)
    kind = (
        "identical pairs" if leaks.compared == "identical" else f"near-duplicate pairs, {identical} of them identical"
    )
    why = f" ({leaks.why})" if leaks.why else ""
    yield f"{noun:<10} {len(leaks.pairs)} {kind}; across folds: {len(leaks.crossing) or 'none'}{why}"
    yield from _listed([_pair_text(pair) for pair in leaks.crossing])
    yield f"labels     pairs with two labels: {len(leaks.disagreeing) or 'none'}"
    yield from _listed([_pair_text(pair) for pair in leaks.disagreeing])
    test = round(RANDOM_TEST * leaks.documents)
    yield (
        f"expected   splitting image by image would leave about {leaks.random_exposed:.0f} of {test} test {noun} "
        f"with a counterpart in another fold, and {leaks.random_divided:.0f} with one of their group there"
    )
    if data.skipped:
        yield f"left out   {len(data.skipped)} files that cannot be read"
        yield from _listed(data.skipped)
    if leaks.test_leaking:
        yield (
            f"LEAK       {leaks.test_leaking} of {leaks.test} test {noun} have a counterpart in another fold: "
            f"{leaks.exposed} show the same, {leaks.test_divided} are of one group"
        )
    elif leaks.leaking:
        yield "LEAK       between the train and the validation fold; the test fold has no counterpart in another fold"
    else:
        yield "no leak across folds"


def _check(spec: DatasetSpec) -> LeakReport:
    try:
        data = load_dataset(spec, on_error="skip")
        return LeakReport(spec.name, data, scan_for_leaks(data))
    except DataError as error:
        return LeakReport(spec.name, error=str(error))


def _listed(items: Sequence[str]) -> list[str]:
    more = [f"{'':<13}… and {len(items) - SHOWN} more (--json lists all)"] if len(items) > SHOWN else []
    return [*(f"{'':<13}{item}" for item in items[:SHOWN]), *more]


def _pair_text(pair: Pair) -> str:
    first, second = (
        f"{document.id} [{' + '.join(document.labels) or 'no finding'}, {document.fold}]"
        for document in (pair.first, pair.second)
    )
    return f"{first} {'=' if pair.identical else '~'} {second}"
