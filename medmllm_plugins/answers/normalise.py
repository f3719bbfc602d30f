"""Text clean-up before an answer is read: Unicode folding, reasoning blocks, chat tokens, LaTeX and Markdown.

Every function runs in time linear in its input.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

_PUNCTUATION = str.maketrans(
    {
        **dict.fromkeys("‐‑‒–—―−﹘﹣－", "-"),
        **dict.fromkeys("‘’‚‛′`´", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("。｡．", "."),
        "，": ",",
        "、": "/",  # parts a list inside a clause, which a comma may end
        # Invisible characters would split a word that a reader sees whole.
        **dict.fromkeys("\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff", None),
        # Two Arabic ligatures would grow 18-fold and 8-fold under NFKC; neither is part of a class name.
        **dict.fromkeys("\ufdfa\ufdfb", " "),
        **dict.fromkeys("\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", "\n"),
    }
)

_THINK = r"think|thinking|thoughts?|reasoning"
# MedGemma marks its reasoning with <unused94> and <unused95>, Kimi-VL with ◁think▷ and ◁/think▷.
_OPEN = re.compile(rf"<\s?(?:{_THINK})\s?>|<unused94>|◁think▷")
_TAGS = re.compile(rf"(?P<open>{_OPEN.pattern})|<\s?/\s?(?:{_THINK})\s?>|<unused95>|◁/think▷")
_ANSWER_TAG = re.compile(r"<\s?(?P<close>/?)\s?(?:final_)?answer\s?>")
_BOXED = re.compile(r"\\[fd]?box(?:ed)?\s?\{")

_CHAT_TOKEN = re.compile(
    r"<\|[^<>|\s]{1,40}\|>|<｜[^<>｜\s]{1,40}｜>"
    r"|</?(?:s|bos|eos|pad|unk|image|img|start_of_turn|end_of_turn|start_of_image|end_of_image|end_of_utterance"
    r"|br)\s?/?>"
    r"|\[/?inst\]"
)
_INLINE_TAG = re.compile(r"</?(?:b|i|u|em|strong|code|span|mark|sub|sup|p|div)\s?>")
_STRUCK = re.compile(r"~~[^~\n]{1,200}~~")
_MARKUP = re.compile(r"\\[a-z]+\*?|[*#{}$\\~]")
_BLANKS = re.compile(r"[^\S\n]+")
_BREAKS = re.compile(r" ?\n[ \n]*")


def fold(text: str) -> str:
    """Casefold under NFKC; make dashes, quotes and line ends plain; drop invisible characters."""
    plain = unicodedata.normalize("NFKC", text.translate(_PUNCTUATION))
    return unicodedata.normalize("NFKC", plain.casefold()).translate(_PUNCTUATION)


def drop_reasoning(text: str) -> str | None:
    """Remove reasoning blocks (``<think>…</think>`` and its kin) from folded text.

    A closing tag with no opening one drops all that precedes it: many chat templates put the opening tag in the prompt.

    Returns:
        What is left, or None where a block is never closed, as the model then gave no final answer.
    """
    parts: list[str] = []
    start, opened = 0, False
    for tag in _TAGS.finditer(text):
        if tag["open"]:
            if not opened:
                parts.append(text[start : tag.start()])
            opened = True
        else:
            if not opened:
                parts.clear()
            opened = False
            start = tag.end()
    if opened:
        return None
    return "\n".join([*parts, text[start:]])


class FinalText(NamedTuple):
    """The part of an answer that decides: with its markup, cleaned, and whether it was boxed."""

    raw: str
    plain: str
    boxed: bool


def final_answer(text: str) -> FinalText | None:
    r"""Return the part of an answer that decides; ``None`` if reasoning never ends.

    An ``<answer>`` element or a ``\boxed{…}`` in what is left decides alone.
    """
    folded = fold(text)
    content = drop_reasoning(folded)
    if content is None:
        # Some models forget to close their reasoning, but mark the answer inside it.
        content = answer_block(folded[[tag.end() for tag in _OPEN.finditer(folded)][-1] :])
        if content is None:
            return None
    content = strip_chat_tokens(content)
    block = answer_block(content)
    content = content if block is None else block
    box = boxed(content)
    raw = content if box is None else box
    return FinalText(raw, strip_markup(raw), box is not None)


def answer_block(text: str) -> str | None:
    """Return the content of the last ``<answer>`` element that is not blank (closed or not), or None."""
    tags = list(_ANSWER_TAG.finditer(text))
    for i in range(len(tags) - 1, -1, -1):
        if tags[i]["close"]:
            continue
        content = text[tags[i].end() : tags[i + 1].start() if i + 1 < len(tags) else len(text)]
        if content.strip():
            return content
    return None


def boxed(text: str) -> str | None:
    r"""Return the content of the last ``\boxed{…}`` that is not blank, nested braces included, or None."""
    end = len(text)
    for opening in reversed(list(_BOXED.finditer(text))):
        depth, stop = 1, end
        for brace in re.compile(r"[{}]").finditer(text, opening.end(), end):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                stop = brace.start()
                break
        content = text[opening.end() : stop]
        if strip_markup(content).strip():
            return content
        # An earlier box is searched only up to here, which keeps the whole search linear.
        end = opening.start()
    return None


def strip_chat_tokens(text: str) -> str:
    """Replace chat and end-of-sequence tokens, such as ``<|im_end|>`` and ``</s>``, by a line break."""
    return _CHAT_TOKEN.sub("\n", text)


def strip_markup(text: str) -> str:
    """Drop Markdown, LaTeX commands and inline HTML; underscores become blanks; runs of blanks become one."""
    text = _INLINE_TAG.sub("", _STRUCK.sub(" ", text)).replace("_", " ")
    return _BREAKS.sub("\n", _BLANKS.sub(" ", _MARKUP.sub(" ", text))).strip()
