"""Text and JSON without keys and passwords: what is written of a command's arguments, quoted in an error or shown.

Secrets are known by the names that they stand under (``api_key=``, ``Authorization``, ``user:password@``), and by
their shape (a JSON web token, keys of well-known services, long words that look drawn at random). Hexadecimal words
stay, because fingerprints of models and data are such.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

LEFT_OUT: Final = "…"
"""Replaces what was left out."""
_DEEPEST: Final = 60
"""Deeper values are left out whole: nothing of ours is nested so far."""
_WORDS: Final = (
    "api[_-]?keys?|key|token|secret|secrets|password|passwords|passwd|pwd|passphrase|credentials?|auth|authorization|"
    "sig|signature|bearer|jwt|cookies?"
)
_NAME: Final = re.compile(rf"(?:^|_)(?:{_WORDS})$")
_ALWAYS: Final = re.compile(r"(?:secrets?|passwords?|passwd|pwd|passphrase|credentials?)$")
"""Names under which even a number is one."""
_HARMLESS: Final = re.compile(
    r"(?i)[+-]?(?:\d+(?:\.\d*)?(?:e[+-]?\d+)?|inf|infinity|nan)|true|false|none|null|<\|?[\w ]*\|?>|expected|"
)
"""Values that are none: numbers, yes and no, nothing, special tokens such as ``<image>``, and the beginning of an error
behind a name (``column 'key': expected …``)."""
_CLASSES: Final = frozenset({"labels", "positive", "orders"})
"""What a manifest tells of a task's classes: changed, they would no longer be those of the scored answers."""
_PAIR: Final = re.compile(
    rf"""(?ix)
    (?<![\w.\-]) (["']?) ([\w.\-]*(?:{_WORDS})) \1
    (\s*[=:]\s*)
    ("[^"]*" | '[^']*' | \[[^\]]*\] | (?:bearer|basic|token)\s+[^\s,]+ | [^\s,]+)"""
)
_USER: Final = re.compile(r"(?<=://)(?:[^/\s@:]+:(?!\d+/)[^\s@]+|[^/\s@]+)@")
"""Who signs in at an address; a port is no password."""
_USER_OF_HOST: Final = re.compile(
    r"(?<![\w.+/-])(?!mailto:)[\w.+-]+:[^\s/@:,;'\"]{3,}@(?=[A-Za-z\d-]+(?:\.[A-Za-z\d-]+)+)"
)
"""The same of an address that begins with no scheme, such as ``user:password@host.org``."""
_BEARER: Final = re.compile(r"(?i)\b(bearer\s+)(?=\S*\d)[^\s,\"']+")
_SHAPES: Final = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)|"
    r"\beyJ[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)*|"
    r"\b(?:sk-(?=[\w-]*\d)[\w-]{16,}|[srp]k_(?:live|test)_[A-Za-z0-9]{10,}|hf_[A-Za-z0-9]{20,}|"
    r"gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|A(?:KIA|SIA)[A-Z0-9]{12,}|AIza[\w-]{30,}|"
    r"ya29\.[\w-]{20,}|xox[abeprs]-[\w-]{10,}|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{30,}|nvapi-[\w-]{20,}|"
    r"gsk_[A-Za-z0-9]{20,}|xai-[A-Za-z0-9]{20,}|r8_[A-Za-z0-9]{20,}|SG\.[\w-]{16,}\.[\w-]{16,})"
)
"""Private keys, JSON web tokens and keys of well-known services, wherever they stand."""
_WORD: Final = re.compile(r"""(?<![^\s=,:;'"\[({&?])[A-Za-z0-9_+~-]{24,256}={0,2}(?![^\s,;'"\])}&])""")
"""A word that stands by itself: not a part of a path or of a file's name."""
_CLOUD_KEY: Final = re.compile(r"(?<![A-Za-z0-9+/._-])[A-Za-z0-9+][A-Za-z0-9+/]{39}(?![A-Za-z0-9+/=._-])")
"""What the secret half of an AWS key looks like; it may hold slashes."""
_HEXADECIMAL: Final = re.compile(r"[0-9a-f]{8,}|[0-9A-F]{8,}")
_ARGUMENTS: Final = frozenset({"model_args", "gen_kwargs"})
"""Names of texts that hold arguments as ``name=value,name=value``."""
_ARGUMENT: Final = re.compile(r",(?=[\w.\-]+=)")


