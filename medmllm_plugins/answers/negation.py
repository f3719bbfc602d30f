"""Which mentions in a text are asserted, and which are negated, questioned or only supposed.

A rule-based scope finder after NegEx (Chapman et al., J Biomed Inform 34, 2001), with clause ends, coordination and
questions added. It leans one way on purpose: a mention it is unsure of is not asserted. The rules are for English;
Chinese, Japanese and Korean have the common negators only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_SEEN = (
    r"(?:seen|present|identified|detected|noted|visible|visuali[sz]ed|evident|observed|found|likely|suspected|apparent"
    r"|demonstrated|supported|suggested|indicated|favou?red|confirmed|appreciated|correct|the case|true|possible"
    r"|diagnosed|shown|established|considered)"
)
_OUT = r"(?:ruled out|excluded|refuted|unlikely|improbable|absent|doubtful|dismissed|discarded)"
_BE = r"(?:is|are|was|were|be|been|being|seems?|appears?)"
_CHANCE = r"(?:suspicion|likelihood|probability|risk|concern|chance|possibility|index of suspicion)"
_LOW = r"(?:(?:very |relatively )?low(?:er)?|minimal|little)"

# Kind of event -> pattern. Order matters: of those that match at one place the first wins.
_PATTERNS = {
    # Skipped: what looks like a negator or a clause end and is none.
    "skip": (
        r"\b(?:e\.g|i\.e|vs|dr|fig)\.|(?<=\d)[.,:](?=\d)|\.{2,}"
        r"|\b(?:not (?:only|just|merely|simply)|no (?:doubt|question)|without (?:any |a )?(?:doubt|question)"
        r"|not surprising(?:ly)?|other than)\b|非常|无疑|不仅|不但|不只"
    ),
    # Negates what comes before and after it in the clause.
    "both": (
        rf"\b(?:not|can ?not|[a-z]{{2,6}}n't) (?:been |be )?(?:[a-z]{{2,14}}ly )?(?:be )?{_SEEN}\b"
        r"|では?な|ではあり|じゃな|なし|ません|ない|否定|아니|아닙|아닌|아님|않|없|可能性(?:很|较|比较)?(?:低|小)"
    ),
    # Negates what comes before it in the clause.
    "before": (
        rf"\b{_BE} (?:[a-z]{{2,14}} )?(?:{_OUT}|negative|less likely|(?:very |quite |too )?low)\b(?! for| to )"
        r"|(?<=[a-z0-9][- ])(?:free|negative)\b(?! (?:of|for|from))"
        r"|[:?=|(-] ?(?:no|not|none|negative|absent|false|unlikely)(?= ?(?:[.,;!?|)\n]|$))"
    ),
    # Negates what follows, or where nothing follows in the clause, what comes before.
    "either": rf"\b(?:{_OUT}|rules? out|ruling out|excludes?|excluding|less likely)\b",
    "no": (
        r"\bno\b(?! ?,)|\b(?:without|absence of|lack of|lacks|lacking|negative for|free (?:of|from)|none of|nothing"
        rf"|neither|nor|never|{_LOW} {_CHANCE} (?:of|for|that))\b"
    ),
    "not": (
        r"\b(?:not(?:, [a-z ]{2,20},)?|can ?not|[a-z]{2,6}n't|isnt|doesnt|dont|wasnt|arent|cant|than|instead of"
        r"|opposed to|against|mimic(?:s|king|ked)?|unable to|fails? to|failed to|whether|if|unless|unsure|uncertain)"
        r"(?![a-z0-9])|不|并非|並非|非|无|無|没有|沒有|未|排除"
    ),
    "stop": (
        r"\b(?:but|however|although|though|while|whereas|nevertheless|except|because|since|instead|rather)\b"
        r"|\b(?:therefore|thus|hence|so)\b(?= (?:it|the|this|i|we)\b)|(?<=\S) -{1,3} |而是|但|而"
    ),
    "question": r"\?",
    "end": r"[.;!\n]",
    "colon": r":",
    "comma": r",",
    "open": r"[(\[]",
    "close": r"[)\]]",
    "or": r"\b(?:or|nor)\b|或",
    "and": r"\band\b",
    "verb": (
        r"\b(?:is|are|was|were|has|have|appears?|seems?|looks?|shows?|suggests?|indicates?|represents?|favou?rs?|seen"
        r"|present|identified|detected|noted|visible|evident|observed|found)\b"
    ),
    "subject": (
        r"\b(?:it|it's|this|these|the|there|that|they|we|i|which|overall|image|scan|findings|lesion|diagnosis"
        r"|suggesting|suggestive|indicating|indicative|consistent|compatible|likely|probably|most|making|favou?ring"
        r"|so|therefore|thus|hence)\b"
    ),
}
# No event starts inside a Latin word; saying so first makes the scan several times faster.
_EVENT = re.compile(
    "(?<![a-z](?=[a-z]))(?:" + "|".join(f"(?P<{kind}>{pattern})" for kind, pattern in _PATTERNS.items()) + ")"
)
_INTERROGATIVE = re.compile(
    r"[\s\"'>-]{0,9}(?:so,? |and |but )?"
    r"(?:is|are|was|were|does|do|did|could|can|would|should|has|have|what|which|why|how)\b"
)
_YES = re.compile(r"[\s\"'-]{0,9}yes\b")
# Written onto the word itself, these make another word of it: "non-malignant", "pre-malignant", "COVID-like".
_PREFIX = re.compile(r"(?<![a-z0-9])(?:non[- ]|(?:pre|post|anti|semi|pseudo|near|quasi|un|ab|in)-)$")
_SUFFIX = re.compile(r"-(?:like|free|mimicking|mimic|negative|less)\b")
_CLAUSE_ENDS = frozenset({"end", "stop", "question", "colon"})
_NEGATORS = frozenset({"both", "before", "no", "not", "either"})


class _Event(NamedTuple):
    kind: str
    start: int
    end: int
    mention: int = -1


class _Scope(NamedTuple):
    """The scope of a negation: its kind ("no", "not" or none), its start, and what followed the negator."""

    kind: str = ""
    start: int = 0
    mentioned: bool = False
    verb: bool = False


def asserted(text: str, mentions: Sequence[tuple[int, int]]) -> list[bool]:
    """Return for each mention whether the text asserts it.

    ``text`` is folded (see ``normalise.fold``) and has no markup; ``mentions`` are spans in order and apart. Words in a
    span never act as negators, so a listed phrase such as "no finding" is a plain mention.

    Returns:
        One flag for each mention: False where it is negated, asked, supposed or compared away.
    """
    return _ScopeFinder(text, mentions).flags() if mentions else []


class _ScopeFinder:
    """Walks once over the mentions and scope words of a text, and clears the flags of negated mentions."""

    def __init__(self, text: str, mentions: Sequence[tuple[int, int]]) -> None:
        self._text = text
        self._events = _events(text, mentions)
        self._lists = _lists(self._events)
        self._flags = [
            not _PREFIX.search(text, max(0, start - 7), start) and not _SUFFIX.match(text, end)
            for start, end in mentions
        ]
        self._scope = _Scope()
        self._waiting = False  # the negator may yet turn out to negate what came before it
        self._clause: list[int] = []  # mentions that a later "is ruled out" would negate
        self._clause_verb = False
        self._sentence: list[int] = []
        self._sentence_start = 0
        self._parentheses: list[_Scope] = []

    def flags(self) -> list[bool]:
        """Return one flag for each mention."""
        for index, event in enumerate(self._events):
            if event.kind == "mention":
                self._mention(event.mention)
            elif event.kind in _NEGATORS:
                self._negator(event)
            elif event.kind in ("and", "comma"):
                self._joint(index, event)
            elif event.kind in _CLAUSE_ENDS:
                self._clause_end(event)
            elif event.kind == "verb":
                self._scope, self._clause_verb = self._scope._replace(verb=True), True
            elif event.kind == "open":
                self._parentheses.append(self._scope)
            elif event.kind == "close" and self._parentheses:
                if self._waiting and self._scope.kind:
                    self._negate(self._clause)
                self._scope, self._waiting = self._parentheses.pop(), False
        self._close_scope()
        return self._flags

    def _mention(self, mention: int) -> None:
        self._sentence.append(mention)
        if self._scope.kind:
            self._flags[mention] = False
            self._scope, self._waiting = self._scope._replace(mentioned=True), False
        else:
            self._clause.append(mention)

    def _negator(self, event: _Event) -> None:
        if event.kind in ("both", "before"):
            self._negate(self._clause)
        if event.kind != "before":
            self._waiting = event.kind == "either"
            self._scope = _Scope("no" if event.kind == "no" else "not", event.end)

    def _joint(self, index: int, event: _Event) -> None:
        """End the scope at an "and" or a comma that begins a new clause, and not inside a list."""
        scope, starts_clause = self._scope, _starts_clause(self._text, self._events, index)
        if event.kind == "and":
            ends_scope, ends_clause = starts_clause or (scope.kind == "no" and scope.verb), self._clause_verb
        else:
            # "not benign, malignant" ends the scope; "no mass, effusion, or malignancy" does not.
            contrast = scope.kind == "not" or scope.mentioned or scope.verb or starts_clause
            ends_scope, ends_clause = contrast and self._lists[index] != "or", not self._lists[index]
        if scope.kind and ends_scope:
            self._close_scope()
        if ends_clause:
            self._start_clause()

    def _clause_end(self, event: _Event) -> None:
        text, scope = self._text, self._scope
        empty_scope = not text[scope.start : event.start].strip()
        if event.kind == "colon":
            # "Excluded: malignancy" continues through the colon, "no mass: normal" does not.
            ends_scope = bool(scope.kind) and not empty_scope
        else:
            is_question = event.kind == "question" and _INTERROGATIVE.match(text, self._sentence_start)
            if is_question and not _YES.match(text, event.end):
                self._negate(list(self._sentence))
            # A line may break right after its negator; the negation then continues.
            line_break = text[event.start : event.end] == "\n"
            ends_scope = not (scope.kind and not self._waiting and line_break and empty_scope)
        if ends_scope:
            self._close_scope()
        self._start_clause()
        if event.kind in ("end", "question"):
            self._sentence.clear()
            self._sentence_start = event.end
            self._parentheses.clear()

    def _negate(self, mentions: list[int]) -> None:
        """Clear the flags of mentions, and empty the list."""
        for mention in mentions:
            self._flags[mention] = False
        mentions.clear()

    def _close_scope(self) -> None:
        if self._waiting:
            self._negate(self._clause)
        self._scope, self._waiting = self._scope._replace(kind=""), False

    def _start_clause(self) -> None:
        self._clause.clear()
        self._clause_verb = False


def _events(text: str, mentions: Sequence[tuple[int, int]]) -> list[_Event]:
    """Return mentions and scope words in order; a scope word that touches a mention's span is left out."""
    out: list[_Event] = []
    match = _EVENT.search(text)
    for index, (first, last) in enumerate(mentions):
        while match is not None and match.start() < first:
            if match.end() <= first:
                out.append(_Event(str(match.lastgroup), match.start(), match.end()))
            match = _EVENT.search(text, match.end() if match.end() <= first else last)
        out.append(_Event("mention", first, last, index))
        # Searched again only if the present match lies inside the mention, so that the whole stays linear.
        if match is not None and match.start() < last:
            match = _EVENT.search(text, last)
    while match is not None:
        out.append(_Event(str(match.lastgroup), match.start(), match.end()))
        match = _EVENT.search(text, match.end())
    return [event for event in out if event.kind != "skip"]


def _starts_clause(text: str, events: list[_Event], i: int) -> bool:
    """Return whether a subject or verb follows event ``i`` directly ("…, the image", "…, and is")."""
    for follower in events[i + 1 : i + 3]:
        if text[events[i].end : follower.start].strip():
            return False
        if follower.kind in ("verb", "subject"):
            return True
        if follower.kind != "and":
            return False
        i += 1
    return False


def _lists(events: list[_Event]) -> list[str]:
    """Return for each event the conjunction that continues a list after it: ``"or"``, ``"and"`` or ``""``.

    A list continues where a conjunction comes before the next clause end, verb or subject.
    """
    out = [""] * len(events)
    state = ""
    for i in range(len(events) - 1, -1, -1):
        out[i] = state
        kind = events[i].kind
        if kind in ("or", "and"):
            state = kind
        elif kind in ("verb", "subject") or kind in _CLAUSE_ENDS:
            state = ""
    return out
