"""Templates of the report: ``templates/`` contains every sentence of the page; Python passes typed values."""

from __future__ import annotations

import functools
import re
import zlib
from importlib.resources import files
from typing import Any, Final

import jinja2

from medmllm_plugins.metrics.intervals import known
from medmllm_plugins.report import formatting
from medmllm_plugins.results.probe_records import TITLES
from medmllm_plugins.utils.plain_text import listed, quantity

BREAK: Final = "\x1e"
"""Separates the texts of one macro, as ``{{ next }}``; ``clean`` replaces this character in values."""
_NO_ID: Final = re.compile(r"[^A-Za-z0-9._-]")
_SPACE: Final = re.compile(r"[ \t\n]+")


def template_source(name: str) -> str:
    """Return the text of a file in ``templates/``."""
    return files(str(__package__)).joinpath("templates", name).read_text("utf-8")


@functools.cache
def environment(*, autoescape: bool) -> jinja2.Environment:
    """Return the Jinja environment with the number formats of the report as filters; for HTML, it escapes values."""
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(template_source),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("cut", "decimal", "interval", "percent", "points", "sentence_case")
    made.filters |= {
        "anchor": anchor,
        "listed": listed,
        "quantity": quantity,
        **{name: getattr(formatting, name) for name in names},
    }
    made.globals |= {"known": known, "joint": _joint, "next": BREAK, "failure_modes": TITLES}
    return made


def anchor(name: str) -> str:
    """Return a name as part of an id that a link can lead to; different names stay different."""
    safe = _NO_ID.sub("-", name)
    return safe if safe == name else f"{safe}-{zlib.crc32(name.encode('utf-8')):08x}"


def _joint(loop: Any) -> str:
    """Return what follows an item of an enumeration: a comma, " and ", or nothing after the last."""
    return "" if loop.last else " and " if loop.revindex == 2 else ", "


def texts(template: str, macro: str, **values: Any) -> list[str]:
    """Render a macro of a file in ``templates/`` to its texts, each on one line; ``values`` are its arguments."""
    module = environment(autoescape=False).get_template(template).module
    rendered = str(getattr(module, macro)(**values))
    return [_SPACE.sub(" ", text).strip(" ") for text in rendered.split(BREAK)]


def text(template: str, macro: str, **values: Any) -> str:
    """Render a macro that has one text; see :func:`texts`."""
    (only,) = texts(template, macro, **values)
    return only
