"""Read a class out of a model's answer, and never guess one.

An answer is ``parsed`` only where the text asserts exactly one class. Every other answer is counted for what it is:
``ambiguous`` (two or more classes), ``refusal`` (it declines) or ``out_of_list`` (no class, or a negated one only).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from medmllm_plugins.answers.negation import asserted
from medmllm_plugins.answers.normalise import final_answer, fold, strip_markup
from medmllm_plugins.answers.refusals import is_refusal
from medmllm_plugins.errors import OptionError

Status = Literal["parsed", "ambiguous", "out_of_list", "refusal"]

# Scripts written without spaces: there a phrase may stand inside a run of letters.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_HANGUL = "\u1100-\u11ff\uac00-\ud7ff"
_LETTER = rf"[^\W_{_UNSPACED}]"
_UNIT = r"(?:%|percent|mm|cm|ml|mg|hu|kg|years?|months?|weeks?|days?)(?![a-z])"

_HEAD = re.compile(
    r"(?<!differential )(?<!alternative )(?<!other )(?<!possible )(?<!wrong )(?<!incorrect )(?<!bi-rads )(?<!birads )"
    r"\b(?:answer|diagnosis|classification|prediction|conclusion|impression|verdict|category|class|label|grade|result)\b"
    r"['\"]?(?: ?\([^()\n]{0,30}\))? ?(?::|=|->| - |\bis\b|\bwould be\b)(?: ?:)?[\s'\"]*"
)
# An option letter may be followed by a full stop and its text, so the stop after a lone letter ends nothing.
_STATEMENT_END = re.compile(r"[\n;!]|(?<!\b[a-z])\.(?=\s|$)")
_CORRECTION = re.compile(r"\b(?:actually|wait|correction|on second thought|let me re|i mean|scratch that)\b")
_NEXT_WORD = re.compile(r" [^\W_]")
_NEXT_CONJUNCTION = re.compile(r" (?:or|and|because|since|as|which|based|due|given)\b")
_NONE_LISTED = re.compile(r"\bnone of (?:the|these|those)\b")


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


@dataclass(frozen=True, slots=True)
class _Reading:
    """Class names that a piece of text asserts and those it negates, in class order, and whether it declines."""

    asserted: tuple[str, ...]
    negated: tuple[str, ...]
    refuses: bool


def parse_answer(
    text: str, classes: Mapping[str, tuple[str, ...]], *, options: Mapping[str, str] | None = None
) -> Answer:
    r"""Read the class that an answer asserts.

    Case, Unicode form, markup and the spelling with blank, hyphen or underscore do not matter. Names and synonyms match
    as whole words, the longest first, so "Non-COVID" is not "COVID". Reasoning blocks are dropped. A non-blank
    ``<answer>`` element, else the last ``\boxed{…}``, else the last statement such as "Answer: X" that names exactly
    one class, decides; else the whole text does.

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
    lexicon = _lexicon(frozen, None if options is None else tuple(options.items()))

    final = final_answer(text)
    if final is None:
        return Answer("out_of_list", None, ())
    plain, is_boxed = final
    whole = lexicon.read(plain)
    span = None if is_boxed else _statement(plain)
    if span is None:
        return _verdict(whole)
    stated = plain[slice(*span)]
    statement = lexicon.read(stated)
    if len(statement.asserted) == 1 and not _CORRECTION.search(plain, span[1]):
        return _verdict(statement)
    if not statement.asserted:
        if statement.refuses:
            return Answer("refusal", None, ())
        # The statement rejects what the discussion names: nothing is left that the text stands by.
        if _NONE_LISTED.search(stated) or set(whole.asserted) <= set(statement.negated):
            return Answer("refusal" if whole.refuses else "out_of_list", None, ())
    return _verdict(whole)


def mentions(plain: str, phrase: str, synonyms: tuple[str, ...] = ()) -> tuple[bool, bool]:
    """Return whether cleaned text asserts a phrase or one of its synonyms anywhere, and whether it negates one."""
    reading = _lexicon(((phrase, synonyms),), None).read(plain)
    return bool(reading.asserted), bool(reading.negated)


