"""Recognise an answer that declines to answer."""

from __future__ import annotations

import re

_ABLE = r"(?:can ?not|can't|cant|could not|couldn't|am not able to|'m not able to|unable to|not able to|won't|will not)"
_DO = (
    r"(?:provide|give|offer|make|answer|assist|help|diagnose|determine|tell|say|classify|identify|interpret|assess"
    r"|analy[sz]e|evaluate|view|see|comply|fulfil+|be determined|be classified|be assessed|comment|conclude|decide)"
)
_REFUSAL = re.compile(
    rf"\b{_ABLE} (?:[a-z]{{1,14}} )?{_DO}\b"
    r"|\bi(?:'m| am) (?:very |so |really )?sorry\b|\bi apologi[sz]e\b|\bmy apologies\b|^sorry\b"
    r"|\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b|\bi(?:'m| am) (?:just |only )?an ai\b"
    r"|\b(?:not|n't) (?:a|qualified|licensed) (?:doctor|physician|medical|radiologist|healthcare)\b"
    r"|\b(?:not|n't) (?:qualified|licensed) to (?:diagnose|give|provide)\b"
    r"|\b(?:consult|see|contact|seek|speak (?:to|with)) (?:with )?(?:your |an? |the )?(?:[a-z-]{1,14} ){0,2}"
    r"(?:doctor|physician|radiologist|clinician|specialist|professional|provider|dermatologist|pathologist)"
    r"|\bseek medical (?:advice|attention)\b"
    r"|\bi (?:do not|don't|dont) know\b|\bi(?:'m| am) (?:not sure|unsure|uncertain)\b"
    r"|\b(?:insufficient|not enough|inadequate) (?:information|data|detail|evidence)\b"
    r"|\b(?:impossible|difficult|hard) to (?:determine|tell|say|classify|diagnose)\b"
    r"|\bi (?:must |have to )?(?:decline|refuse)\b"
    r"|无法(?:判断|确定|诊断|回答|提供)|無法(?:判斷|確定|診斷|回答|提供)|不能(?:判断|确定|诊断|提供)|抱歉|对不起"
)


def is_refusal(text: str) -> bool:
    """Return whether folded text holds a phrase that declines to answer or sends the reader to a doctor."""
    return _REFUSAL.search(text) is not None
