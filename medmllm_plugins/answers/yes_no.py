"""Read yes or no out of the answer to a question about one finding, and never guess one."""

from __future__ import annotations

import re

from medmllm_plugins.answers.normalise import final_answer
from medmllm_plugins.answers.parsing import Answer, mentions
from medmllm_plugins.answers.refusals import is_refusal

# Yes or no counts as a reply where it stands by itself: not in "no change", nor in "yes or no".
_REPLY = re.compile(
    r"(?:^|[\n.:;!(\[]|\b(?:answer|reply|response|conclusion)(?: is| would be)?|->|=)[\s\"'(\[:]*"
    r"(?P<word>yes|no|是的|不是|是|否)(?=[\s\"')\]]*(?:$|[.,;:!\n)\]。,、;—–-]))"
)
_YES = frozenset({"yes", "是的", "是"})
_SENTENCE = re.compile(r"[^.;!?\n]+[.;!?\n]?")
# A sentence with one of these neither affirms nor denies.
_UNSURE = re.compile(
    r"\?|\b(?:whether|if|unless|unsure|uncertain|unclear|can ?not|can't|could|may|might|would|possibl[ey]|perhaps|maybe"
    r"|question|asks?|exclude[ds]?|rule[ds]? out|determine|suspicio(?:n|us)|differential)\b|是否|可能|不能|无法"
)


def parse_finding(text: str, finding: str, synonyms: tuple[str, ...] = ()) -> Answer:
    r"""Read whether an answer says that a finding is present.

    A reply "yes" or "no" decides, else a sentence that asserts or negates the finding by name. A reply and a sentence
    that contradict each other are ambiguous; a sentence that supposes or asks says nothing. Reasoning blocks are
    dropped; an ``<answer>`` element or a ``\boxed{…}`` decides alone.

    Returns:
        The answer, whose label is ``"yes"`` or ``"no"``; see :class:`medmllm_plugins.answers.parsing.Answer`.
    """
    final = final_answer(text)
    if final is None:
        return Answer("out_of_list", None, ())
    plain = final.plain
    replies = {"yes" if match["word"] in _YES else "no" for match in _REPLY.finditer(plain)}
    sentences = [part for part in _SENTENCE.findall(plain) if not _UNSURE.search(part)]
    readings = [mentions(sentence, finding, synonyms) for sentence in sentences]
    if any(asserted for asserted, _ in readings):
        replies.add("yes")
    elif any(negated for _, negated in readings):
        replies.add("no")
    if len(replies) == 1:
        label = replies.pop()
        return Answer("parsed", label, (label,))
    if replies:
        return Answer("ambiguous", None, ("yes", "no"))
    return Answer("refusal" if is_refusal(plain) else "out_of_list", None, ())
