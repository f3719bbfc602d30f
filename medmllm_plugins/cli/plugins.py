"""``medmllm plugins``: the installed plugins, what they provide and what failed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medmllm_plugins.cli.console import JsonFlag, new_app, print_json
from medmllm_plugins.data.loading.catalogue import read_catalogue
from medmllm_plugins.plugins.manager import get_manager

app = new_app()


@app.command(epilog="Example: medmllm plugins --json")
def plugins(json: JsonFlag = False) -> None:
    """List the plugins, what they provide and what failed."""
    read_catalogue()  # logs the declarations that are left out
    description = get_manager().describe()
    if json:
        print_json(description)
        return
    for line in _plain_lines(description):
        print(line)


def _plain_lines(description: dict[str, Any]) -> Iterator[str]:
    for plugin in description["plugins"]:
        state = " (disabled)" if plugin["disabled"] else ""
        yield f"{plugin['name']}{state}: {plugin['distribution']} {plugin['version']}"
        yield f"    hooks: {', '.join(plugin['hooks']) or 'none'}"
        for kind in ("models", "datasets", "tasks", "probes", "attributions", "interventions"):
            if plugin[kind]:
                yield f"    {kind}: {', '.join(plugin[kind])}"
    for failure in description["failures"]:
        origin = f" ({failure['distribution']} {failure['version']})" if failure["distribution"] else ""
        hook = f" of {failure['hook']}" if failure["hook"] else ""
        yield f"FAILED {failure['plugin']}{origin}: {failure['stage']}{hook}: {failure['message']}"
    for notice in description["notices"]:
        yield f"SLOW {notice}"