def _verdict(reading: _Reading) -> Answer:
    names = reading.asserted
    if len(names) == 1:
        return Answer("parsed", names[0], names)
    if names:
        return Answer("ambiguous", None, names)
    return Answer("refusal" if reading.refuses else "out_of_list", None, ())


def _statement(plain: str) -> tuple[int, int] | None:
    """Return the span of what the last "Answer: X" kind of statement says, up to the end of its sentence, or None."""
    heads = [match.end() for match in _HEAD.finditer(plain)]
    if not heads:
        return None
    stop = _STATEMENT_END.search(plain, heads[-1])
    span = (heads[-1], stop.start() if stop else len(plain))
    return span if plain[slice(*span)].strip() else None


class _Lexicon:
    """Compiled phrases of one class list and its option letters."""

    def __init__(
        self, classes: tuple[tuple[str, tuple[str, ...]], ...], options: tuple[tuple[str, str], ...] | None
    ) -> None:
        self.names = tuple(name for name, _ in classes)
        self.owners: dict[str, list[int]] = {}
        patterns: dict[str, list[str]] = {}
        for index, (name, synonyms) in enumerate(classes):
            readable = False
            for phrase in (name, *synonyms):
                plain = strip_markup(fold(phrase))
                if not re.search(r"[^\W_]", plain):
                    continue
                readable = True
                key = _key(plain)
                spellings = patterns.setdefault(key, [])
                if _pattern(plain) not in spellings:
                    spellings.append(_pattern(plain))
                owners = self.owners.setdefault(key, [])
                if index not in owners:
                    owners.append(index)
            if not readable:
                raise OptionError(
                    f"expected class {name!r} to have a name or synonym with a letter or digit, got "
                    f"{(name, *synonyms)!r}. Give it a synonym that an answer could contain."
                )
        ordered = sorted(patterns, key=lambda key: (-len(key), key))
        # A look-ahead finds a phrase at every place, so that overlaps can be settled by length and not by order.
        # Their first characters come first, which spares most places the longer test.
        initials = "".join(sorted({re.escape(key[0]) for key in ordered}))
        phrases = "|".join(spelling for key in ordered for spelling in patterns[key])
        self.phrases = re.compile(f"(?=[{initials}])(?=({phrases}))" if ordered else r"(?!)")
        self.letters: dict[str, int] = {}
        self.letter_forms: re.Pattern[str] | None = None
        if options:
            for letter, name in options:
                if name not in self.names:
                    raise OptionError(
                        f"expected option {letter!r} to name one of {self.names}, got {name!r}. Correct the options."
                    )
                self.letters[strip_markup(fold(letter))] = self.names.index(name)
            self.letter_forms = _letter_forms(self.letters)
            self.letter = re.compile(rf"(?<!\w)(?:{_alternatives(self.letters)})(?!\w)")

    def read(self, plain: str) -> _Reading:
        """Return the classes that cleaned text asserts and negates."""
        mentions = self._mentions(plain)
        flags = asserted(plain, [(start, end) for start, end, _ in mentions])
        yes: set[int] = set()
        no: set[int] = set()
        for (_, _, owners), flag in zip(mentions, flags, strict=True):
            (yes if flag else no).update(owners)
        return _Reading(
            tuple(name for i, name in enumerate(self.names) if i in yes),
            tuple(name for i, name in enumerate(self.names) if i in no - yes),
            not yes and is_refusal(plain),
        )

    def _mentions(self, plain: str) -> list[tuple[int, int, tuple[int, ...]]]:
        spans = [match.span(1) for match in self.phrases.finditer(plain)]
        # Longest first; a shorter span that meets a longer one always has an end inside it.
        taken = bytearray(len(plain))
        spans_taken: list[tuple[int, int, tuple[int, ...]]] = []
        for start, end in sorted(spans, key=lambda span: (span[0] - span[1], span[0])):
            if not taken[start] and not taken[end - 1]:
                taken[start:end] = b"\x01" * (end - start)
                spans_taken.append((start, end, tuple(self.owners[_key(plain[start:end])])))
        if self.letter_forms is not None:
            starts = {start for start, _, _ in spans_taken}
            for form in self.letter_forms.finditer(plain):
                for letter in self.letter.finditer(plain, form.start("keys"), form.end("keys")):
                    start, end = letter.span()
                    if not taken[start] and self._stands_alone(plain, start, end, starts):
                        taken[start] = 1
                        spans_taken.append((start, end, (self.letters[letter[0]],)))
        return sorted(spans_taken)

    def _stands_alone(self, plain: str, start: int, end: int, mentions: set[int]) -> bool:
        """Return whether a letter before a blank and a word is an option: "B malignant", but not "A benign lesion"."""
        if not _NEXT_WORD.match(plain, end) or _NEXT_CONJUNCTION.match(plain, end):
            return True
        return plain[start:end] not in ("a", "i") and end + 1 in mentions


