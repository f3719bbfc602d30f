"""Flags of the host's command that our tasks and models cannot honour, refused before a model is loaded.

``tests/host/test_flags.py`` goes through every flag that the host has, and says what each does here.
"""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any, Final

from medmllm_plugins.errors import OptionError, shown

KEY_VALUE: Final = ("model_args", "gen_kwargs", "launcher_args")
"""Flags that take ``name=value`` pairs."""
HONOURED: Final = frozenset({"max_new_tokens", "until", "do_sample", "temperature", "num_beams"})
"""Settings of generation that our models follow, or refuse where they ask for anything but greedy decoding."""
WITHOUT_EFFECT: Final = frozenset({"top_p", "top_k", "min_p", "typical_p", "early_stopping", "use_cache", "seed"})
"""Settings that greedy decoding does not depend on."""
CHANGES_ANSWERS: Final = frozenset(
    {
        "bad_words_ids",
        "encoder_repetition_penalty",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "guidance_scale",
        "min_length",
        "min_new_tokens",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_return_sequences",
        "penalty_alpha",
        "repetition_penalty",
        "sequence_bias",
        "suppress_tokens",
    }
)
"""Settings that would change a greedy answer, and that our models do not follow."""
NEUTRAL: Final = (None, False, 0, 1)
"""Values at which these, too, change nothing."""


def check_command(args: Namespace, *, task: bool, model: bool, chat: bool) -> None:
    """Refuse flags whose effect would be wrong, missing, or a crash once the answers are there.

    ``task`` and ``model`` say whether they are of this package, ``chat`` whether the model takes chat messages, as
    ours do.

    Raises:
        OptionError: a flag cannot be honoured; the message says what to do.
    """
    for name in KEY_VALUE:
        if isinstance(text := getattr(args, name, None), str) and text.strip():
            parse_pairs(name, text)
    if getattr(args, "limit", None) == 0:
        raise OptionError("--limit 0: expected at least one document. Leave it out to evaluate all.")
    if getattr(args, "max_tokens", None) is not None:
        raise OptionError(
            "--max_tokens: a budget of tokens leaves the rest of the documents without an answer, which would count as "
            "wrong. Use --limit for fewer documents, or --gen_kwargs max_new_tokens=N for shorter answers."
        )
    if getattr(args, "check_integrity", False):
        raise OptionError(
            "--check_integrity: the test suite that it runs is not part of an installed lmms-eval. Leave it out; "
            "`medmllm doctor` checks the installation, `medmllm datasets --check` the data."
        )
    if chat and getattr(args, "system_instruction", None) is not None:
        instead = "--model_args system=… instead" if model else "the model's own argument for it, if it has one"
        raise OptionError(f"--system_instruction: lmms-eval hands it to no chat model. Use {instead}.")
    if not task:
        return
    if getattr(args, "apply_chat_template", False) and not model:
        raise OptionError(
            "--apply_chat_template: the tasks of this package hand messages to chat models, which apply their own "
            "template. Leave it out."
        )
    check_shots(getattr(args, "num_fewshot", None))
    check_repeats(getattr(args, "repeats", None))
    if getattr(args, "baseline", None):
        raise OptionError(
            "--baseline: lmms-eval cannot compare the results of medical classification tasks. Use "
            "`medmllm compare RUN_A RUN_B`, which tests differences on the same documents."
        )
    _check_reasoning_tags(getattr(args, "reasoning_tags", None))


def check_shots(count: int | None) -> None:
    """Raise an OptionError for a negative number of examples."""
    if count is not None and count < 0:
        raise OptionError(f"--num_fewshot: expected a number of examples of at least 0, got {count}.")


def check_repeats(count: int | None) -> None:
    """Raise an OptionError for several answers per question, of which our tasks would score the first."""
    if count is not None and count != 1:
        raise OptionError(
            f"--repeats: expected 1, got {count}: medical classification scores one answer per question, and greedy "
            "answers repeat themselves. Leave it out; order=varied and paraphrase=all behind a task's name vary "
            "the question."
        )


def check_fraction(limit: float | None, count: int, taken: int | None, task: str) -> None:
    """Refuse a fraction of the documents where the host has turned it into a number for another task.

    ``count`` is the number of the task's questions, ``taken`` how many of them the host takes.

    Raises:
        OptionError: these are not the fraction of this task that was asked for.
    """
    if limit is None or not 0 < limit < 1 or taken is None:
        return
    if (wanted := math.ceil(count * limit)) != taken:
        raise OptionError(
            f"--limit {limit:g}: lmms-eval takes the fraction of the first task, {taken} questions, for every task; of "
            f"{task} it would be {wanted}. Evaluate one task a command, or give a number."
        )


def check_generation(settings: Mapping[str, Any], where: str, *, ours: bool) -> None:
    """Refuse settings of generation that our models do not follow.

    ``where`` names task and model in errors; the settings of a task of ours are all the user's own.

    Raises:
        OptionError: an answer under these settings is none that our models give.
    """
    greedy = "Set do_sample=False,temperature=0,num_beams=1 with --gen_kwargs."
    temperature, beams = settings.get("temperature") or 0, settings.get("num_beams") or 1
    if settings.get("do_sample") or _number(temperature, "temperature") > 0 or _number(beams, "num_beams") > 1:
        chosen = {name: settings[name] for name in ("do_sample", "temperature", "num_beams") if name in settings}
        raise OptionError(
            f"{where}: expected greedy decoding, which is all there is here, got {shown(chosen)}. {greedy}"
        )
    tokens = settings.get("max_new_tokens")
    if tokens is not None and (isinstance(tokens, bool) or _number(tokens, "max_new_tokens") < 1 or tokens % 1):
        raise OptionError(f"{where}: expected max_new_tokens to be a whole number of at least 1, got {shown(tokens)}.")
    until = settings.get("until") or ()
    if not isinstance(until, str) and not (
        isinstance(until, Sequence) and all(isinstance(stop, str) for stop in until)
    ):
        raise OptionError(f"{where}: expected until to be a text or a list of texts, got {shown(until)}.")
    barred = sorted(
        name
        for name, value in settings.items()
        if name not in HONOURED | WITHOUT_EFFECT and (ours or name in CHANGES_ANSWERS) and value not in NEUTRAL
    )
    if barred:
        raise OptionError(
            f"{where}: expected settings of generation among {', '.join(sorted(HONOURED))}, got {shown(barred)}, which "
            "would be left without effect. Remove them from --gen_kwargs."
        )


def _number(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise OptionError(f"--gen_kwargs: expected {name} to be a number, got {shown(value)}.")
    return value


def parse_pairs(name: str, text: str) -> dict[str, Any]:
    """Read ``name=value`` pairs as the host does, or raise an OptionError if the text of the flag is none."""
    from lmms_eval.utils import simple_parse_args_string

    try:
        pairs: dict[str, Any] = simple_parse_args_string(text)
    except ValueError:
        raise OptionError(f"--{name}: expected name=value pairs with commas between them, got {shown(text)}.") from None
    return pairs


def _check_reasoning_tags(value: Any) -> None:
    """Refuse what the host would trip over once the answers are there."""
    if value is None or value == "none" or value is False:
        return
    try:
        pairs = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        pairs = None
    sound = isinstance(pairs, list) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(tag, str) and tag for tag in pair)
        for pair in pairs
    )
    if not sound:
        raise OptionError(
            '--reasoning_tags: expected a JSON list of pairs, such as [["<think>", "</think>"]], or none, got '
            f"{shown(value)}."
        )
