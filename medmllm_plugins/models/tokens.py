"""Text to tokens, where the names of special tokens are plain text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from medmllm_plugins.errors import ModelError


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise text in which the name of a special token is nothing but text.

    A question is data: one that holds ``<|im_end|>`` or ``<|image_pad|>`` must not end the turn or claim an image.

    Raises:
        ModelError: the tokenizer gave a special token all the same, or the text is no valid Unicode.
    """
    try:
        encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    except (TypeError, UnicodeError) as error:
        raise ModelError(f"Expected text that can be encoded as UTF-8, got {text!r}: {error}.") from error
    ids: list[int] = encoded["input_ids"]
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    if matches := sorted(special.intersection(ids)):
        names = tokenizer.convert_ids_to_tokens(matches)
        raise ModelError(f"The text {text!r} was tokenised into special tokens {names}, which text must not hold.")
    return ids


def label_suffixes(encode: Callable[[str], list[int]], text: str, blank: str, labels: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each label after a text, tokenised together with it.

    ``blank`` separates text and label, as part of the label.

    Raises:
        ModelError: a label is empty, or merges with the text's last token so that it has no tokens of its own.
    """
    before = encode(text)
    suffixes = []
    for label in labels:
        joint = encode(f"{text}{blank}{label.strip()}")
        if not label.strip() or joint[: len(before)] != before or len(joint) == len(before):
            raise ModelError(
                f"The label {label!r} cannot be scored: it is empty, or its first characters are tokenised into "
                "one token with the end of the prompt."
            )
        suffixes.append(joint[len(before) :])
    return suffixes
