"""Find statements such as "Answer: X" in the text of an answer."""

from __future__ import annotations

import re
from typing import Final

from medmllm_plugins.answers.lexicon import Lexicon
from medmllm_plugins.answers.refusals import is_refusal

_NOUNS = (
    r"severity|stage|grading|answer|diagnosis|classification|prediction|conclusion|impression|verdict|category|class"
    r"|label|grade|result"
    r"|assessment|respuesta|diagnóstico|clasificación|conclusión|impresión|categoría|réponse|diagnostic|catégorie"
    r"|antwort|diagnose|klassifikation|beurteilung|kategorie|resposta|classificação|conclusão|categoria|risposta"
    r"|diagnosi|classificazione|ответ|диагноз|классификация|заключение|вывод|категория|الإجابة|التشخيص|التصنيف|الفئة"
)
_HEAD = re.compile(
    r"(?<!differential )(?<!alternative )(?<!other )(?<!possible )(?<!wrong )(?<!incorrect )(?<!bi-rads )(?<!birads )"
    rf"(?:\b(?:{_NOUNS})\b['\"]?(?: ?\([^()\n]{{0,30}}\))? ?(?::|=|->| - |\b(?:is|es|est|ist|é)\b|\bwould be\b)(?: ?:)?"
    r"|(?:答案|诊断|診斷|结论|結論|分类|分類|类别|判断|考虑|回答|診断|答え|判定|정답|답변|답|진단|분류|판정)"
    r"(?:结果|結果|意见)? ?(?::|=|是|为|為|は|은|는)(?: ?:)?"
    r"|(?:^|\n)(?:final )?(?:answer|diagnosis|conclusion|impression|classification)(?=\n))[\s'\"]*(?:1[.)]|[-•])? ?"
)
# An option letter may be followed by a full stop and its text, so the stop after a lone letter ends nothing.
_STATEMENT_END = re.compile(r"[\n;!]|(?<!\b[a-z])\.(?=\s|$)")
_MAX_STATEMENTS: Final = 20
NONE_LISTED = re.compile(r"\bnone of (?:the|these|those)\b")


def statements(plain: str, phrases: Lexicon) -> list[tuple[int, int]]:
    """Return the spans of the last "Answer: X" kind of statements that name a class or decline, in order."""
    spans = []
    for head in list(_HEAD.finditer(plain))[-_MAX_STATEMENTS:]:
        stop = _STATEMENT_END.search(plain, head.end())
        span = (head.end(), stop.start() if stop else len(plain))
        stated = plain[slice(*span)]
        if phrases.mentions(stated) or is_refusal(stated) or NONE_LISTED.search(stated):
            spans.append(span)
    return spans


def is_final(plain: str, span: tuple[int, int]) -> bool:
    """Return whether a statement is called the final answer."""
    return "final" in plain[max(0, span[0] - 30) : span[0]]
