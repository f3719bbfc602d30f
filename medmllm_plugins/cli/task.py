"""``medmllm task``: make a task from a user's own images or volumes, or list all tasks."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from medmllm_plugins.cli.console import JsonFlag, new_app, print_json, print_table
from medmllm_plugins.cli.new_task import create_task
from medmllm_plugins.cli.own_data_declaration import NewTaskOptions
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.prompts.task_names import declared_tasks, derived_tasks

app = new_app()


@app.callback(subcommand_metavar="COMMAND")
def task() -> None:
    """Make a task from your own images, or list all tasks."""


@app.command("list", epilog="Example: medmllm task list")
def list_tasks(json: JsonFlag = False) -> None:
    """List all tasks with the file that declares each."""
    for failure in get_manager().failures:
        if failure.stage == "task file":  # faulty declarations of data sets are logged by the catalogue
            print(f"Left out: {failure.message}", file=sys.stderr)
    rows = task_rows()
    if json:
        print_json(rows)
        return
    width = max(len(row["name"]) for row in rows)
    print_table(
        ("task", "from", "file"),
        (tuple(row.values()) for row in rows),
        (f"{row['name']:<{width}}  {row['from']:<10}  {row['file']}" for row in rows),
    )


@app.command(
    "new",
    epilog="Example: medmllm task new chest --images scans/ --labels labels.csv --group patient_id",
)
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits and underscores.")],
    images: Annotated[str, typer.Option(metavar="DIR|GLOB", help="The folder of the images, or a pattern in quotes.")],
    labels: Annotated[
        str, typer.Option(metavar="CSV|folders", help="A table, or `folders` if each folder is named after its class.")
    ],
    image_column: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column that names images.")] = None,
    label_column: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of classes.")] = None,
    group: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of patients, or `none`.")] = None,
    fold: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column of train, validation and test, or `none`.")
    ] = None,
    fold_map: Annotated[
        str,
        typer.Option(
            metavar="A=FOLD,…",
            help="The meaning of other values in that column: train, validation, test, or none to leave them out.",
        ),
    ] = "",
    attributes: Annotated[
        str,
        typer.Option(metavar="COLUMN,…", help="Further columns, such as the scanner, that `med_probe` tests."),
    ] = "",
    classes: Annotated[
        str,
        typer.Option(metavar="A,B,C", help="The classes in order; 0=normal,1=pneumonia renames those of the table."),
    ] = "",
    positive: Annotated[
        str | None, typer.Option(metavar="CLASS", help="The class whose sensitivity is reported.")
    ] = None,
    modality: Annotated[str, typer.Option(metavar="TEXT", help='What the images are, such as "chest X-ray".')] = "",
    multilabel: Annotated[
        bool, typer.Option("--multilabel", help="An image may have several classes, or none.")
    ] = False,
    ordinal: Annotated[
        bool, typer.Option("--ordinal", help="The classes are grades in the order of --classes.")
    ] = False,
    frame: Annotated[
        str | None,
        typer.Option(help="The frame to show of multi-frame DICOM files: first, middle, all or a number."),
    ] = None,
    unit: Annotated[
        Literal["HU", "any"] | None,
        typer.Option(help="HU if NIfTI, NRRD or npy volumes are CT in Hounsfield units."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the task of that name.")] = False,
    output: Annotated[
        str, typer.Option(metavar="DIR", help="Folder for the task file; default: your task folder.")
    ] = "",
) -> None:
    """Check your own images or volumes and write a task for them.

    Everything is read first; nothing is written unless the whole data set is sound. See docs/own-data.md.
    """
    options = NewTaskOptions(**locals())  # the parameters of this function are the fields of NewTaskOptions
    create_task(options, print)


def task_rows() -> list[dict[str, str]]:
    """Return every task of this package, its plugins and the user: name, where it comes from, and its file."""
    origins = {entry.name: (entry.plugin, entry.path) for entry in get_manager().tasks().values()}
    for name, declared in declared_tasks().items():
        origins.setdefault(name, ("data set", declared.path))
    for name, derived in derived_tasks().items():
        origins.setdefault(name, (origins[derived.base][0], derived.path))
    return [{"name": name, "from": origin, "file": str(path)} for name, (origin, path) in sorted(origins.items())]
