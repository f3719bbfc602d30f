"""Errors that a user can fix.

Every message follows one formula: ``path or name: expected X, got Y. What to do.`` It quotes at most 300 characters of
any value, and no keys or passwords.

    scans/07.dcm: expected 256 x 256 pixels of 16 bits (131,072 bytes), got 65,536 bytes of pixel data. The file is
    truncated: export it again, or use on_error=skip to leave it out.
"""

from __future__ import annotations

import sys
import traceback

from medmllm_plugins.redaction import without_secrets


class MedMLLMError(Exception):
    """Base of every error this package raises on purpose; what it quotes is without keys and passwords."""

    def __init__(self, *arguments: object) -> None:
        """Take the message; see :func:`medmllm_plugins.redaction.without_secrets`."""
        super().__init__(*(without_secrets(text, words=False) if isinstance(text, str) else text for text in arguments))


class OptionError(MedMLLMError, ValueError):
    """A model or task argument has a wrong name or value."""


class DataError(MedMLLMError):
    """The data on disk is missing, unreadable or labelled wrongly."""


class ModelError(MedMLLMError):
    """A checkpoint cannot be loaded as the model it claims to be, or cannot take an input."""


class PluginError(MedMLLMError):
    """A plugin is broken; raised only under ``MEDMLLM_STRICT=1``, reported otherwise."""


def print_error(line: str) -> None:
    """Print a line for people where it mixes with no results: to standard error."""
    print(line, file=sys.stderr, flush=True)


def one_line(error: BaseException) -> str:
    """Return an error on one line, without keys and passwords, cut at 300 characters.

    The traceback module also copes with errors that cannot be printed.
    """
    text = without_secrets(" ".join("".join(traceback.format_exception_only(error)).split()), words=False)
    return text if len(text) <= 300 else text[:299] + "…"


def shown(value: object) -> str:
    """Return a value as a message shows it, cut at 120 characters."""
    try:
        text = repr(value[:200] if isinstance(value, str) else value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 120 else text[:119] + "…"
