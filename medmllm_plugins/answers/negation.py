"""Decide which mentions in a text are asserted, called possible, negated, or left open.

A rule-based scope finder after NegEx and ConText (Chapman et al., J Biomed Inform 34, 2001; Harkema et al., J Biomed
Inform 42, 2009), with clause ends, coordination, questions, hypotheticals and advice added. It leans one way on
purpose: a mention it is unsure of is not asserted. The rules are for English; other languages have their common
negators only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

Polarity: TypeAlias = Literal["asserted", "possible", "negated", "open"]
"""``"possible"``: the text says that it may be so. ``"open"``: asked, supposed, advised or not decided."""

_SEEN = (
    r"(?:seen|present|identified|detected|noted|visible|visuali[sz]ed|evident|observed|found|likely|suspected|apparent"
    r"|demonstrated|supported|suggested|indicated|favou?red|confirmed|appreciated|correct|the case|true|possible"
    r"|diagnosed|shown|established|considered)"
)
_OUT = r"(?:ruled out|excluded|refuted|unlikely|improbable|absent|doubtful|dismissed|discarded)"
_BE = r"(?:is|are|was|were|be|been|being|seems?|appears?)"
_CHANCE = r"(?:suspicion|likelihood|probability|risk|concern|chance|possibility|index of suspicion)"
_LOW = r"(?:(?:very |relatively )?low(?:er)?|minimal|little)"
_UNABLE = r"(?:can ?not|can't|could not|couldn't|not|unable to|difficult to|hard to|impossible to)"
_TEST = (
    r"(?:exclude|rule out|check(?: for)?|assess(?: for)?|evaluate(?: for)?|screen(?: for)?|look for|test(?: for)?"
    r"|confirm|differentiate|distinguish|determine|monitor(?: for)?)"
)
_MUST = r"(?:should|must|needs? to|has to|have to|ought to)"

# Kind of event -> pattern. Order matters: of those that match at one place the first wins.
_PATTERNS = {
    # Skipped: what looks like a negator or a clause end and is none.
    "skip": (
        r"\b(?:e\.g|i\.e|vs|dr|fig)\.|(?<=\d)[.,:](?=\d)|\.{2,}"
        r"|\b(?:not (?:only|just|merely|simply)|no (?:doubt|question)|without (?:any |a )?(?:doubt|question)"
        r"|not surprising(?:ly)?|other than|if (?:i (?:had|have|must|were)|forced|asked|pressed|anything)"
        r"|(?:whether|if)(?= or not)|as (?:it|they) should|(?:answer|diagnosis|classification|category|label"
        r"|class) should be|(?:must|has to|have to) be(?! (?:[a-z]{2,10} )?(?:excluded|ruled|considered"
        r"|confirmed|kept|evaluated|assessed|correlated))|should (?:therefore |thus )?be (?:classified|categori[sz]ed"
        r"|labell?ed|called)"
        r"|as well as)\b|非常|无疑|不仅|不但|不只"
    ),
    # Leaves open what comes before and after it in the clause.
    "undecided": (
        rf"\b{_UNABLE} (?:be )?(?:[a-z]{{2,14}}ly )?(?:be )?(?:{_TEST}|ruled out|excluded|dismissed|confirmed"
        r"|determined|distinguished|differentiated|diagnosed from)\b"
        rf"|\b{_MUST} (?:[a-z]{{2,10}} )?be (?:excluded|ruled out|considered|confirmed|kept in mind|evaluated"
        rf"|assessed)\b"
        r"|\b(?:would|may|might|could|can)(?: not|n't) (?:yet )?be (?:visible|seen|apparent|detected|evident"
        r"|appreciated)\b"
        r"|\b(?:may|might|could|can) be (?:missed|overlooked|invisible|subtle|occult|hidden)\b"
        r"|\b(?:to be|being) (?:excluded|ruled out|confirmed)\b|\b(?:remains?|are|is) (?:all "
        r"|both )?in the differential\b"
        r"|不能排除|无法排除|尚不能|待排|需排除|除外|排除の|均需考虑|难以区分"
    ),
    # Negates what comes before and after it in the clause.
    "both": (
        rf"\b(?:not|can ?not|[a-z]{{2,6}}n't) (?:been |be )?(?:[a-z]{{2,14}}ly )?(?:be )?{_SEEN}\b"
        r"|可能性(?:很|较|比较|极|非常)?(?:低|小)|\b(?:findet|finden|zeigt|zeigen) sich nicht\b"
        r"|\bnicht (?:vor|nachweisbar|erkennbar|vorhanden|sichtbar)\b"
        r"|\bno se (?:observa|identifica|aprecia|evidencia)n?\b|\bausgeschlossen\b|\bdescartad[oa]s?\b|\bexclu[ea]s?\b"
        r"|\bнет\b|исключен"
    ),
    # Negates what comes before it in the clause.
    "before": (
        rf"\b{_BE} (?:(?!not\b|never\b)[a-z]{{2,14}} )?(?:{_OUT}|negative|less likely|(?:very |quite "
        rf"|too )?low)\b(?! for| to )"
        r"|(?<=[a-z0-9][- ])(?:free|negative)\b(?! (?:of|for|from))"
        r"|\b(?:does|do|did)(?: not|n't) (?:apply|fit|match|hold)\b|不符(?!合)|不支持|不同"
        r"|では?な|ではあり|じゃな|なし|ません|ない|認め(?:られ)?(?:ず|ない)|否定|考えにく|はなく|とは言えず"
        r"|아니|아닙|아닌|아님|않|없|보다"
        r"|[:?=|(-] ?\"?(?:no|not|none|negative|absent|false|unlikely|否|无|✗|✘|❌)\"?(?= ?(?:[.,;!?|)}\n]|$))"
    ),
    # Negates what follows, or where nothing follows in the clause, what comes before.
    "either": rf"\b(?:{_OUT}|rules? out|ruling out|excludes?|excluding|less (?:likely|suggestive|suspicious"
    rf"|typical))\b",
    "no": (rf"\bno\b(?! ?,)|\b(?:negative for|none of|nothing|neither|nor|never|{_LOW} {_CHANCE} (?:of|for|that))\b"),
    # Negates what follows, up to the next verb: "the absence of a mass is typical of normal tissue".
    "lack": r"\b(?:without|absence of|lack of|lacks|lacking|free (?:of|from))\b",
    "not": (
        r"\b(?:not(?:, [a-z ]{2,20},)?|can ?not|[a-z]{2,6}n't|isnt|doesnt|dont|wasnt|arent|cant|than|instead of"
        r"|opposed to|against|mimic(?:s|king|ked)?|fails? to|failed to|hardly|far from|(?:wrong|incorrect|a mistake) to"
        r"|(?:very |quite |highly )?atypical (?:for|of)|(?:inconsistent|incompatible) with|(?:plutôt|plus) qu[e']"
        r"|más que|mais que|statt|anstatt|gegen|eher als|"
        r"ningún|ninguna?|sin|nunca|pas(?: d[eu'])?|sans"
        r"|aucune?|ni|kein(?:e[nmrs]?)?|keinerlei|nicht|ohne|não|sem|nenhuma?|senza|nessun[ao]?|не|без|ни|لا|ليس"
        r"|ليست|بدون|غير)(?![a-z0-9])|d'absence d|不|并非|並非|非|无|無|没有|沒有|未|排除"
    ),
    # Leaves open what follows, up to the end of the sentence or a contrast.
    "suppose": (
        r"\b(?:whether|if|unless|unsure|uncertain|unclear|unable to|in (?:the )?case of|had (?:it|this|there|the)"
        r"|(?:is|are|was|were|be|strongly|i|we|also|would) (?:recommend|advis|suggest)(?:ed|able)"
        r"|recommend(?:s|ed|ation|ations|ing)?|advis(?:e|ed|able)|follow-?up|correlat(?:e|ion)|biopsy|work-?up|should"
        r"|must"
        rf"|(?:in order )?to (?:further |better |help |definitively |fully )?{_TEST}"
        r"|would (?:be (?:considered|expected|suspected|more|seen|visible|required)|suggest|indicate|raise|appear|show"
        r"|have|favou?r|imply|support|require|need|typically|usually|normally)"
        r"|(?<!high )(?<!strong )(?<!higher )(?:likelihood|probability|chance) of|before (?:calling|it|the|a)"
        r"|would have (?:said|thought|called)"
        r"|(?:compared|in comparison) (?:to|with)|unlike|in contrast to|as in|risk (?:of|for)|history of|known|prior"
        r"|progress(?:ion|es)? to|develop(?:s|ment)?(?: into)?|transform(?:s|ation)? (?:in)?to)\b"
        r"|是否|如果|如(?![下图上此同])|若|建议|建議|以(?:排除|明确|除外)|需要?(?:排除|警惕)"
        r"|もし|かどうか|\bsi\b(?! bien)|\bse\b(?= fo)"
        r"|\bесли\b|إذا"
    ),
    # What follows in the clause is called possible.
    "maybe": (
        r"\b(?:may|might|could|can)(?: (?:also|still|potentially|possibly|either|well|even))?"
        r" (?:be|represent|indicate|suggest|reflect|have|correspond|mimic|include)\b"
        r"|\b(?:possibly|perhaps|maybe|possible|potential(?:ly)?|questionable|differential(?: diagnos[ei]s)?)\b"
        r"|可能(?!性(?:很|较|比较)?(?:低|小))(?<!最可能)(?<!很可能)(?<!更可能)|或许|也许|\bpodría\b|\bpourrait\b|\bkönnte\b|\bpoderia\b"
    ),
    "stop": (
        r"\b(?:but|however|although|though|while|whereas|nevertheless|except|because|since|instead|rather)\b"
        r"|\b(?:mais|sondern|sino|pero|aber|mas|но|jedoch)\b|\b(?:therefore|thus|hence|so)\b(?= (?:it|the|this|i"
        r"|we)\b)|(?<=\S) -{1,3} |而是|但|而"
    ),
    "question": r"\?",
    "end": r"[.;!\n]",
    "colon": r":",
    "comma": r",",
    "parenthesis": r"[(\[]",
    "parenthesis_end": r"[)\]]",
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
_PREFIX = re.compile(r"(?<![a-z0-9])(?:(?P<negated>non[- ])|(?:pre|post|anti|semi|pseudo|near|quasi|un|ab|in)-)$")
_SUFFIX = re.compile(r"-(?:(?P<negated>free|negative)|like|mimicking|mimic|less)\b")
_CLAUSE_ENDS = frozenset({"end", "stop", "question", "colon"})
_NEGATORS = frozenset({"both", "before", "no", "lack", "not", "either"})
_OF_SCOPE: dict[str, Polarity] = {
    "no": "negated",
    "lack": "negated",
    "not": "negated",
    "open": "open",
    "possible": "possible",
}


class _Event(NamedTuple):
    kind: str
    start: int
    end: int
    mention: int = -1


class _Scope(NamedTuple):
    """The scope of a negation, a supposition or a possibility.

    Attributes:
        kind: ``""`` (none), ``"no"``, ``"lack"``, ``"not"``, ``"open"`` or ``"possible"``.
        start: where the word that began it ended.
        mentioned: whether a mention followed that word.
        verb: whether a verb followed it.
    """

    kind: str = ""
    start: int = 0
    mentioned: bool = False
    verb: bool = False


def polarities(text: str, mentions: Sequence[tuple[int, int]]) -> list[Polarity]:
    """Return for each mention what the text says of it.

    Args:
        text: folded text (see ``normalise.fold``) without markup.
        mentions: spans ``(start, end)``, in order and apart. Words inside a span never act as negators, so a listed
            phrase such as "no finding" is a plain mention.
    """
    return _ScopeFinder(text, mentions).polarities() if mentions else []


class _ScopeFinder:
    """Walks once over the mentions and scope words of a text, and sets the polarity of each mention."""

    def __init__(self, text: str, mentions: Sequence[tuple[int, int]]) -> None:
        self._text = text
        self._events = _events(text, mentions)
        self._lists = _lists(self._events)
        self._polarities: list[Polarity] = [_polarity_of_affixes(text, start, end) for start, end in mentions]
        self._scope = _Scope()
        self._waiting = False  # the negator may yet turn out to negate what came before it
        self._clause: list[int] = []  # mentions that a later "is ruled out" would negate
        self._clause_verb = False
        self._sentence: list[int] = []
        self._sentence_start = 0
        self._asked: list[int] = []  # mentions of the question before, which a "no" answers
        self._parentheses: list[_Scope] = []

    def polarities(self) -> list[Polarity]:
        """Return the polarity of each mention."""
        for index, event in enumerate(self._events):
            if event.kind == "mention":
                self._mention(event.mention)
            elif event.kind in _NEGATORS:
                self._negator(event)
            elif event.kind == "undecided":
                self._set(self._clause, "open")
                self._scope, self._waiting = _Scope("open", event.end), False
            elif event.kind in ("suppose", "maybe"):
                self._hedge(event)
            elif event.kind in ("and", "comma"):
                self._joint(index, event)
            elif event.kind in _CLAUSE_ENDS:
                self._clause_end(event)
            elif event.kind == "verb":
                if self._scope.kind == "lack":
                    self._close_scope()
                self._scope, self._clause_verb = self._scope._replace(verb=True), True
            elif event.kind == "parenthesis":
                self._parentheses.append(self._scope)
            elif event.kind == "parenthesis_end" and self._parentheses:
                if self._waiting and self._scope.kind:
                    self._set(self._clause, "negated")
                self._scope, self._waiting = self._parentheses.pop(), False
        self._close_scope()
        return self._polarities

    def _mention(self, mention: int) -> None:
        self._sentence.append(mention)
        self._asked.clear()
        kind = self._scope.kind
        if not kind:
            self._clause.append(mention)
            return
        if self._polarities[mention] == "asserted":
            self._polarities[mention] = _OF_SCOPE[kind]
        self._scope, self._waiting = self._scope._replace(mentioned=True), False
        if kind == "possible":
            self._clause.append(mention)

    def _negator(self, event: _Event) -> None:
        if event.kind in ("both", "before"):
            self._set(self._clause, "negated")
        if event.kind == "no" and self._asked:
            self._set(self._asked, "negated")
        # What is supposed stays open, whether it is supposed to be or not to be.
        if event.kind != "before" and self._scope.kind != "open":
            self._waiting = event.kind == "either"
            self._scope = _Scope(event.kind if event.kind in ("no", "lack") else "not", event.end)

    def _hedge(self, event: _Event) -> None:
        kind = "open" if event.kind == "suppose" else "possible"
        if kind == "open" or not self._scope.kind:
            if self._waiting:
                self._set(self._clause, "negated")
            self._scope, self._waiting = _Scope(kind, event.end), False

    def _joint(self, index: int, event: _Event) -> None:
        """End the scope at an "and" or a comma that begins a new clause, and not inside a list."""
        scope, starts_clause = self._scope, _starts_clause(self._text, self._events, index)
        if scope.kind == "open":
            ends_scope = ends_clause = scope.mentioned and starts_clause
        elif event.kind == "and":
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
        self._asked.clear()
        if event.kind == "colon":
            # "Excluded: malignancy" continues through the colon, "no mass: normal" does not.
            ends_scope = bool(scope.kind) and not empty_scope
        else:
            is_question = event.kind == "question" and _INTERROGATIVE.match(text, self._sentence_start)
            if is_question and not _YES.match(text, event.end):
                self._asked = list(self._sentence)
                self._set(list(self._sentence), "open")
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

    def _set(self, mentions: list[int], polarity: Polarity) -> None:
        """Set the polarity of mentions, and empty the list."""
        for mention in mentions:
            self._polarities[mention] = polarity
        mentions.clear()

    def _close_scope(self) -> None:
        if self._waiting:
            self._set(self._clause, "negated")
        self._scope, self._waiting = self._scope._replace(kind=""), False

    def _start_clause(self) -> None:
        self._clause.clear()
        self._clause_verb = False


def _polarity_of_affixes(text: str, start: int, end: int) -> Polarity:
    affix = _PREFIX.search(text, max(0, start - 7), start) or _SUFFIX.match(text, end)
    if affix is None:
        return "asserted"
    return "negated" if affix["negated"] else "open"


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
