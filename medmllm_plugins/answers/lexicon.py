"""Find the phrases of a class list, and the option letters of a question, in a text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

from medmllm_plugins.answers.normalise import fold, strip_markup
from medmllm_plugins.errors import OptionError
from medmllm_plugins.utils.suggestions import one_edit_apart

# Scripts written without spaces: there a phrase may stand inside a run of letters.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_HANGUL = "\u1100-\u11ff\uac00-\ud7ff"
_LETTER = rf"[^\W_{_UNSPACED}]"
_UNIT = r"(?:%|percent|mm|cm|ml|mg|hu|kg|years?|months?|weeks?|days?)(?![a-z])"
_NEXT_WORD = re.compile(r" [^\W_]")
_NEXT_CONJUNCTION = re.compile(r" (?:or|and|because|since|as|which|based|due|given)\b")
# An English name whose plural ends in s; the adjectives among them have no plural, and their "plural" no text.
_WORD = re.compile(r"[a-z][a-z -]{3,60}[a-rt-z]s")

_PLAIN_KEY = re.compile(r"[a-z]{4}[a-z0-9]{1,20}")
_PLAIN_WORD = re.compile(r"(?<![\w-])[a-z]{4}[a-z0-9-]{0,20}(?![\w-])")
_INSERTED, _SUBSTITUTED = 6, 8
"""Shortest phrases in which a missing or additional letter, and another letter, are taken for a slip."""


class Mention(NamedTuple):
    """A phrase or an option letter of the class list in a text: its span, and the indices of the classes it names."""

    start: int
    end: int
    owners: tuple[int, ...]


class Lexicon:
    """Compiled phrases of one class list and its option letters.

    Phrases are the class names, their synonyms, and the translations of both that ``translations.json`` lists.
    """

    def __init__(
        self, classes: tuple[tuple[str, tuple[str, ...]], ...], options: tuple[tuple[str, str], ...] | None
    ) -> None:
        self.names = tuple(name for name, _ in classes)
        self._owners: dict[str, list[int]] = {}
        self._stems: list[str] = []
        patterns: dict[str, list[str]] = {}
        for index, (name, synonyms) in enumerate(classes):
            phrases = [strip_markup(fold(phrase)) for phrase in (name, *synonyms)]
            phrases = [phrase for phrase in phrases if re.search(r"[^\W_]", phrase)]
            if not phrases:
                raise OptionError(
                    f"expected class {name!r} to have a name or synonym with a letter or digit, got "
                    f"{(name, *synonyms)!r}. Give it a synonym that an answer could contain."
                )
            for phrase in phrases:
                self._add(index, phrase, patterns)
        # A phrase of the declaration keeps its meaning, also where it is a translation of another class's phrase.
        declared = frozenset(patterns)
        for index, (name, synonyms) in enumerate(classes):
            plural = f"{strip_markup(fold(name))}s"
            if _WORD.fullmatch(plural) and _key(plural) not in declared:
                self._add(index, plural, patterns)
            for phrase in (name, *synonyms):
                for translation in _translations().get(strip_markup(fold(phrase)), ()):
                    if _key(translation.rstrip("*")) not in declared:
                        self._add(index, translation, patterns)
        self._stems.sort(key=len, reverse=True)
        ordered = sorted(patterns, key=lambda key: (-len(key), key))
        # A look-ahead finds a phrase at every place, so that overlaps can be settled by length and not by order.
        # Their first characters come first, which spares most places the longer test.
        initials = "".join(sorted({re.escape(key[0]) for key in ordered}))
        alternatives = "|".join(spelling for key in ordered for spelling in patterns[key])
        self._phrases = re.compile(f"(?=[{initials}])(?=({alternatives}))" if ordered else r"(?!)")
        self._letters: dict[str, int] = {}
        self._letter_forms: re.Pattern[str] | None = None
        if options:
            for letter, name in options:
                if name not in self.names:
                    raise OptionError(
                        f"expected option {letter!r} to name one of {self.names}, got {name!r}. Correct the options."
                    )
                self._letters[strip_markup(fold(letter))] = self.names.index(name)
            self._letter_forms = _letter_forms(self._letters)
            self._letter = re.compile(rf"(?<!\w)(?:{_alternatives(self._letters)})(?!\w)")

    def _add(self, index: int, phrase: str, patterns: dict[str, list[str]]) -> None:
        stem = phrase.rstrip("*")
        key, pattern = _key(stem), _pattern(stem, open_end=stem != phrase)
        if stem != phrase:
            self._stems.append(key)
        spellings = patterns.setdefault(key, [])
        if pattern not in spellings:
            spellings.append(pattern)
        owners = self._owners.setdefault(key, [])
        if index not in owners:
            owners.append(index)

    def mentions(self, plain: str) -> list[Mention]:
        """Return what a cleaned text mentions, in order and apart; of phrases that overlap, the longest."""
        spans = [match.span(1) for match in self._phrases.finditer(plain)]
        # Longest first; a shorter span that meets a longer one always has an end inside it.
        taken = bytearray(len(plain))
        mentions: list[Mention] = []
        for start, end in sorted(spans, key=lambda span: (span[0] - span[1], span[0])):
            if not taken[start] and not taken[end - 1]:
                taken[start:end] = b"\x01" * (end - start)
                mentions.append(Mention(start, end, self._classes_of(plain[start:end])))
        if self._letter_forms is not None:
            starts = {mention.start for mention in mentions}
            for form in self._letter_forms.finditer(plain):
                for letter in self._letter.finditer(plain, form.start("keys"), form.end("keys")):
                    start, end = letter.span()
                    if not taken[start] and self._stands_alone(plain, start, end, starts):
                        taken[start] = 1
                        mentions.append(Mention(start, end, (self._letters[letter[0]],)))
        return sorted(mentions)

    def corrected(self, plain: str) -> str:
        """Return a text with words that differ by one slip of the keyboard from a phrase replaced by that phrase."""
        phrases = [key for key in self._owners if _PLAIN_KEY.fullmatch(key)]

        def correct(word: re.Match[str]) -> str:
            return next((key for key in phrases if _is_slip(_key(word[0]), key)), word[0])

        return _PLAIN_WORD.sub(correct, plain)

    def _classes_of(self, spelling: str) -> tuple[int, ...]:
        key = _key(spelling)
        if key not in self._owners:
            key = next(stem for stem in self._stems if key.startswith(stem))
        return tuple(self._owners[key])

    def _stands_alone(self, plain: str, start: int, end: int, mentions: set[int]) -> bool:
        """Return whether a letter before a blank and a word is an option: "B malignant", but not "A benign lesion"."""
        if not _NEXT_WORD.match(plain, end) or _NEXT_CONJUNCTION.match(plain, end):
            return True
        return plain[start:end] not in ("a", "i") and end + 1 in mentions


@lru_cache(maxsize=64)
def lexicon(classes: tuple[tuple[str, tuple[str, ...]], ...], options: tuple[tuple[str, str], ...] | None) -> Lexicon:
    """Return the compiled phrases of a class list, given as pairs of name and synonyms, and of its option letters."""
    return Lexicon(classes, options)


@lru_cache(maxsize=1)
def _translations() -> dict[str, tuple[str, ...]]:
    """Return translations of folded English phrases; one that ends in ``*`` is the stem of inflected words."""
    table = json.loads(files(__package__).joinpath("translations.json").read_text(encoding="utf-8"))
    return {fold(phrase): tuple(map(fold, words)) for phrase, words in table.items()}


def _is_slip(word: str, phrase: str) -> bool:
    """Return whether two letters are swapped, or in longer words one inner letter is missing, doubled or another."""
    if word[0] != phrase[0] or not one_edit_apart(word, phrase):
        return False
    shortest = _SUBSTITUTED if len(word) == len(phrase) else _INSERTED
    return sorted(word) == sorted(phrase) or (word[-1] == phrase[-1] and len(phrase) >= shortest)


def _key(phrase: str) -> str:
    """Return the spelling of a phrase without blanks and hyphens inside it; equal for all its variants."""
    return re.sub(r"(?<=[^\s-])[\s-]+(?=[^\s-])", "", phrase)


def _pattern(phrase: str, *, open_end: bool = False) -> str:
    """Return a regular expression for a phrase as whole words, in any spelling with blank or hyphen.

    With ``open_end`` the last word may have any ending.
    """
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
    return left + body + (r"\w*" if open_end else right)


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
