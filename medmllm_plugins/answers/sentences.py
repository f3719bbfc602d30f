"""Read what the sentences of an answer say of the classes, and which class they commit to."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

from medmllm_plugins.answers.commitment import commits, is_fragment, mark
from medmllm_plugins.answers.lexicon import Lexicon, Mention
from medmllm_plugins.answers.negation import Polarity, polarities
from medmllm_plugins.answers.refusals import is_refusal
from medmllm_plugins.answers.relevance import (
    is_differential,
    is_general,
    listed_options,
    mention_scope,
    sentence_spans,
)

_CONCLUDES = re.compile(
    r"\b(?:therefore|thus|hence|so|overall|in (?:conclusion|summary|short|other words)|to (?:conclude|summari[sz]e)"
    r"|taken together"
    r"|it follows|consequently|accordingly|my (?:final|best)|finally|final|best choice|conclusion|impression|verdict"
    r"|i conclude"
    r"|por (?:lo )?tanto|por ello|en conclusión|donc|en conclusion|daher|somit|portanto|следовательно|таким образом)\b"
    r"|^[\s\"'>#-]*(?:based on|given (?:the|these|this|that)|considering)\b"
    r"|因此|所以|综上|综合|结论|总之|故|따라서|したがって|よって"
    r"|\b(?:classif(?:y|ied)|categori[sz]ed?|labell?(?:ed)?|assigned)\b|\b(?:falls?|fits?|belongs?"
    r"|placed?)(?: best)? (?:in(?:to)?|under|within|to)\b"
    r"|\bmost (?:consistent|compatible|likely|in keeping|suggestive|indicative|appropriate|probabl[ey])\b"
    r"|\bbest (?:described|fits|matches|classified)\b"
    r"|\b(?:the|this) (?:[a-z]+ )?(?:tissue|image|finding|lesion|structure|organ|cell|nodule|mass|scan|patch|film"
    r"|radiograph|x-ray|answer)(?: here)?"
    r" (?:is|represents|corresponds)\b|\b(?:this|it|that) is\b|\bthey(?:'re| are)\b|\b(?:change my answer to|has to be"
    r"|must be)\b|^\W*(?:pick|choose|select)\b"
    r"|\b(?:these|this) (?:findings?|features?|appearances?|combination|picture|pattern|constellation)\b|\b(?:it|that"
    r"|this)'s\b|符合|应为|故为|考虑|更支持|と(?:判断|考え)|로 (?:분류|판단)"
    r"|\bi(?: would|'d) (?:[a-z]+ )?(?:classify|choose|select|say|call|pick|answer|go with|favou?r|conclude|lean)\b"
    r"|归类为|归为|分类为|属于|判断"
)
_OR = re.compile(r"\b(?:or|ou|oder|o|или)\b|或")
_CONTRAST = re.compile(r"\s*(?:but|yet|however|although|though)\b")
_UNDECIDED = re.compile(
    r"(?:\b(?:i(?: a|')m torn|equally (?:well|possible|likely|plausible)|(?:bi-?rads|lung-?rads)(?: category)? 0"
    r"|incomplete"
    r"|not feel comfortable|rather not commit|needed to (?:tell|decide|determine)|indeterminate|inconclusive"
    r"|undetermined"
    r"|hesitant|left open|undecided|neither call|not (?:be )?(?:possible|able) to"
    r"|(?:can ?not|can't|unable to|hard (?:for me )?to|(?:difficult|impossible) to|wouldn't|would not|needed to)"
    r" (?:reliably |definitively |confidently |further )?(?:classify|determine|tell|say|decide|distinguish|diagnose"
    r"|commit"
    r"|choose|assign|give a|be (?:classified|determined|distinguished|diagnosed)))\b"
    r"|尚不能|难以(?:区分|判断|确定)|无法(?:判断|确定|区分|诊断)|不能(?:确定|判断))(?![^.!?\n]*\b(?:but|however)\b)"
)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text says of the classes, as indices into the class list.

    Attributes:
        asserted: classes that any sentence asserts.
        negated: classes that are negated and nowhere asserted.
        candidates: the class that the text commits to; several if it leaves them open.
        concluded: classes of its conclusions and of lines that are nothing but a class.
        refuses: whether it declines to answer.
    """

    asserted: frozenset[int]
    negated: frozenset[int]
    candidates: frozenset[int]
    concluded: frozenset[int]
    refuses: bool


class _Sentence(NamedTuple):
    """The classes of a sentence by what it says of them, as indices into the class list.

    Attributes:
        committed: classes that it names as what the image shows.
        asserted: classes that it asserts in any way, those among them.
        context: classes asserted of what surrounds a finding: "normal tissue around the mass".
        possible: classes that it calls possible.
        negated: classes that it negates.
        concludes: whether it is worded as a conclusion.
        bare: whether it is nothing but a class.
        contrast: whether it begins with a word such as "but".
    """

    committed: frozenset[int]
    asserted: frozenset[int]
    context: frozenset[int]
    possible: frozenset[int]
    negated: frozenset[int]
    concludes: bool
    bare: bool
    contrast: bool


