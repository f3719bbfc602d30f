"""Mentions of a class that are not about the image: echoed options, general statements, normal parts of the body."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from medmllm_plugins.answers.lexicon import Mention

_ENDS: Final = re.compile(
    r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\bdr)(?<!\bfig)\.(?!\d)|[;!?\n]"
    r"|,? (?=(?:but(?! also)|yet|however|whereas|while|although|though|mais|aber|pero|sondern|jedoch) )"
)
"""Ends of sentences, of lines of a list, and of clauses before a contrast."""

_OPTIONS = re.compile(
    r"\b(?:following|given|provided|possible|available|listed|these|those|the|two|three|four|five|six|seven|all|my"
    r"|your)"
    r" (?:[a-z]+ )?(?:categories|options|classes|choices|labels)\b"
    r"|^[\s\"'>-]*(?:categories|options|classes|choices|labels)\b|\b(?:differentiat|distinguish|discriminat)(?:e|ed|es"
    r"|ing)\b"
    r"|\bbetween\b|\bchoose from\b|类别|選択肢|选项|\bcategorías\b|\bcatégories\b|\bkategorien\b|\bcategorias\b"
)
_PLURAL = (
    r"(?:lesions|masses|tumou?rs|nodules|cases|cancers|moles|images|scans|changes|conditions|growths|findings|features"
    r"|characteristics|infiltrates|patients|processes|neoplasms|cells|tissues|lungs|breasts)"
)
_GENERAL = re.compile(
    rf"(?P<plural> {_PLURAL})?,?(?: (?:on|in|of) [a-z ]{{2,30}})? (?:(?:would )?(?:typically|usually|often|generally"
    rf"|commonly"
    r"|characteristically|normally|tend|may|might|can|need|require|heal|should|must|will)|are(?! (?:seen|present|noted"
    r"|visible|identified|observed))|have"
    r"|show|appear|demonstrate|present|exhibit|display)\b"
)
_DEFINED = re.compile(
    r"(?: \([^()]{1,30}\))? (?:(?:is|are) (?:diagnosed (?:with|by)|caused by|treated|transmitted|defined|a (?:disease"
    r"|type|form|kind)|an infection)"
    r"|would (?:look|appear|have|show|present|cause)\b)"
)
_IN_PEOPLE = re.compile(r" in (?:children|adults|patients|infants|people|women|men|the elderly)\b")
_ARTICLE = re.compile(r"(?:^|\s)(?:an?|aunque algunas|some|many)$")
_SINGULAR = re.compile(
    r"(?: [a-z-]{3,14}){0,2}(?:, [^,.]{2,40},)? (?:(?:can|may|might|could|would|should)"
    r"|(?:is|are) (?:expected|usually|typically|often)|contains?|tends?|typically|usually)\b"
)
_DIFFERENTIAL = re.compile(r"鉴别|鑑別|\bdifferential(?! diagnosis is)|\bpossible (?:explanations|causes|diagnoses)\b")
_OPENING: Final = 80
"""Characters within which the subject of a general statement is named."""
_HABIT = re.compile(
    r" [a-z -]{0,40}?\b(?:typically|usually|often|generally|commonly|characteristically) (?:[a-z]+ )?"
    r"(?:appears?|presents?|shows?|has|have|is|are|manifests?|demonstrates?|exhibits?)\b"
)

_NORMAL = frozenset(
    {
        "normal",
        "healthy",
        "unremarkable",
        "clear",
        "intact",
        "negative",
        "正常",
        "正常な",
        "정상",
        "normale",
        "normales",
    }
    | {"normaler", "normalem", "unauffällig", "unauffälliges", "unauffällige", "طبيعي", "طبيعية"}
)
_WHOLE = (
    r"(?:images?|scans?|stud(?:y|ies)|exam(?:ination)?s?|x-?rays?|radiographs?|films?|cts?|ultrasounds?|mammograms?"
    r"|sonograms?|chest|lungs?|thorax|breasts?|retinas?|fundus|oct|categor(?:y|ies)|class(?:es)?|labels?|case|slides?"
    r"|adrenals?|vessel|colon|mucosa|result|findings?|impression|appearance|anatomy|aeration|pulmonary parenchyma"
    r"|lung (?:fields?|parenchyma|zones?)|cxr|pattern|skin|view|picture|individual|patient|child)"
)
_PART = (
    r"(?:heart|cardiac|cardio\w*|mediastin\w+|silhouette|size|sized|contours?|calib(?:er|re)|bones?|bony|osseous"
    r"|skeletal|ribs?|clavicles?|spine|vertebra\w*|(?:hemi)?diaphragm\w*|trachea\w*|bronch\w+|hil(?:a|ar|um)|aort\w+"
    r"|vasculature|vascularity|pulmonary vessels|pleura\w*|costophrenic|skin|nipples?|lymph|nodes?|axilla\w*"
    r"|pectoral\w*|muscles?|soft tissues?|thyroid|thym(?:us|ic)|shadow|(?:large|great) vessels|structures?|liver"
    r"|spleen|upper abdomen|airways?|position\w*|inspiration"
    r"|penetration|rotation|exposure|subcutaneous|density|limits?|range|variants?|saline|temperature|count|thickness"
    r"|caliber"
    r"|foveal?|disc|cup|left|right|upper|lower|overlying|red blood cells?|corazón|mediastino|tamaño|cœur|taille"
    r"|herz\w*|groß"
    r"|thoraxskelett|netzhautdicke|coração|القلب|حجم|심장|크기|心影|心脏|厚度|透亮度|右肺|左肺|腺体|淋巴细胞)"
)
_BEFORE_PART = re.compile(rf" (?:in )?(?:[a-z-]+ ){{0,2}}?{_PART}\b")
_BEFORE_WHOLE = re.compile(rf" (?:[a-z-]+ ){{0,2}}?{_WHOLE}\b")
_AFTER_PART = re.compile(rf"\b{_PART}\b|厚度|透亮度|心影|心脏|纵隔|右肺|左肺|对侧|腺体|骨质|大小|심장|크기|心臓")
_SIDE = re.compile(r"\b(?:left|right|upper|lower|other|opposite|contralateral) (?:lungs?|breasts?)\b")
_AROUND = re.compile(
    r"\b(?:surrounding|adjacent|background|contralateral|remain(?:ing|der)|rest|circundante|alrededor|avoisinant"
    r"|umgebend\w*|restlich\w*)\b"
    r"|周围|其余|余"
)
_AFTER_WHOLE = re.compile(rf"\b{_WHOLE}\b")
_LIMITS = re.compile(r"\bwithin (?:the )?$")
_CONTEXT = re.compile(
    r" (?:[a-z-]+ ){0,2}?(?:parenchyma|tissues?|skin|mucosa|structures?|lung|anatomy|architecture|background|cells?"
    r"|margins?|areas?|regions?|vessels?|retina|layers?|side)\b"
)
_ELSEWHERE = re.compile(
    r"(?:otherwise|elsewhere|remain(?:s|der|ing)?|rest of [a-z ]{2,30}|surrounding|adjacent|background|contralateral"
    r"|other|than|compared (?:to|with)|from)(?: (?:is|are|appears?|breast|lung|lungs|the|a|of))* $"
)
_RELATION = re.compile(
    r"(?:\b(?:above|below|beneath|behind|(?:lateral|medial|anterior|posterior|inferior|superior|adjacent|next|close) to"
    r"|near|beside|around|between|surrounding|overlying|in front of|opposite|shared by|common to|in contrast to"
    r"|similar to|present in|in comparison (?:with|to)|compared (?:with|to)|unlike|(?<!other )than|seen (?:in|with)"
    r"|different from"
    r"|exceed(?:s|ing)?|about)|\((?:often |usually |an? |the )*(?:[a-z]+ )?signs? of|与|同|和)"
    r"(?: (?:an?|the|that|those|of|typical|ordinary))* ?(?:普通|典型|的|小)?$"
)
_CLAUSE_START = re.compile(r"[.;!?\n,(]| (?:and|but|with|while|although) ")


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Return the spans of sentences, lines and contrasting clauses that contain anything, in order."""
    ends = [match.end() for match in _ENDS.finditer(text)]
    return [(start, end) for start, end in pairwise([0, *ends, len(text)]) if text[start:end].strip()]


