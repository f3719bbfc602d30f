"""What is fuzzed: a kind of file, whole examples of it, and the function of ours that reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from fuzz.mutators import Mutator

Files = dict[str, bytes]
"""Path below a case's folder to content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A reader under test.

    Attributes:
        name: of the target.
        seeds: makes whole examples, by name; the same ones each time.
        read: reads a folder with a case. What it returns is compared, by ``repr``, with what a second reading returns.
        mutators: pattern of a file's name to what damages it; files that none fits are left whole.
        longest: characters that an error's message may have.
        seconds: of processor time that a case may take.
        twice: whether files that are read are read again, with other bytes in uninitialised memory.
        refuses: whether some damage is an error; not so where whatever is unreadable is left out.
    """

    name: str
    seeds: Callable[[], Mapping[str, Files]]
    read: Callable[[Path], object]
    mutators: Mapping[str, Mutator]
    longest: int = 1500
    seconds: float = 2.0
    twice: bool = True
    refuses: bool = True

    def case(self, seeds: Mapping[str, Files], seed: int, number: int) -> Files:
        """Make the files of a case; the first ones are the whole examples."""
        names = list(seeds)
        if number < len(names):
            return dict(seeds[names[number]])
        # Text seeds a generator in the same way in every process and version of Python.
        random = Random(f"{self.name}/{seed}/{number}")
        files = dict(seeds[random.choice(names)])
        chosen = random.choice([(path, mutator) for path in files if (mutator := self._mutator(path))])
        path, mutator = chosen
        others = [other[path] for other in seeds.values() if path in other]
        files[path] = mutator(random, files[path], others)
        return files

    def _mutator(self, path: str) -> Mutator | None:
        return next((mutator for pattern, mutator in self.mutators.items() if Path(path).match(pattern)), None)


GROUPS: Final = {
    "images": "fuzz.image_targets",
    "volumes": "fuzz.volume_targets",
    "tables": "fuzz.table_targets",
    "runs": "fuzz.run_targets",
    "models": "fuzz.model_targets",
}
"""Targets of one process to the module that makes them, as ``TARGETS``; ``models`` imports torch."""
