"""Damage to JSON and YAML that keeps their syntax: other types, missing and foreign keys, depth, extreme values."""

from __future__ import annotations

import contextlib
import copy
import json
import struct
from collections.abc import Sequence
from random import Random
from typing import Any, Final

import yaml
from fuzz.mutators import LARGEST, Mutator, mutate_bytes, one_of

_VALUES: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e308, 10**20, 10**400, 2**63, float("nan"), float("inf")),
    *("", " ", "a", "nan", "none", "../../etc/passwd", "/etc/passwd", "A" * 3000, "\x00", "\x1b[2J", "a\u2028b"),
    *("\ud800", "\U0001f600", "e\u0301", "\u202egnp", "=1+1", "<script>alert(1)</script>", "%s%n", "{0}", "1" * 5000),
    *([], {}, [None], [[]], {"": None}, [1, "a", None], {"a": {"b": {}}}, [0] * 300, [1e308, -1e308], ["x", "x"]),
)
_KEYS: Final = ("", "a", "__class__", "\x00", "name", "0", "A" * 2000, "\ud800", "é", "task", "model_type")


def mutate_tree(random: Random, tree: Any, words: Sequence[Any] = ()) -> Any:
    """Change a tree of mappings and lists in one to three places.

    Args:
        random: the generator.
        tree: the content of a JSON or YAML file; it is not changed.
        words: further values that may be put in.

    Returns:
        The changed tree.
    """
    tree = copy.deepcopy(tree)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        spots = list(_spots(tree))
        if not spots or random.random() < 0.03:
            return _value(random, words)
        parent, key = random.choice(spots)
        with contextlib.suppress(RecursionError):  # of a value that was made too deep before
            _change(random, parent, key, words)
    return tree


def _spots(tree: Any, depth: int = 0) -> Any:
    if depth > 60:
        return
    keys = list(tree) if isinstance(tree, dict) else range(min(len(tree), 50)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _spots(tree[key], depth + 1)


def _value(random: Random, words: Sequence[Any]) -> Any:
    if words and random.random() < 0.3:
        return copy.deepcopy(random.choice(list(words)))
    if random.random() < 0.04:
        deep: Any = random.choice(([], {}))
        for _ in range(random.choice((50, 2000))):
            deep = [deep] if random.random() < 0.5 else {"a": deep}
        return deep
    return copy.deepcopy(random.choice(_VALUES))


def _change(random: Random, parent: Any, key: Any, words: Sequence[Any]) -> None:
    value, kind = parent[key], random.randrange(9)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[random.choice(_KEYS)] = parent.pop(key)
    elif kind == 2 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(value))
    elif kind == 3:
        parent[key] = random.choice(([value], {"a": value}, str(value)[:3000], [value, value]))
    elif kind == 4 and isinstance(value, (int, float)) and not isinstance(value, bool):
        parent[key] = random.choice(
            (-value, value + 1, value * 1000, value - 1, value / 7 if abs(value) < 1e300 else 0.1, 10**400)
        )
    elif kind == 5 and isinstance(value, str):
        parent[key] = random.choice((value * 2, value.upper(), value[:-1], value + "\n", value + "\x00", f" {value}"))
    elif kind == 6 and isinstance(value, (dict, list)) and value:
        parent[key] = value[random.choice(list(value))] if isinstance(value, dict) else random.choice(value)
    elif kind == 7 and isinstance(parent, dict):
        parent[random.choice(_KEYS)] = _value(random, words)
    else:
        parent[key] = _value(random, words)


def json_text(tree: Any) -> bytes:
    """Write JSON as strange programs do: NaN, lone surrogates and numbers of hundreds of digits included."""
    try:
        return json.dumps(tree).encode()
    except RecursionError:
        return b"[" * 2000 + b"]" * 2000
    except ValueError:  # a whole number of more digits than Python prints
        return b'{"a": 1' + b"0" * 5000 + b"}"


