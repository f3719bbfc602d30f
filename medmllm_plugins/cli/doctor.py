"""``medmllm doctor``: what is installed and what is missing, with the command to fix it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from medmllm_plugins.cli.console import JsonFlag, new_app, print_json, print_table
from medmllm_plugins.cli.datasets import dataset_rows, more_sets
from medmllm_plugins.data.loading.catalogue import read_catalogue
from medmllm_plugins.errors import one_line
from medmllm_plugins.plugins.entry_points import damaged_entry_points
from medmllm_plugins.plugins.manager import DISABLE, get_manager
from medmllm_plugins.plugins.plugin_records import IN_PROCESS, USER, Failure
from medmllm_plugins.utils.environment import package_versions
from medmllm_plugins.utils.user_dirs import DATA_VARIABLE

State = Literal["ok", "missing", "broken"]
DATA_SET: Final = "data set "
"""First words of the findings about data sets."""
_ORDER: Final[tuple[State, ...]] = ("ok", "missing", "broken")
app = new_app()


@dataclass(frozen=True, slots=True)
class Finding:
    """The state of a package, device, data set or plugin.

    Attributes:
        state: ``ok``; ``missing`` (something optional is not there); ``broken`` (evaluation will not work).
        detail: its version, path or fault.
        fix: the command or step that fixes it; empty when there is nothing to do.
    """

    what: str
    state: State
    detail: str
    fix: str = ""


@app.command(epilog="Example: medmllm doctor")
def doctor(
    all_sets: Annotated[bool, typer.Option("--all", help="List every missing data set on its own line.")] = False,
    json: JsonFlag = False,
) -> int:
    """Show what is installed, what is missing and how to fix it.

    The exit status is 1 if something is broken, so that evaluations would fail.
    """
    findings = examine()
    status = int(any(finding.state == "broken" for finding in findings))
    if json:
        print_json([asdict(finding) for finding in findings])
        return status
    findings = in_reading_order(findings if all_sets else merge_missing_sets(findings))
    width = max(len(finding.what) for finding in findings)
    print_table(
        ("state", "what", "detail", "fix"),
        ((finding.state, finding.what, finding.detail, finding.fix) for finding in findings),
        (line for finding in findings for line in _plain_lines(finding, width)),
    )
    return status


def _host() -> Iterator[Finding]:
    """Compare lmms-eval with what this package needs of it beyond its documented interface."""
    try:
        from medmllm_plugins.host.host_contract import host_differences
    except ImportError:  # lmms-eval is missing, as the findings about packages say
        return
    for difference in host_differences():
        yield Finding("lmms-eval", "broken", difference, "pip install 'lmms-eval>=0.7.3,<0.8'")


def _plain_lines(finding: Finding, width: int) -> Iterator[str]:
    yield f"{finding.state:<8} {finding.what:<{width}}  {finding.detail}"
    if finding.fix:
        yield f"{'':<8} {'':<{width}}  -> {finding.fix}"


def examine() -> list[Finding]:
    """Examine packages, devices, the demo checkpoint, data sets and plugins, in that order."""
    return [*_packages(), *_host(), _device(), _demo(), *_datasets(), *_plugins()]


def merge_missing_sets(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings with all missing data sets merged into one."""
    missing = [finding for finding in findings if finding.state == "missing" and finding.what.startswith(DATA_SET)]
    if len(missing) < 2:
        return list(findings)
    names = [finding.what.removeprefix(DATA_SET) for finding in missing]
    root = os.environ.get(DATA_VARIABLE)
    where = f"below {Path(root).expanduser().resolve()}" if root else f"once ${DATA_VARIABLE} names a folder for them"
    merged = Finding("data sets", "missing", f"{more_sets(names)} ({where})", "medmllm datasets --all lists how")
    return [*(finding for finding in findings if finding not in missing), merged]


def in_reading_order(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings: what is there, then what is missing, and last, above the prompt, what is broken."""
    return sorted(findings, key=lambda finding: _ORDER.index(finding.state))


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
    except (ImportError, OSError) as error:  # OSError: one of its libraries does not load
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
        fix = "pip install --force-reinstall --no-deps medmllm-plugins"
        return Finding("demo checkpoint", "broken", f"{', '.join(missing)} not found", fix)
    return Finding("demo checkpoint", "ok", "embedded; use --model medm_vl --model_args pretrained=demo")


def _datasets() -> list[Finding]:
    findings = [
        Finding(f"{DATA_SET}{row['name']}", "ok", row["location"])
        if row["location"]
        else Finding(f"{DATA_SET}{row['name']}", "missing", f"not found at {row['expected_location']}", row["fix"])
        for row in dataset_rows()
    ]
    return findings + [
        Finding("faulty declaration", "missing", fault, "correct or remove this file; all others work")
        for fault in read_catalogue().faults
    ]


def _plugins() -> list[Finding]:
    manager = get_manager()
    working = [
        Finding(f"plugin {plugin.name}", "ok", f"{plugin.distribution} {plugin.version}")
        for plugin in manager.plugins
        if not plugin.disabled
    ]
    failed = [
        Finding(f"plugin {failure.plugin}", "missing", str(failure), _fix(failure)) for failure in manager.failures
    ]
    slow = [Finding("slow plugin", "ok", notice, "MEDMLLM_DISABLE=NAME leaves it out") for notice in manager.notices]
    return [*working, *failed, *slow, *_metadata()]


def _metadata() -> list[Finding]:
    """Report installed packages whose entry points cannot be read, which hides all plugins from the host."""
    return [
        Finding(
            f"metadata of {distribution}",
            "broken",
            f"nothing that reads the entry points of all packages works, such as torch and lmms-eval: {message}",
            f"pip install --force-reinstall --no-deps {distribution}",
        )
        for distribution, message in damaged_entry_points().items()
    ]


def _fix(failure: Failure) -> str:
    if failure.distribution == IN_PROCESS:
        return "correct the code that registers it in this process"
    if failure.plugin == USER.name:
        return "correct or remove it; all others work"
    if not failure.distribution:
        return f"name only plugins that `medmllm plugins` lists in {DISABLE}"
    return f"pip install --upgrade {failure.distribution}, or MEDMLLM_DISABLE={failure.plugin}"
