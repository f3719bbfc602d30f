"""Errors that a user can mend: each says what was expected, what was found and what to do."""

from __future__ import annotations

import traceback


class MedMLLMError(Exception):
    """Base of every error this package raises on purpose."""


class OptionError(MedMLLMError, ValueError):
    """A model or task argument has a wrong name or value."""


class DataError(MedMLLMError):
    """The data on disk is missing, unreadable or labelled wrongly."""


class ModelError(MedMLLMError):
    """A checkpoint cannot be loaded as the model it claims to be, or cannot take an input."""


class PluginError(MedMLLMError):
    """A plugin is broken; raised only under ``MEDMLLM_STRICT=1``, reported otherwise."""


def one_line(error: BaseException) -> str:
    """An error on one line, cut at 300 characters; the traceback module copes with errors that cannot be printed."""
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    return text if len(text) <= 300 else text[:299] + "…"


def shown(value: object) -> str:
    """A value as a message shows it, cut at 120 characters."""
    try:
        text = repr(value[:200] if isinstance(value, str) else value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 120 else text[:119] + "…"