def shareable_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest without likely keys and passwords; names of tasks, classes and its own fields stay."""
    return {
        name: {task: _task_facts(facts) for task, facts in value.items()}
        if name == "tasks" and isinstance(value, Mapping)
        else shareable(value)
        for name, value in manifest.items()
    }


def _task_facts(facts: Any) -> Any:
    if not isinstance(facts, Mapping):
        return shareable(facts)
    return {key: value if key in _CLASSES else shareable(value, str(key), 1) for key, value in facts.items()}


def shareable(value: Any, name: str = "", depth: int = 0) -> Any:
    """Return a JSON value without what looks like a key or a password.

    Args:
        value: the value.
        name: what it is called, where it is one of a mapping or a list in one.
        depth: how deep it is nested.
    """
    if depth > _DEEPEST:
        return LEFT_OUT
    if isinstance(value, Mapping):
        return {key: shareable(item, _under(name, key), depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shareable(item, name, depth + 1) for item in value]
    if name in _ARGUMENTS and isinstance(value, str):
        return _arguments(value, depth)
    if value is not None and _is_secret(name, str(value)):
        return LEFT_OUT
    return without_secrets(value) if isinstance(value, str) else value


def without_secrets(text: str, *, words: bool = True) -> str:
    """Return a text, such as the arguments of a command, without what looks like a key or a password.

    Args:
        text: the text.
        words: whether to leave out long words that look drawn at random. Errors keep them, because a document's id
            may be such a word.
    """
    text = _USER_OF_HOST.sub(f"{LEFT_OUT}@", _USER.sub(f"{LEFT_OUT}@", text))
    text = _PAIR.sub(_pair, text)
    text = _SHAPES.sub(LEFT_OUT, _BEARER.sub(rf"\1{LEFT_OUT}", text))
    return _CLOUD_KEY.sub(_word, _WORD.sub(_word, text)) if words else text


def _arguments(text: str, depth: int) -> str:
    """Redact the arguments of a command in one text; a value may hold spaces, and ends where the next name begins."""
    try:
        by_name = json.loads(text)
    except (ValueError, RecursionError):
        by_name = None
    if isinstance(by_name, dict):
        return json.dumps(shareable(by_name, depth=depth), ensure_ascii=False)
    parts = []
    for part in _ARGUMENT.split(text):
        name, sign, value = part.partition("=")
        parts.append(f"{name}={LEFT_OUT}" if sign and _is_secret(name.strip(), value) else without_secrets(part))
    return ",".join(parts)


def _word(match: re.Match[str]) -> str:
    return LEFT_OUT if _looks_random(match.group()) else match.group()


def _looks_random(word: str) -> bool:
    """Return whether letters, capitals and digits follow each other as in no name.

    In words drawn at random from all three, 62% of neighbours are of different kinds, in names such as
    ``Qwen2-VL-72B-Instruct-GPTQ-Int4`` and ``BiomedCLIPPubMedBERT256`` less than 43%; drawn from two of them 40%.
    """
    parts = [part for part in re.split(r"[^A-Za-z0-9]+", word) if part and not _HEXADECIMAL.fullmatch(part)]
    plain = "".join(parts)
    if not plain or max(map(len, parts)) < (6 if "/" in word else 16):
        return False
    kinds = [["a" if sign.islower() else "A" if sign.isupper() else "0" for sign in part] for part in parts]
    changes = sum(left != right for part in kinds for left, right in pairwise(part))
    share = changes / max(1, len(plain) - len(parts))
    digits = sum(sign.isdigit() for sign in plain) / len(plain)
    if any(map(str.islower, plain)) and any(map(str.isupper, plain)):
        return digits > 0 and share >= (0.3 if "/" in word else 0.38)
    return len(plain) >= 28 and 0.12 <= digits <= 0.6 and share >= 0.27


def _under(name: str, key: object) -> str:
    """Return the name by which a value is judged: under a secret's name all is secret, whatever it is called itself."""
    return name if _NAME.search(_plain(name)) else str(key)


def _plain(name: str) -> str:
    """Return ``apiKey``, ``X-Api-Key`` and ``api.key`` as ``api_key``."""
    return re.sub(r"[-.\s]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).lower()


def _is_secret(name: str, value: str) -> bool:
    plain = _plain(name)
    if not _NAME.search(plain):
        return False
    return bool(value) and (bool(_ALWAYS.search(plain)) or _HARMLESS.fullmatch(value.strip("\"'")) is None)


def _pair(match: re.Match[str]) -> str:
    quote, name, sign, value = match.groups()
    if not quote and sign == "=" and match.string[: match.start()].endswith(("/", "\\")):
        # A folder of a path, such as ``patient_key=12``: what is below it, the file's name above all, stays.
        folder = re.split(r"[/\\]", value, maxsplit=1)[0]
        return f"{name}={LEFT_OUT if _is_secret(name, folder) else folder}{_PAIR.sub(_pair, value[len(folder) :])}"
    # In prose a colon follows many a word: there it takes quotes, or a name that none would write.
    prose = ":" in sign and not quote and not re.search(r"(?i)[-_]|authorization", name)
    if prose or not _is_secret(name, value):
        return f"{quote}{name}{quote}{sign}{_PAIR.sub(_pair, value)}"
    return f"{quote}{name}{quote}{sign}{LEFT_OUT}"