def listed_options(text: str, start: int, end: int, mentions: Sequence[Mention]) -> set[Mention]:
    """Return those of a sentence's mentions that list the options of the question.

    A class named again after the list ("of benign, malignant and normal, this is benign") is no part of it.
    """
    cue = _OPTIONS.search(text, start, end)
    if cue is None:
        return set()
    first_of_class: dict[tuple[int, ...], Mention] = {}
    for mention in mentions:
        if mention.start >= cue.end():
            first_of_class.setdefault(mention.owners, mention)
    return set(first_of_class.values()) if len(first_of_class) > 1 else set()


def is_differential(text: str, start: int, end: int) -> bool:
    """Return whether a sentence weighs what else it could be."""
    return _DIFFERENTIAL.search(text, start, end) is not None


def is_general(text: str, sentence_start: int, mention: Mention) -> bool:
    """Return whether a mention is the subject of a statement about its class in general."""
    if mention.start - sentence_start > _OPENING:
        return False
    before = text[sentence_start : mention.start].strip(" \"'>-*0123456789.)")
    begins = not before or re.fullmatch(
        r"(?:(?:in contrast|by contrast|whereas|while|however|most|many|some|typical|typically|generally|usually"
        r"|in general"
        r"|unlike|on the other hand|because|since|although|though|as|for|but|and|a|an|the)[, ]*)+",
        before + " ",
    )
    if not begins:
        return False
    if _HABIT.match(text, mention.end) or _DEFINED.match(text, mention.end):
        return True
    general = _GENERAL.match(text, mention.end)
    if general is not None and general["plural"] is not None:
        return True
    return _IN_PEOPLE.match(text, mention.end) is not None or bool(
        _ARTICLE.search(before) and _SINGULAR.match(text, mention.end)
    )


