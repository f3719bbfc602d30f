"""``medmllm check-plugin``: the conformance suite on an installed plugin."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from medmllm_plugins.cli.console import JsonFlag, MultiValueCommand, new_app, print_json, print_table
from medmllm_plugins.errors import OptionError
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.testing.bound_check import BoundCheck, checks_of
from medmllm_plugins.testing.check_subjects import InstalledPlugin, Spec
from medmllm_plugins.testing.resources import Resources, read_checkpoints
from medmllm_plugins.testing.runner import CheckResult, run_check
from medmllm_plugins.utils.progress import Progress
from medmllm_plugins.utils.suggestions import did_you_mean

app = new_app()


@app.command(cls=MultiValueCommand, epilog="Example: medmllm check-plugin example --pretrained example_vl=demo")
def check_plugin(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The plugin's name as `medmllm plugins` shows it, or its package.")
    ],
    pretrained: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL=]PATH",
            help="Checkpoint of a model, or of all models: a folder or a size name. Default: a tiny random one.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Check these models, data sets and methods alone.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder with the data sets. Default: MEDMLLM_DATA.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")] = "auto",
    json: JsonFlag = False,
) -> int:
    """Check that a plugin does what its hooks promise.

    Every model, data set, probe, attribution method and intervention of an installed plugin goes through the checks
    of its kind (docs/conformance.md). The exit status is 1 if one fails.
    """
    checkpoints = read_checkpoints(pretrained or [], "--pretrained")
    resources = Resources(checkpoint=checkpoints or None, data=data, device=device)
    checks = _select([check for spec in _specs(name) for check in checks_of(spec, resources)], only or [])
    results = []
    with Progress(f"checks of {name}", len(checks), "checks") as progress:
        for check in checks:
            results.append(run_check(check))
            progress.update()
    if json:
        print_json([result.to_dict() for result in results])
    else:
        columns = ("check", "subject", "result", "reason")
        rows = [(result.check, result.subject, result.status, result.reason) for result in results]
        print_table(columns, rows, map(_plain, results))
        counts = Counter(result.status for result in results)
        print(", ".join(f"{counts[status]} {status}" for status in ("passed", "failed", "not applicable")))
    return int(any(result.status == "failed" for result in results))


def _plain(result: CheckResult) -> str:
    reason = f": {result.reason}" if result.reason else ""
    return f"{result.status:14} {result.check} {result.subject}{reason}"


def _specs(name: str) -> list[Spec]:
    manager = get_manager()
    plugins = [info for info in manager.plugins if not info.disabled]
    known = [info.name for info in plugins]
    if name not in known:
        # Plugins are named by their entry point; authors think of the package that they install.
        packages = [info.name for info in plugins if _normalised(info.distribution) == _normalised(name)]
        if len(packages) != 1:
            advice = did_you_mean(name, known) or "`medmllm plugins` lists them."
            raise OptionError(f"Expected the name of a plugin, one of {', '.join(known)}, got {name!r}. {advice}")
        name = packages[0]
    return [InstalledPlugin(name), *manager.declared_by(name)]


def _normalised(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _select(checks: Sequence[BoundCheck], only: Sequence[str]) -> list[BoundCheck]:
    """Return the checks of some subjects; all for none.

    Raises:
        OptionError: the plugin has no subject of a name.
    """
    known = list(dict.fromkeys(check.subject_name for check in checks))
    if unknown := [name for name in only if name not in known]:
        raise OptionError(
            f"Expected `only` to name what the plugin declares, some of {', '.join(known)}, got {unknown[0]!r}. "
            f"{did_you_mean(unknown[0], known)}"
        )
    return [check for check in checks if not only or check.subject_name in only]
