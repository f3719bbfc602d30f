"""Wording that commits to a class: "consistent with X", "X is the most likely", a line that is nothing but X."""

from __future__ import annotations

import re
from typing import Final

from medmllm_plugins.answers.lexicon import Mention

_BEFORE = re.compile(
    r"\b(?:consistent|compatible|in keeping|in line|agree[sd]?) with\b"
    r"|\b(?:suggest(?:s|ed|ive|ing)?|indicat(?:es?|ive|ing)|point(?:s|ing)?|lean(?:s|ing)?|characteristic|typical"
    r"|diagnostic"
    r"|suspicious|suspect(?:ed)?|concerning|classic(?:al)?|pathognomonic|hallmarks?|features?|signs?|evidence|findings?"
    r"|appearances?|picture|pattern|impression|diagnosis|case|image|favou?r(?:s|ed|ing)?|represent(?:s|ing)?"
    r"|reveal(?:s|ing)?"
    r"|show(?:s|n|ing)?|depict(?:s|ing)?|display(?:s|ing)?|demonstrat(?:es?|ing)|defin(?:es?|ing)|support(?:s|ing)?"
    r"|correspond(?:s|ing)?|confirm(?:s|ed|ing)?|identif(?:y|ied)|diagnosed?|contain(?:s|ing)?|constitutes?|reflects?"
    r"|equals?"
    r"|means?|it's|that's|they're|is|are|was|looks?|appears?|seems?|there|as|into|under|within|answer(?:ing)?"
    r"|choos(?:e|ing)"
    r"|select(?:ing)?|pick|say|call|conclude|believe|think|likely|probably|probable|hence|thus|therefore|so|just|simply"
    r"|clearly|namely|overall)\b|[:=→⇒]|->|=>"
    r"|符合|提示|考虑|判断|判定|归类|归为|归入|分类|诊断|应为|故为|属|为|是|支持|疑|怀疑|倾向|选择|选|表现|可见"
    r"|\b(?:spricht|sprechen|passt|passend|vereinbar|entspricht|beurteilung|daher|zeigt|ist|sind|befund|compatibles?"
    r"|sugestiv\w+"
    r"|sugiere[n]?|corresponde[n]?|indica[n]?|muestra|es|son|trata|évoqu\w+|en faveur|aspect|s'agit|suggère(?:nt)?"
    r"|montre|est"
    r"|retenu|correspond|compatíve(?:l|is)|sugere[m]?|indica[m]?|mostra|é|são|это|признаки)\b"
    r"|соответств|указыва|характерн|يشير|تشير|تتوافق|يتوافق|الأرجح|هو|هي"
)
_GAP: Final = re.compile(r"(?:[^.;!?\n\s]*\s+){0,7}[^.;!?\n\s]*")
"""Words between such a cue and the class."""
_WINDOW: Final = 80
_AFTER = re.compile(
    r"[\s\"'),]{0,4}(?:\([^()\n]{1,40}\)[ ,]*)?(?:[a-z-]+ ){0,4}?(?:is|are|remains?|seems?|appears?|was"
    r"|were) (?:[a-z]+ ){0,3}?(?:likely|favou?red|best|most appropriate"
    r"|appropriate|only|correct|suspected|diagnosed|present|seen|visible|evident|identified|noted|confirmed|suggested"
    r"|indicated|preferred|answer|diagnosis|category|class|choice|probable|compatible|supported|detected|observed)\b"
    r"|[\s\"']{0,2}(?:と(?:判断|考え|診断|分類|思われ)|を(?:疑|示唆|認め)|です|である|の所見)"
    r"|(?:으)?로 (?:분류|판단|진단|보입|생각)|입니다|이다|에 합당|의심"
    r"|(?:的)?可能(?:性)?(?:较|最|更)?大|的?(?:特征|表现|改变|征象|可能性大)(?=[。.,，]|$)"
)
_FRAGMENT_WORDS: Final = 9
_LONGEST_FRAGMENT: Final = 120
_YES_MARK: Final = re.compile(r"[✓✔✅☑]|\[x\]")
_NO_MARK: Final = re.compile(r"[✗✘❌✖☐]|\[ \]")


def is_fragment(sentence: str) -> bool:
    """Return whether a sentence is so short that a class in it is its message."""
    return len(sentence[:_LONGEST_FRAGMENT].split()) <= _FRAGMENT_WORDS and len(sentence) < _LONGEST_FRAGMENT


def commits(text: str, start: int, mention: Mention) -> bool:
    """Return whether the words around a mention commit to its class, in the sentence that begins at ``start``.

    They do if a word such as "is" or "suggests" leads to the mention or follows it.
    """
    cues = list(_BEFORE.finditer(text, max(start, mention.start - _WINDOW), mention.start))
    if cues and _GAP.fullmatch(text, cues[-1].end(), mention.start):
        return True
    return _AFTER.match(text, mention.end) is not None


def mark(text: str) -> bool | None:
    """Return whether a line of a list or table is ticked (``True``) or crossed out (``False``), or neither."""
    ticked, crossed = _YES_MARK.search(text), _NO_MARK.search(text)
    return None if bool(ticked) == bool(crossed) else bool(ticked)
