"""The command ``medmllm``: its subcommands, the errors they may raise, and its exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from medmllm_plugins import __version__
from medmllm_plugins.cli.console import new_app
from medmllm_plugins.errors import MedMLLMError
from medmllm_plugins.utils.environment import tolerate_damaged_metadata

HOST: Final = "lmms-eval"
COMMANDS: Final = {
    "doctor": "Show what is installed, what is missing and how to fix it.",
    "models": "List the models and their sizes.",
    "datasets": "List the data sets and where to get them, or find leaks.",
    "plugins": "List the plugins, what they provide and what failed.",
    "check-plugin": "Check that a plugin does what its hooks promise.",
    "plugin": "Start a package with a plugin of your own.",
    "task": "Make a task from your own images, or list all tasks.",
    "baseline": "Train a reference classifier and score it like a model.",
    "compare": "Compare two runs on the same data with paired tests.",
    "diagnose": "Fit the probes of a med_probe run again, without the model.",
    "repair": "Find the cheapest change of a model that helps.",
    "selfcheck": "Check that the diagnosis finds faults planted in the demo.",
    "attribute": "Explain documents of a run with other methods or layers.",
    "report": "Write one page about any mix of runs.",
    HOST: "Run an lmms-eval command that knows all these tasks.",
}
"""Subcommands with their help. Each is the ``app`` of a module of its name (- is _), imported when it runs."""


class LazyGroup(TyperGroup):
    """A group that imports the module of a subcommand when it runs, so that ``medmllm --help`` needs none of them."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name of a subcommand, the subcommand and the words for it."""
        name, _, words = super().resolve_command(ctx, args)
        return name, load_command(str(name)), words


def load_command(name: str) -> Any:
    """Import the module of a subcommand and return the command."""
    return typer.main.get_command(import_module(f"medmllm_plugins.cli.{name.replace('-', '_')}").app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"medmllm-plugins {__version__}")
        raise typer.Exit


app = new_app()


@app.callback(
    cls=LazyGroup,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="Example: medmllm doctor",
    subcommand_metavar="COMMAND",
)
def medmllm(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Evaluate medical image classification with lmms-eval, and find where a model loses the signal."""


def _loaded_when_run() -> None:
    """Do nothing: a placeholder in the help for a subcommand whose module is imported when it runs."""


for _name, _summary in COMMANDS.items():
    app.command(_name, help=_summary)(_loaded_when_run)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 for a failure, 2 for a wrong command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    tolerate_damaged_metadata()
    try:
        status = _run_host(words[1:]) if words[:1] == [HOST] else _run(words)
        sys.stdout.flush()
    except MedMLLMError as error:
        print(f"medmllm: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader has seen enough, as in `medmllm datasets | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interrupt:
        if isinstance(interrupt, SystemExit):  # raised by runtime/signals.py, which has printed how to resume
            raise
        print("medmllm: interrupted. Start the same command again; no file is left half-written.", file=sys.stderr)
        return 130
    return status


def _run(words: list[str]) -> int:
    """Run a subcommand. Click's own ``main`` is not used: it would turn Ctrl-C and closed pipes into messages."""
    group = typer.main.get_command(app)
    try:
        with group.make_context("medmllm", words) as context:
            return int(group.invoke(context) or 0)
    except typer.Exit as end:  # --help and --version
        return end.exit_code
    except typer.TyperException as error:
        _print_usage_error(error)
        return error.exit_code


def _print_usage_error(error: typer.TyperException) -> None:
    context = getattr(error, "ctx", None)
    command = "medmllm" if context is None else context.command_path
    if context is not None:
        print(context.get_usage(), file=sys.stderr)
    names = getattr(error, "possibilities", None)  # options that are spelt like the unknown one
    message = f"{error.message}. Did you mean {' or '.join(names)}?" if names else error.format_message()
    print(f"{command}: {message} `{command} --help` shows an example.", file=sys.stderr)


def _run_host(words: list[str]) -> int:
    """Run a command of lmms-eval; all words behind it are the host's, its own ``--help`` too."""
    from medmllm_plugins.host.command_line import judge_every_evaluation
    from medmllm_plugins.host.entry_point import register_models
    from medmllm_plugins.host.task_manager_hook import install_task_hook

    judge_every_evaluation()
    install_task_hook()
    register_models()
    from lmms_eval.cli.dispatch import main as host_main

    sys.argv = [HOST, *words]
    host_main()
    return 0
