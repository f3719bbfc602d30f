"""Read a class out of a model's answer, and never guess one.

An answer is ``parsed`` only where the text commits to exactly one class. Every other answer is counted for what it is:
``ambiguous`` (two or more classes), ``refusal`` (it declines) or ``out_of_list`` (no class, or a negated one only).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from medmllm_plugins.answers.lexicon import Lexicon, lexicon
from medmllm_plugins.answers.negation import polarities
from medmllm_plugins.answers.normalise import final_answer, strip_markup
from medmllm_plugins.answers.sentences import Reading, read, union
from medmllm_plugins.answers.statements import NONE_LISTED, is_final, statements
from medmllm_plugins.answers.structured import json_answers, most_probable

Status = Literal["parsed", "ambiguous", "out_of_list", "refusal"]

_CORRECTION = re.compile(
    r"\b(?:actually|wait|correction|on second thought|let me re\w*|i mean|scratch that|looking again"
    r"|i withdraw(?: that)?)\b"
)
_MAX_CORRECTIONS: Final = 20
_LONGEST: Final = 100_000
"""Characters that are read, the last ones. No answer is longer, unless the model repeats itself."""

_SHORT: Final = 200
"""Characters of an answer in which misspelt names are corrected, if there is no other."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model's text says about the class.

    Attributes:
        status: ``parsed``, ``ambiguous``, ``out_of_list`` or ``refusal``.
        label: the class name; set exactly when ``status`` is ``parsed``.
        candidates: class names that the text asserts, in class order (two or more when ambiguous).
    """

    status: Status
    label: str | None
    candidates: tuple[str, ...]


def parse_answer(
    text: str, classes: Mapping[str, tuple[str, ...]], *, options: Mapping[str, str] | None = None
) -> Answer:
    r"""Read the class that an answer commits to.

    Case, Unicode form, markup and the spelling with blank, hyphen or underscore do not matter. Names and synonyms match
    as whole words, the longest first, so "Non-COVID" is not "COVID". Reasoning blocks are dropped. In this order, the
    first that names exactly one class decides: a non-blank ``<answer>`` element or the last ``\boxed{…}``; a JSON
    object with a key such as "category"; the last statement such as "Answer: X"; a list of probabilities; the sentences
    of the whole text, conclusions before others. Questions, hypotheticals, advice, the list of options and statements
    about classes in general are no answers. Where there are two classes, a negated one is the other.

    Args:
        text: what the model wrote; any string.
        classes: class name -> its synonyms. A phrase that two classes share names both.
        options: option letter -> class name, where the prompt listed letters; None where it did not, and then letters
            mean nothing.

    Returns:
        The answer; see ``Answer``.

    Raises:
        OptionError: a class has no phrase with a letter or digit, or an option names no class.
    """
    frozen = tuple((name, tuple(synonyms)) for name, synonyms in classes.items())
    phrases = lexicon(frozen, None if options is None else tuple(options.items()))
    final = final_answer(text)
    if final is not None and final.boxed and not phrases.mentions(final.plain) and len(final.plain) < 3:
        final = final_answer(text.replace("\\boxed", ""))  # a number in the box, which the text explains
    if final is None:
        return Answer("out_of_list", None, ())
    for value in json_answers(final.raw[-_LONGEST:]):
        answer = _verdict(read(strip_markup(value), phrases), phrases)
        if answer.status == "parsed":
            return answer
    plain = _last_word(final.plain[-_LONGEST:], phrases)
    if not final.boxed and (stated := _stated(plain, phrases)) is not None:
        return stated
    mentions = phrases.mentions(plain)
    if not mentions and len(plain) <= _SHORT and (corrected := phrases.corrected(plain)) != plain:
        return _verdict(read(corrected, phrases), phrases)
    probable = most_probable(plain, mentions)
    if probable is not None:
        return _answer(frozenset({probable}), phrases)
    return _verdict(read(plain, phrases), phrases)


def mentions(plain: str, phrase: str, synonyms: tuple[str, ...] = ()) -> tuple[bool, bool]:
    """Return whether cleaned text asserts a phrase or one of its synonyms anywhere, and whether it negates one."""
    spans = [(mention.start, mention.end) for mention in lexicon(((phrase, synonyms),), None).mentions(plain)]
    values = polarities(plain, spans)
    asserted = any(value in ("asserted", "possible") for value in values)
    return asserted, "negated" in values and not asserted


def _stated(plain: str, phrases: Lexicon) -> Answer | None:
    """Return the answer of the statements such as "Answer: X"; ``None`` if they do not decide."""
    spans = statements(plain, phrases)
    if not spans:
        return None
    stated = plain[slice(*spans[-1])]
    reading = read(stated, phrases)
    answer = _verdict(reading, phrases)
    if answer.status == "parsed":
        # Statements that contradict each other are no answer, unless the last alone is called final.
        conflict = reading.candidates | read(plain[spans[-1][1] :], phrases).concluded
        if not is_final(plain, spans[-1]) or any(is_final(plain, span) for span in spans[:-1]):
            earlier = [read(plain[slice(*span)], phrases).candidates for span in spans[:-1]]
            conflict |= union(candidates for candidates in earlier if len(candidates) == 1)
        return _answer(conflict, phrases) if len(conflict) > 1 else answer
    if answer.status != "out_of_list":
        return answer
    # The statement rejects what the discussion names: nothing is left that the text commits to.
    whole = read(plain, phrases)
    if NONE_LISTED.search(stated) or whole.asserted <= reading.negated:
        return Answer("refusal" if whole.refuses else "out_of_list", None, ())
    return None


def _last_word(plain: str, phrases: Lexicon) -> str:
    """Return the text after the last "wait" or "correction" that still names a class; all of it without one."""
    for correction in reversed(list(_CORRECTION.finditer(plain))[-_MAX_CORRECTIONS:]):
        rest = plain[correction.end() :]
        if read(rest, phrases).candidates:
            return rest
    return plain


def _verdict(reading: Reading, phrases: Lexicon) -> Answer:
    chosen = reading.candidates
    if not chosen and len(phrases.names) == 2 and len(reading.negated) == 1:
        chosen = frozenset({0, 1}) - reading.negated
    return _answer(chosen, phrases) if chosen else Answer("refusal" if reading.refuses else "out_of_list", None, ())


def _answer(chosen: frozenset[int], phrases: Lexicon) -> Answer:
    names = tuple(name for index, name in enumerate(phrases.names) if index in chosen)
    return Answer("parsed", names[0], names) if len(names) == 1 else Answer("ambiguous", None, names)
