"""Manifests without keys and passwords: a page is passed on, and a command may have held some."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

LEFT_OUT: Final = "…"
"""Stands for what was left out."""
_DEEPEST: Final = 60
"""Deeper values are left out whole: nothing of ours is nested so far."""
_WORDS: Final = (
    "api[_-]?keys?|key|token|secret|secrets|password|passwords|passwd|pwd|passphrase|credentials?|auth|authorization|"
    "sig|signature"
)
_NAME: Final = re.compile(rf"(?:^|_)(?:{_WORDS})$")
_ALWAYS: Final = re.compile(r"(?:secrets?|passwords?|passwd|pwd|passphrase|credentials?)$")
"""Names under which even a number is one."""
_HARMLESS: Final = re.compile(
    r"(?i)[+-]?(?:\d+(?:\.\d*)?(?:e[+-]?\d+)?|inf|infinity|nan)|true|false|none|null|<\|?[\w ]*\|?>|"
)
"""Values that are none: numbers, yes and no, nothing, and special tokens such as ``<image>``."""
_PAIR: Final = re.compile(
    rf"""(?ix)
    (?<![\w.\-]) (["']?) ([\w.\-]*(?:{_WORDS})) \1
    (\s*[=:]\s*)
    ("[^"]*" | '[^']*' | \[[^\]]*\] | (?:bearer|basic|token)\s+[^\s,]+ | [^\s,]+)"""
)
_USER: Final = re.compile(r"(?<=://)(?:[^/\s@:]+:(?!\d+/)[^\s@]+|[^/\s@]+)@")
"""Who signs in at an address; a port is no password."""
_BEARER: Final = re.compile(r"(?i)\b(bearer\s+)(?=\S*\d)[^\s,\"']+")
_SHAPES: Final = re.compile(
    r"\b(?:sk-(?=[\w-]*\d)[\w-]{16,}|hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{12,}|"
    r"AIza[\w-]{30,}|xox[abprs]-[\w-]{10,})"
)
"""Keys of well-known services, wherever they stand."""


def shareable_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest without what looks like a key or a password; names of tasks and of its own fields stay as they are."""
    return {
        name: {task: shareable(told) for task, told in value.items()}
        if name == "tasks" and isinstance(value, Mapping)
        else shareable(value)
        for name, value in manifest.items()
    }


def shareable(value: Any, name: str = "", depth: int = 0) -> Any:
    """A JSON value without what looks like a key or a password.

    Args:
        value: the value.
        name: what it is called, where it is one of a mapping or a list in one.
        depth: how deep it is nested.
    """
    if depth > _DEEPEST:
        return LEFT_OUT
    if isinstance(value, Mapping):
        return {key: shareable(one, _under(name, key), depth + 1) for key, one in value.items()}
    if isinstance(value, list):
        return [shareable(one, name, depth + 1) for one in value]
    if value is not None and _is_secret(name, str(value)):
        return LEFT_OUT
    return without_secrets(value) if isinstance(value, str) else value


def without_secrets(text: str) -> str:
    """A text, such as the arguments of a command, without what looks like a key or a password."""
    text = _USER.sub(f"{LEFT_OUT}@", text)
    text = _PAIR.sub(_pair, text)
    return _SHAPES.sub(LEFT_OUT, _BEARER.sub(rf"\1{LEFT_OUT}", text))


def _under(name: str, key: object) -> str:
    """The name by which a value is judged: under a secret's name all is secret, whatever it is called itself."""
    return name if _NAME.search(_plain(name)) else str(key)


def _plain(name: str) -> str:
    """``apiKey``, ``X-Api-Key`` and ``api.key`` as ``api_key``."""
    return re.sub(r"[-.\s]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).lower()


def _is_secret(name: str, value: str) -> bool:
    plain = _plain(name)
    if not _NAME.search(plain):
        return False
    return bool(value) and (bool(_ALWAYS.search(plain)) or _HARMLESS.fullmatch(value.strip("\"'")) is None)


def _pair(match: re.Match[str]) -> str:
    quote, name, sign, value = match.groups()
    # In prose a colon follows many a word: there it takes quotes, or a name that none would write.
    prose = ":" in sign and not quote and not re.search(r"(?i)[-_]|authorization", name)
    if prose or not _is_secret(name, value):
        return f"{quote}{name}{quote}{sign}{_PAIR.sub(_pair, value)}"
    return f"{quote}{name}{quote}{sign}{LEFT_OUT}"