@lru_cache(maxsize=64)
def _lexicon(classes: tuple[tuple[str, tuple[str, ...]], ...], options: tuple[tuple[str, str], ...] | None) -> _Lexicon:
    return _Lexicon(classes, options)


def _key(phrase: str) -> str:
    """Return the spelling of a phrase without blanks and hyphens inside it; equal for all its variants."""
    return re.sub(r"(?<=[^\s-])[\s-]+(?=[^\s-])", "", phrase)


def _pattern(phrase: str) -> str:
    """Return a regular expression for a phrase as whole words, in any spelling with blank or hyphen."""
    parts = re.split(r"(?<=[^\s-])([\s-]+)(?=[^\s-])", phrase)
    body = re.escape(parts[0])
    for joint, part in zip(parts[1::2], parts[2::2], strict=True):
        closed = "-" in joint and not (body[-1].isdigit() and part[0].isdigit())
        body += ("(?: ?- ?| )?" if closed else "(?: ?- ?| )") + re.escape(part)
    if phrase.isdecimal():
        # "1.5", "-1", "10" and "1 mm" hold no class "1".
        return rf"(?<!\d[.,])(?<![^\w\s]-)(?<!^-)(?<!\s-)(?<!\w){body}(?![.,]?\d)(?!\w)(?! ?{_UNIT})"
    first, last = phrase[0], phrase[-1]
    left = rf"(?<!{_LETTER})" if re.match(_LETTER, first) else ""
    # Korean particles are written onto the word, so its end is open; its start is not ("비정상" is not "정상").
    right = rf"(?!{_LETTER})" if re.match(_LETTER, last) and not re.match(f"[{_HANGUL}]", last) else ""
    return left + body + right


def _alternatives(letters: Mapping[str, int]) -> str:
    return "|".join(re.escape(letter) for letter in sorted(letters, key=len, reverse=True))


def _letter_forms(letters: Mapping[str, int]) -> re.Pattern[str]:
    """Return where an option letter may be: in brackets, after a cue such as "option", or first on a line."""
    key = f"(?:{_alternatives(letters)})"
    keys = rf"(?P<keys>{key}(?:(?: ?[,/&] ?| or | and | or option | and option ){key}(?!\w))*)"
    cue = (
        r"(?:it(?: is|'s) |(?:answer|option|choice|choose|select|pick|go with|diagnosis|classification|prediction"
        r"|category|class|label)(?: is| would be| should be|:| =| -)*[ \n]?)"
    )
    stop = r"(?!\w)(?![-']\w)(?!\.\w\.)"
    return re.compile(
        rf"(?:(?<!\w)(?<!figure )(?<!fig )(?<!fig\. )(?<!panel )(?<!image )(?<!view )[(\[]|(?<!\w){cue}[\"'(\[]?"
        rf"|(?:^|\n)[\s\"'>(\[-]{{0,9}}){keys}{stop}"
    )
