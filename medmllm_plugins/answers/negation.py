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
    # Negates what stands before and after it in the clause.
    "both": (
        rf"\b(?:not|can ?not|[a-z]{{2,6}}n't) (?:been |be )?(?:[a-z]{{2,14}}ly )?(?:be )?{_SEEN}\b"
        r"|では?な|ではあり|じゃな|なし|ません|ない|否定|아니|아닙|아닌|아님|않|없|可能性(?:很|较|比较)?(?:低|小)"
    ),
    # Negates what stands before it in the clause.
    "before": (
        rf"\b{_BE} (?:[a-z]{{2,14}} )?(?:{_OUT}|negative|less likely|(?:very |quite |too )?low)\b(?! for| to )"
        r"|(?<=[a-z0-9][- ])(?:free|negative)\b(?! (?:of|for|from))"
        r"|[:?=|(-] ?(?:no|not|none|negative|absent|false|unlikely)(?= ?(?:[.,;!?|)\n]|$))"
    ),
    # Negates what follows, or where nothing follows in the clause, what stands before.
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


class _Event(NamedTuple):
    kind: str
    start: int
    end: int
    mention: int = -1


def asserted(text: str, mentions: Sequence[tuple[int, int]]) -> list[bool]:
    """For each mention, whether the text asserts it.

    Args:
        text: folded text (see ``normalise.fold``) without markup.
        mentions: spans ``(start, end)``, in order and apart. Words inside a span never act as negators, so a listed
            phrase such as "no finding" is a plain mention.

    Returns:
        One flag for each mention: False where it is negated, asked, supposed or compared away.
    """
    if not mentions:
        return []
    events = _events(text, mentions)
    listing = _listings(events)
    flags = [
        not _PREFIX.search(text, max(0, start - 7), start) and not _SUFFIX.match(text, end) for start, end in mentions
    ]

    scope = ""  # the negation that reaches this place: "", "no" or "not"
    scope_end = 0  # where its negator ended
    hit = verb = False  # met since the negator: a mention, a verb
    waiting = False  # the negator may yet turn out to speak of what came before
    clause: list[int] = []  # mentions that a later "is ruled out" would negate
    clause_verb = False
    sentence: list[int] = []
    sentence_start = 0
    parentheses: list[tuple[str, int, bool, bool]] = []

    def negate(indices: list[int]) -> None:
        for m in indices:
            flags[m] = False
        indices.clear()

    def close_scope() -> None:
        nonlocal scope, waiting
        if waiting:
            negate(clause)
        scope, waiting = "", False

    for i, (kind, start, end, mention) in enumerate(events):
        if kind == "mention":
            sentence.append(mention)
            if scope:
                flags[mention] = False
                hit, waiting = True, False
            else:
                clause.append(mention)
        elif kind in ("both", "before", "no", "not", "either"):
            if kind in ("both", "before"):
                negate(clause)
            if kind != "before":
                waiting = kind == "either"
                scope, scope_end, hit, verb = ("no" if kind == "no" else "not"), end, False, False
        elif kind == "verb":
            verb = clause_verb = True
        elif kind == "and":
            if scope and (_starts_clause(text, events, i) or (scope == "no" and verb)):
                close_scope()
            if clause_verb:
                clause.clear()
                clause_verb = False
        elif kind == "comma":
            # "not benign, malignant" ends the scope; "no mass, effusion, or malignancy" does not.
            contrast = scope == "not" or hit or verb or _starts_clause(text, events, i)
            if scope and contrast and listing[i] != "or":
                close_scope()
            if not listing[i]:
                clause.clear()
                clause_verb = False
        elif kind == "open":
            parentheses.append((scope, scope_end, hit, verb))
        elif kind == "close":
            if parentheses:
                if waiting and scope:
                    negate(clause)
                scope, scope_end, hit, verb = parentheses.pop()
                waiting = False
        elif kind == "colon":
            # "Excluded: malignancy" goes on through the colon, "no mass: normal" does not.
            if scope and text[scope_end:start].strip():
                close_scope()
            clause.clear()
            clause_verb = False
        elif kind in ("end", "stop", "question"):
            if kind == "question" and _INTERROGATIVE.match(text, sentence_start) and not _YES.match(text, end):
                for m in sentence:
                    flags[m] = False
            # A line may break right after its negator; the negation then goes on.
            if not (scope and not waiting and text[start:end] == "\n" and not text[scope_end:start].strip()):
                close_scope()
            clause.clear()
            clause_verb = False
            if kind != "stop":
                sentence.clear()
                sentence_start = end
                parentheses.clear()
    close_scope()
    return flags


def _events(text: str, mentions: Sequence[tuple[int, int]]) -> list[_Event]:
    """Mentions and scope words in order; a scope word that touches a mention's span is left out."""
    out: list[_Event] = []
    match = _EVENT.search(text)
    for index, (first, last) in enumerate(mentions):
        while match is not None and match.start() < first:
            if match.end() <= first:
                out.append(_Event(str(match.lastgroup), match.start(), match.end()))
            match = _EVENT.search(text, match.end() if match.end() <= first else last)
        out.append(_Event("mention", first, last, index))
        # Searched anew only where the match in hand lies inside the mention, so that the whole stays linear.
        if match is not None and match.start() < last:
            match = _EVENT.search(text, last)
    while match is not None:
        out.append(_Event(str(match.lastgroup), match.start(), match.end()))
        match = _EVENT.search(text, match.end())
    return [event for event in out if event.kind != "skip"]


def _starts_clause(text: str, events: list[_Event], i: int) -> bool:
    """Whether a subject or verb stands right after event ``i`` ("…, the image", "…, and is")."""
    for follower in events[i + 1 : i + 3]:
        if text[events[i].end : follower.start].strip():
            return False
        if follower.kind in ("verb", "subject"):
            return True
        if follower.kind != "and":
            return False
        i += 1
    return False


def _listings(events: list[_Event]) -> list[str]:
    """For each event the conjunction that goes on with a list after it: ``"or"``, ``"and"`` or ``""``.

    A list goes on where a conjunction comes before the next clause end, verb or subject.
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
