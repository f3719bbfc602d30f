"""House style that no linter knows: names that say a type, plain sentences, docstrings that begin with a verb."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import medmllm_plugins

PACKAGE = Path(medmllm_plugins.__file__).parent
ROOT = Path(__file__).parents[2]
NAMES = {"found", "told", "one", "place", "places", "said", "given", "locus", "loci", "rereadings", "floor", "doubts"}
"""Names that do not say what a variable holds, or that the glossary replaces."""
PHRASES = re.compile(
    r"\b(anew|mend(s|ed|ing)?|hangs? on|held against|rightly|commonest|loc(us|i)|re-?readings?|told apart|is told)\b"
    r"|\d %(?!})",
    re.IGNORECASE,
)
"""Wording that an ML engineer would stumble over, and a space before a percent sign."""
NO_VERB = set(
    [
        "the",
        "a",
        "an",
        "what",
        "whether",
        "how",
        "where",
        "which",
        "who",
        "why",
        "when",
        "all",
        "every",
        "each",
        "one",
        "its",
        "their",
        "this",
        "that",
        "these",
        "those",
        "for",
        "by",
        "as",
        "of",
        "from",
        "number",
        "share",
        "mean",
        "accuracy",
        "index",
        "name",
        "names",
        "values",
        "rows",
        "tokens",
        "cells",
        "documents",
        "features",
    ]
)
"""First words of docstrings that describe a result and do not say what the function does."""


def modules() -> list[Path]:
    # In a checkout `probes` is a symbolic link, which rglob does not follow; in an installed package it is a folder.
    paths = {*PACKAGE.rglob("*.py"), *(PACKAGE / "probes").rglob("*.py")}
    return sorted(path for path in paths if "tasks" not in path.relative_to(PACKAGE).parts[:1])


@cache
def trees() -> list[tuple[str, ast.Module]]:
    return [(path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))) for path in modules()]


def name_of(node: ast.AST) -> str:
    """Return the name that a node binds, or nothing."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id
    if isinstance(node, ast.arg):
        return node.arg
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    return ""


def test_names_say_what_they_hold() -> None:
    vague = [
        f"{module}:{getattr(node, 'lineno', 0)}: {name}"
        for module, tree in trees()
        for node in ast.walk(tree)
        if (name := name_of(node)) in NAMES
    ]
    assert not vague, "\n".join(vague)


def test_sentences_are_plain() -> None:
    odd = [
        f"{module}:{node.lineno}: {match[0]!r} in {node.value[max(0, match.start() - 40) : match.end() + 20]!r}"
        for module, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for match in PHRASES.finditer(node.value)
    ]
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    pages += [path for path in PACKAGE.rglob("templates/**/*") if path.suffix in (".jinja", ".html", ".yaml")]
    odd += [
        f"{page.name}:{number}: {match[0]!r} in {line!r}"
        for page in pages
        for number, line in enumerate(page.read_text(encoding="utf-8").split("\n"), start=1)
        for match in PHRASES.finditer(line)
    ]
    assert not odd, "\n".join(odd)


def is_property(function: ast.FunctionDef) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in function.decorator_list)


def test_docstrings_begin_with_a_verb() -> None:
    nouns = [
        f"{module}:{node.lineno}: {text.splitlines()[0]}"
        for module, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and not is_property(node) and (text := ast.get_docstring(node))
        if text.split()[0].rstrip(",.:;'s").lower() in NO_VERB
    ]
    assert not nouns, "\n".join(nouns)


def test_no_two_files_share_a_name() -> None:
    paths: dict[str, list[str]] = defaultdict(list)
    for path in modules():
        paths[path.name].append(path.relative_to(PACKAGE).as_posix())
    # A command of `medmllm` is named after the module whose function it runs.
    double = {name: item for name, item in paths.items() if name != "__init__.py" and len(item) > 1}
    assert all(any(path.startswith("cli/") for path in item) and len(item) == 2 for item in double.values()), double


def test_modules_are_short() -> None:
    lines = {module: len((PACKAGE / module).read_text(encoding="utf-8").splitlines()) for module, _ in trees()}
    assert not {module: length for module, length in lines.items() if length > 500}


def test_functions_are_short() -> None:
    long = [
        f"{module}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for module, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.end_lineno and node.end_lineno - node.lineno > 90
    ]
    assert not long, "\n".join(long)