def mention_scope(text: str, start: int, mention: Mention) -> str:
    """Return what a mention is about: the ``"whole"`` image, ``"other"`` things, or the ``"context"`` of a finding.

    Words such as "normal" are about what they qualify. After "next to" and "compared with", other things are named.
    """
    if _RELATION.search(text, max(start, mention.start - 60), mention.start):
        return "other"
    if text[mention.start : mention.end] not in _NORMAL:
        return "whole"
    if _LIMITS.search(text, max(0, mention.start - 12), mention.start):
        return _subject(text, mention.start)
    whole, part = _BEFORE_WHOLE.match(text, mention.end), _BEFORE_PART.match(text, mention.end)
    if part is not None and (whole is None or part.end() < whole.end()):
        return "other"
    if _ELSEWHERE.search(text, max(0, mention.start - 40), mention.start) or _CONTEXT.match(text, mention.end):
        return "context"
    if whole is not None:
        return "whole"
    return _subject(text, mention.start)


def _subject(text: str, end: int) -> str:
    """Return whether the clause before a predicate "is normal" speaks of the whole image or of a part."""
    begin = max(
        (match.end() for match in _CLAUSE_START.finditer(text, max(0, end - 120), end)), default=max(0, end - 120)
    )
    clause = text[begin:end]
    if _AROUND.search(clause) or _SIDE.search(clause):
        return "other"
    return "other" if _AFTER_PART.search(clause) and not _AFTER_WHOLE.search(clause) else "whole"