def json_mutator(*words: Any) -> Mutator:
    """Return a mutator of JSON files: the tree in most cases, else the bytes."""

    def mutate(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
        return json_text(mutate_tree(random, json.loads(content), words))[:LARGEST]

    return one_of(mutate, mutate, mutate, repeat_key, mutate_bytes)


def repeat_key(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Write JSON objects one inside the other, or nest a value deeper than parsers go."""
    depth = random.choice((3, 990, 20_000))
    return random.choice((b"[" * depth + content + b"]" * depth, b'{"a":' * depth + content + b"}" * depth))[:LARGEST]


def json_lines_mutator(*words: Any) -> Mutator:
    """Return a mutator of files with a JSON object a line: one line's tree, the lines, or the bytes."""

    def in_a_line(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
        lines = content.split(b"\n")
        index = random.randrange(max(1, len(lines) - 1))
        lines[index] = json_text(mutate_tree(random, json.loads(lines[index]), words))
        return b"\n".join(lines)[:LARGEST]

    def of_lines(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
        lines = content.split(b"\n")
        index = random.randrange(len(lines))
        lines[index : index + 1] = random.choice(
            (
                [],
                [lines[index]] * 2,
                [b""],
                [random.choice(lines), lines[index]],
                [lines[index][: len(lines[index]) // 2]],
            )
        )
        return b"\n".join(lines)

    return one_of(in_a_line, in_a_line, in_a_line, of_lines, mutate_bytes)


def _alias_bomb(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    levels = random.choice((3, 7, 9, 30))
    lines = [b"a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [b"a%d: &a%d [%s]" % (level, level, b", ".join([b"*a%d" % (level - 1)] * 9)) for level in range(1, levels)]
    key = random.choice((b"classes", b"options", b"notes", b"medmllm", b"more"))
    return content + b"\n" + b"\n".join(lines) + b"\n%s: *a%d\n" % (key, levels - 1)


_YAML: Final = (
    *(b"- ", b"? ", b"!function os.system", b"!!python/object/apply:os.system ['true']", b"&a", b"*a", b"<<: *a"),
    *(b"{" * 3000, b"[" * 2000, b"%YAML 9.9", b"---", b"...", b"\t", b"2001-13-45", b"0o17", b"1:30:00", b"!!binary x"),
    *(b"!!set {a, b}", b"!!timestamp 2001-99-99", b"'", b'"\\x', b"|", b">-", b"1" * 5000, b"!!int x", b"!!float y"),
)


def _yaml_words(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    lines = content.split(b"\n")
    index = random.randrange(len(lines))
    key, colon, _ = lines[index].partition(b":")
    word = random.choice(_YAML)
    lines[index] = key + colon + b" " + word if colon and random.random() < 0.7 else lines[index] + word
    return b"\n".join(lines)


class _Loader(yaml.SafeLoader):
    """Takes any tag for text."""


_Loader.add_constructor(None, lambda loader, node: str(node.value))


def yaml_mutator(*words: Any) -> Mutator:
    """Return a mutator of YAML files: the tree, words that mean something to YAML, alias bombs, or the bytes."""

    def mutate(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
        tree = mutate_tree(random, yaml.load(content, _Loader), words)
        try:
            text = yaml.safe_dump(tree, allow_unicode=random.random() < 0.5)
        except (yaml.YAMLError, RecursionError, ValueError):
            return json_text(tree)[:LARGEST]
        return text.encode("utf-8", "surrogatepass")[:LARGEST]

    return one_of(mutate, mutate, mutate, _yaml_words, _yaml_words, _alias_bomb, mutate_bytes)


def safetensors_mutator(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Change the JSON header of a safetensors file, whose length is updated; or any of its bytes."""
    if random.random() < 0.4:
        return mutate_bytes(random, content, others)
    (length,) = struct.unpack_from("<Q", content)
    header = json_text(mutate_tree(random, json.loads(content[8 : 8 + length]), ("F32", "F16", "I64", "U9", [0, 8])))
    return struct.pack("<Q", len(header)) + header + content[8 + length :]
