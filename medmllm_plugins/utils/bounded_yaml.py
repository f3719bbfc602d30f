"""YAML of users and plugins, read within bounds: no file can take long, fill memory or make a long message.

A few hundred bytes of nested aliases can expand to gigabytes, and a few thousand brackets end Python's stack. So size,
depth, length of scalars and the number of nodes *after* aliases are followed are bounded while the file is parsed, and
what is constructed afterwards is small. A key that is there twice is an error, since one of its values would be lost.
"""

from __future__ import annotations

import functools
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medmllm_plugins.errors import MedMLLMError, shown

MAX_BYTES: Final = 256 * 1024
"""Largest file; the largest declaration of this package has 3 KiB."""
MAX_DEPTH: Final = 24
"""Deepest nesting; a task's file needs 8."""
MAX_NODES: Final = 20_000
"""Most keys, values and lists, those counted again that an alias repeats; a long text counts once per 50 characters."""
MAX_SCALAR: Final = 10_000
"""Longest text, in characters."""
MAX_NUMBER: Final = 100
"""Longest number, in characters: converting thousands of digits takes quadratic time, and Python refuses to."""


@dataclass(frozen=True, slots=True)
class YamlFile:
    """The document of a YAML file, and the lines of the keys of its outermost mapping, from 1."""

    content: Any
    lines: dict[str, int]


def read_yaml_file(path: Path, *, error: type[MedMLLMError], any_tag: bool = False) -> YamlFile:
    """Read a YAML file with one document.

    With ``any_tag``, unknown tags such as ``!function a.b.c`` are read as text; otherwise they are errors.

    Raises:
        MedMLLMError: of the class ``error``: the file is no UTF-8, no YAML or beyond the bounds of this module. The
            message begins with path and line.
        OSError: it cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for ever
        raise error(f"{path}: expected a file, got a folder, pipe or device. Remove it, or give it another ending.")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise error(
            f"{path}: expected at most {MAX_BYTES // 1024} KiB of YAML, got more. Move long lists to a table of their "
            "own."
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        raise error(
            f"{path}, line {line}: expected UTF-8, got byte {data[fault.start]:#04x}. Save the file as UTF-8."
        ) from fault
    return parse_yaml(text, str(path), error=error, any_tag=any_tag)


def parse_yaml(text: str, source: str, *, error: type[MedMLLMError], any_tag: bool = False) -> YamlFile:
    """Read YAML with one document from text.

    ``source`` is where it comes from, for messages. For ``any_tag`` see :func:`read_yaml_file`.

    Raises:
        MedMLLMError: of the class ``error``; see :func:`read_yaml_file`.
    """
    import yaml

    loader = None
    try:
        loader = _loader(any_tag)(text)
        node = loader.get_single_node()
        loader.check_keys(node)
        content = None if node is None else loader.construct_document(node)
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        lines = {key.value: key.start_mark.line + 1 for key, _ in pairs if isinstance(key, yaml.ScalarNode)}
        return YamlFile(content, lines)
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        line = 1 if mark is None else mark.line + 1
        problem = shown_text(fault.problem or fault.context or "something else")
        raise error(f"{source}, line {line}: expected YAML, got {problem}.") from fault
    except yaml.reader.ReaderError as fault:
        line = text.count("\n", 0, fault.position) + 1
        raise error(f"{source}, line {line}: expected YAML, got {shown_text(fault.reason)}.") from fault
    except (RecursionError, MemoryError, ValueError, TypeError, KeyError, AttributeError) as fault:
        # PyYAML lets such errors of its constructors through.
        line = 1 if loader is None else loader.line + 1
        raise error(f"{source}, line {line}: expected YAML, got {type(fault).__name__} while reading it.") from fault
    finally:
        if loader is not None:
            loader.dispose()


def shown_text(text: str, most: int = 200) -> str:
    """Return a text on one line, cut after ``most`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


@functools.cache
def _loader(any_tag: bool) -> Any:
    """Return the class of loaders that keep to the bounds; importing this package must not import PyYAML."""
    import yaml

    class Loader(yaml.SafeLoader):
        def __init__(self, text: str) -> None:
            super().__init__(text)
            self._depth = 0
            self._nodes = 0
            self._sizes: dict[int, int] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            before = self._nodes
            self._depth += 1
            if self._depth > MAX_DEPTH:
                _refuse(f"nesting deeper than {MAX_DEPTH} levels", event.start_mark)
            node: Any = super().compose_node(parent, index)
            self._depth -= 1
            if isinstance(event, yaml.AliasEvent):
                if id(node) not in self._sizes:
                    _refuse(f"an alias *{shown_text(str(event.anchor), 40)} of its own parent", event.start_mark)
                self._nodes += self._sizes[id(node)]
            else:
                self._nodes += 1
                if isinstance(node, yaml.ScalarNode):
                    _check_scalar(node)
                    self._nodes += len(node.value) // 50
                self._sizes[id(node)] = self._nodes - before
            if self._nodes > MAX_NODES:
                _refuse(f"more than {MAX_NODES} values, those counted that aliases repeat", event.start_mark)
            return node

        def check_keys(self, node: Any) -> None:
            """Refuse keys that a mapping has twice, in ``node`` and below it."""
            waiting, checked = [node], set()
            while waiting:
                current = waiting.pop()
                if id(current) in checked or not isinstance(current, yaml.CollectionNode):
                    continue
                checked.add(id(current))
                if isinstance(current, yaml.SequenceNode):
                    waiting.extend(current.value)
                    continue
                keys = set()
                for key_node, value in current.value:
                    waiting.append(value)
                    if not isinstance(key_node, yaml.ScalarNode):
                        _refuse("a key that is no text or number", key_node.start_mark)
                    key = "<<" if key_node.tag.endswith(":merge") else self.construct_object(key_node)
                    if key in keys:
                        _refuse(f"the key {shown(key)} a second time", key_node.start_mark)
                    keys.add(key)

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep=deep)
            except (ValueError, TypeError, KeyError, OverflowError) as error:
                # Such as a date with a 13th month, for which PyYAML gives no line.
                raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error

    def _check_scalar(node: Any) -> None:
        number = node.tag.endswith((":int", ":float"))
        if len(node.value) > (MAX_NUMBER if number else MAX_SCALAR):
            what = f"a number of more than {MAX_NUMBER}" if number else f"a text of more than {MAX_SCALAR}"
            _refuse(f"{what} characters", node.start_mark)

    def _refuse(problem: str, mark: Any) -> None:
        raise yaml.MarkedYAMLError(None, None, problem, mark)

    def as_text(loader: Any, node: Any) -> str:
        return str(node.value) if isinstance(node, yaml.ScalarNode) else str(node.tag)

    if any_tag:
        Loader.add_constructor(None, as_text)
    return Loader
