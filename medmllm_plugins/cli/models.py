"""``medmllm models``: the models and their sizes."""

from __future__ import annotations

from typing import Any

from medmllm_plugins.cli.console import JsonFlag, new_app, print_json, print_table
from medmllm_plugins.plugins.manager import get_manager

app = new_app()


@app.command(epilog="Example: medmllm models")
def models(json: JsonFlag = False) -> None:
    """List the models and their sizes.

    NAME and SIZE go into `lmms-eval --model NAME --model_args pretrained=SIZE`.
    """
    rows = model_rows()
    if json:
        print_json(rows)
        return
    print_table(
        ("model", "pretrained=", "source", "licence", "summary"),
        (
            (row["name"], "\n".join(row["sizes"]), "\n".join(row["sizes"].values()), row["licence"], row["summary"])
            for row in rows
        ),
        (line for row in rows for line in _plain_lines(row)),
    )


def model_rows() -> list[dict[str, Any]]:
    """Return every registered model: name, sizes, where each comes from and what it was tuned from."""
    names = ("name", "summary", "sizes", "licence", "citation")
    specs = get_manager().models().values()
    return [
        {name: getattr(spec, name) for name in names} | {"sizes": dict(spec.sizes), "base": dict(spec.base)}
        for spec in specs
    ]


def _plain_lines(row: dict[str, Any]) -> list[str]:
    sizes = [f"    pretrained={size:<12} {source}" for size, source in row["sizes"].items()]
    sizes += [f"    twin=base of {size:<9} {source}" for size, source in row["base"].items()]
    licence = [f"    licence  {row['licence']}"] if row["licence"] else []
    return [f"{row['name']}: {row['summary']}", *sizes, *licence]