def read(plain: str, phrases: Lexicon) -> Reading:
    """Return what a cleaned text says of the classes."""
    mentions = phrases.mentions(plain)
    values = polarities(plain, [(mention.start, mention.end) for mention in mentions])
    starts = [mention.start for mention in mentions]
    sentences = []
    for start, end in sentence_spans(plain) if mentions else ():
        inside = slice(bisect_left(starts, start), bisect_left(starts, end))
        if mentions[inside]:
            sentences.append(_sentence(plain, start, end, mentions[inside], values[inside]))
    refuses = is_refusal(plain)
    undecided = _UNDECIDED.search(plain) is not None
    candidates = _candidates(sentences, len(phrases.names), refuses=refuses, undecided=undecided)
    concluded = union(sentence.committed for sentence in sentences if sentence.concludes or sentence.bare)
    asserted = union(sentence.asserted for sentence in sentences)
    negated = union(sentence.negated for sentence in sentences) - asserted
    return Reading(asserted, negated, candidates, concluded, refuses and not candidates)


def _sentence(plain: str, start: int, end: int, mentions: Sequence[Mention], values: Sequence[Polarity]) -> _Sentence:
    """Return what a sentence says of the classes it mentions; what is not about the image is left out."""
    by_kind: dict[str, set[int]] = {kind: set() for kind in ("committed", *get_args(Polarity), "context")}
    echoed = listed_options(plain, start, end, mentions)
    differential = is_differential(plain, start, end)
    sentence = plain[start:end]
    general: set[tuple[int, ...]] = set()
    ticked, fragment = mark(sentence), is_fragment(sentence)
    alternatives = _OR.search(sentence) is not None
    for mention, value in zip(mentions, values, strict=True):
        kind: str = value
        if ticked is not None:
            kind = "asserted" if ticked else "negated"
        if mention in echoed or kind == "open" or differential:
            continue
        scope = mention_scope(plain, start, mention)
        if scope == "other" or (kind == "negated" and scope == "context"):
            continue
        if kind != "negated":
            if mention.owners in general or is_general(plain, start, mention):
                general.add(mention.owners)
                continue
            if kind == "possible" and alternatives:
                continue
            kind = "context" if scope == "context" else kind
        if kind == "asserted" and (ticked or fragment or commits(plain, start, mention)):
            by_kind["committed"].update(mention.owners)
        by_kind[kind].update(mention.owners)
    last = mentions[-1]
    bare = not re.search(r"\w", plain[start : last.start].rpartition(":")[2] + plain[last.end : end])
    return _Sentence(
        committed=frozenset(by_kind["committed"]),
        asserted=frozenset(by_kind["asserted"]),
        context=frozenset(by_kind["context"]),
        possible=frozenset(by_kind["possible"]),
        negated=frozenset(by_kind["negated"]),
        concludes=bool(ticked) or _CONCLUDES.search(plain, start, end) is not None,
        bare=bare,
        contrast=_CONTRAST.match(sentence) is not None,
    )


def _candidates(sentences: Sequence[_Sentence], classes: int, *, refuses: bool, undecided: bool) -> frozenset[int]:
    """Return the classes that a text commits to; more than one if it leaves them open."""
    if classes > 2 and any(0 < len(sentence.asserted) < classes for sentence in sentences):
        # A sentence that names every class lists the options.
        sentences = [sentence for sentence in sentences if len(sentence.asserted) < classes]
    committed = union(sentence.committed for sentence in sentences)
    conclusion = _conclusion(sentences)
    if undecided:
        return conclusion
    if len(committed) == 1 and not conclusion:
        return committed | union(sentence.possible for sentence in sentences if sentence.committed or sentence.contrast)
    if committed:
        return conclusion or committed
    if refuses:
        return frozenset()
    for weaker in ("asserted", "context", "possible"):
        if named := union(getattr(sentence, weaker) for sentence in sentences):
            return named
    return frozenset()


def _conclusion(sentences: Sequence[_Sentence]) -> frozenset[int]:
    """Return the class of the last conclusion, or of the lines that are nothing but this class; else none."""
    single = [sentence for sentence in sentences if len(sentence.committed) == 1]
    worded = [sentence.committed for sentence in single if sentence.concludes]
    if worded:
        return worded[-1]
    bare = {sentence.committed for sentence in single if sentence.bare}
    return bare.pop() if len(bare) == 1 else frozenset()


def union(sets: Iterable[frozenset[int]]) -> frozenset[int]:
    """Return the union of sets of class indices."""
    return frozenset().union(*sets)
