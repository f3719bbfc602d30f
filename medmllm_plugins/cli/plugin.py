"""``medmllm plugin``: start a package with a plugin of one's own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from medmllm_plugins.cli.console import new_app
from medmllm_plugins.errors import OptionError
from medmllm_plugins.plugins.new_plugin import OWN_FAMILY, Kind, NewPlugin

app = new_app()
_FAMILY = "qwen2_5_vl"


@app.callback(subcommand_metavar="COMMAND")
def plugin() -> None:
    """Start a package with a plugin of your own."""


@app.command("new", epilog="Example: medmllm plugin new medmllm-my-probe --kind probe")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the package, as for `pip install NAME`.")],
    kind: Annotated[Kind, typer.Option(help="What the plugin adds.")],
    family: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help=f"Architecture of a model (model_type), or `own` for a new one; default: {_FAMILY}."
        ),
    ] = None,
    license: Annotated[
        str, typer.Option(metavar="SPDX", help="Licence for pyproject.toml, such as MIT; default: left open.")
    ] = "",
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to write; default: NAME.")] = None,
) -> None:
    """Write a package with a small working plugin, its tests and a workflow that publishes it.

    Nothing is overwritten. Change the code step by step while the tests pass. See docs/plugins.md.
    """
    if family is not None and kind != "model":
        raise OptionError(f"Expected `--family` with --kind model alone, got --kind {kind}.")
    if family not in (None, OWN_FAMILY):
        _check_family(family)
    target = Path(name) if output is None else output
    package = NewPlugin(name=name, kind=kind, family=family or _FAMILY, license=license)
    paths = package.write(target)
    for path in paths:
        print(f"written    {path}")
    print(f"next       cd {shlex.quote(str(target))}")
    print('           pip install -e ".[test]"')
    print("           pytest")
    for number, command in enumerate(package.commands):
        print(f"{'           ' if number else 'then use   '}{command}")
    if not license:
        print('before you publish, choose a licence: add a LICENSE file, and license = "…" to pyproject.toml')


def _check_family(family: str) -> None:
    """Check that an architecture is known; this imports torch."""
    from medmllm_plugins.models.families.family_registry import FAMILIES

    if family not in FAMILIES:
        raise OptionError(f"Expected `--family` to be {OWN_FAMILY} or one of {', '.join(FAMILIES)}, got {family!r}.")
