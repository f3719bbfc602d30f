"""The page docs/conformance.md: every check, with what it asserts and why, from the docstrings.

``python -m medmllm_plugins.testing.conformance_page docs/conformance.md`` writes it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from medmllm_plugins.testing.check_registry import KINDS, Kind, find_check, names_of

_HEAD: Final = """# Conformance checks

Any plugin can be put through these checks: by pytest ([plugins.md](plugins.md#testing-a-plugin)), or on the command
line.

```
medmllm check-plugin example
medmllm check-plugin example --pretrained example_vl=demo --only example_vl --json
```

A check passes, fails with a message that says what to do, or does not apply, with the reason. Models are loaded in
float32 and asked three questions about random images of different sizes, or about volumes. Probes are fitted to planted
features. Attribution methods and interventions run on the model that ships with this package, on its phantoms.

The names of the checks follow the [stability policy](plugins.md#stability-policy). A minor version may add checks.
"""
_TITLES: Final[Mapping[Kind, str]] = {
    "plugin": "Every plugin, and every declaration that names code",
    "model": "Models",
    "tasks": "Task folders",
    "dataset": "Data sets",
    "probe": "Probes",
    "attribution": "Attribution methods",
    "intervention": "Interventions",
}


def conformance_page() -> str:
    """Return the page: for each kind of declaration a table of its checks."""
    parts = [_HEAD]
    for kind in KINDS:
        names = [name for name in names_of(kind) if kind == "plugin" or name not in names_of("plugin")]
        rows = [f"| `{name}` | {_words(kind, name)} |" for name in names]
        table = "\n".join(["| check | what it asserts, and why |", "| --- | --- |", *rows])
        parts.append(f"## {_TITLES[kind]}\n\n{table}\n")
    return "\n".join(parts)


def _words(kind: Kind, name: str) -> str:
    """Return the docstring of a check as one line of Markdown."""
    text = " ".join((inspect.getdoc(find_check(kind, name)) or "").split()).removeprefix("Assert that ")
    text = text[:1].upper() + text[1:]
    text = text.replace(":class:`medmllm_plugins.errors.MedMLLMError`", "`MedMLLMError`").replace("``", "`")
    return text.replace("|", "\\|")


def main(arguments: Sequence[str]) -> int:
    """Write the page to a file."""
    Path(arguments[0]).write_text(conformance_page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
