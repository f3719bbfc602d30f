"""Any model of a family that transformers knows, prompted through its own processor and chat template."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from PIL.Image import Image
from torch import Tensor

from medmllm_plugins.errors import ModelError, one_line
from medmllm_plugins.models.base import FewShotPrompt, LoadedModel, Question, VisualInput, single
from medmllm_plugins.models.devices import to_device
from medmllm_plugins.models.image_inputs import eight_bit
from medmllm_plugins.models.native import Native, eos_tokens, longest_input
from medmllm_plugins.models.tokens import label_suffixes
from medmllm_plugins.plugins.specs import PromptStyle


class ChatModel(LoadedModel):
    """A model in memory; see :class:`medmllm_plugins.models.base.LoadedModel`.

    A question's images, one or several, come before its text, in one user turn.
    """

    shows = "images"

    def __init__(self, native: Native, style: PromptStyle | None = None) -> None:
        """Wrap a loaded checkpoint.

        Raises:
            ModelError: its chat template has no placeholder for an image.
        """
        self.model = native.model
        self.processor = native.processor
        self.tokenizer = native.processor.tokenizer
        self.tokenizer.padding_side = "left"
        self.family = native.family
        self.style = style or PromptStyle()
        self.device = native.model.device
        self.dtype = native.model.dtype
        self.max_length = longest_input(native.model)
        self.eos_token_ids = eos_tokens(native.model, self.tokenizer)
        pad = self.tokenizer.pad_token_id
        self.pad_token_id = int(self.eos_token_ids[0] if pad is None else pad)
        self.max_new_tokens = self.style.max_new_tokens
        self.weight_warnings = native.weight_warnings
        # The next batch is prepared in a thread; a tokenizer that pads must not be reconfigured while it is in use.
        self._tokenizing = threading.Lock()
        self._files = native.files
        self._special = tuple(token for token in self.tokenizer.all_special_tokens if token.strip())
        # The placeholder of an image in a prompt: the token that the model replaces, or, as for Gemma 3's processor,
        # one that precedes it.
        self._slot = str(self.processor.image_token)
        prompt, first = self.render(""), getattr(self.processor, "boi_token", None)
        if self._slot not in prompt and first is not None:
            self._slot = str(first)
        if self._slot not in prompt:
            raise ModelError(
                f"{native.folder}: expected a chat template that puts {self._slot} in the place of an image, got "
                "one that does not; give the checkpoint the template of an image model (chat_template.jinja)."
            )

    def render(self, question: Question, images: int | None = None) -> str:
        """Return the whole prompt as text, one placeholder for each image.

        Solved examples are earlier turns. ``images`` counts all images; by default one more than the examples have.

        Raises:
            ModelError: the question holds the name of a special token, which would end the turn or claim an image.
        """
        prompt = question if isinstance(question, FewShotPrompt) else FewShotPrompt((), question)
        shown = sum(example.images for example in prompt.examples)
        images = (shown + 1 if images is None else images) - shown
        texts = [prompt.question, *(part for example in prompt.examples for part in (example.question, example.answer))]
        if names := [token for token in self._special for text in texts if token in text]:
            raise ModelError(
                f"The question {prompt.question!r} holds {names[0]!r}, which the model takes for a special token; "
                "write it differently."
            )
        text = self.style.ask(prompt.question)
        if self.processor.chat_template is None:  # PaliGemma has none: a prompt is one line
            single(question)
            return f"{self._slot * images}{self._bos()}{text}\n"
        turns: list[dict[str, Any]] = []
        for example in prompt.examples:
            turns.append(_user_turn(self.style.ask(example.question), example.images))
            turns.append({"role": "assistant", "content": [{"type": "text", "text": example.answer}]})
        turns.append(_user_turn(text, images))
        if self.style.system:
            turns.insert(0, {"role": "system", "content": [{"type": "text", "text": self.style.system}]})
        # An argument that the template does not name would be taken for one of the processor.
        template = str(self.processor.chat_template)
        known = {key: value for key, value in self.style.template.items() if key in template}
        try:
            return str(self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **known))
        except Exception as error:  # jinja's errors, and those that a template raises itself
            raise ModelError(f"The checkpoint's chat template cannot take the question: {one_line(error)}") from error

    def _bos(self) -> str:
        return str(self.tokenizer.bos_token or "")

    def prepare(self, questions: Sequence[Question], images: Sequence[VisualInput]) -> dict[str, Tensor]:
        """Make the input of B questions, as the checkpoint's processor does; padded on the left."""
        if len(questions) != len(images) or not questions:
            raise ModelError(f"Expected one question for each image, got {len(questions)} and {len(images)}.")
        shown = [_pictures(item) for item in images]
        texts = [self.render(question, len(several)) for question, several in zip(questions, shown, strict=True)]
        if self.processor.chat_template is None:
            # Its processor writes placeholders and line end itself.
            bos = self._bos()
            texts = [
                text.replace(f"{self._slot * len(several)}{bos}", self._slot * len(several)).removesuffix("\n")
                for text, several in zip(texts, shown, strict=True)
            ]
        return self._processed(texts, images=shown)

    def prepare_text(self, questions: Sequence[str]) -> dict[str, Tensor]:
        """Make the input of B questions without an image.

        Raises:
            ModelError: a question cannot be taken; a model without chat template takes none at all without an image.
        """
        if self.processor.chat_template is None:
            raise ModelError(f"{self.family.title} takes no question without an image.")
        return self._processed([self.render(question, images=0) for question in questions])

    def _processed(self, texts: list[str], **images: Any) -> dict[str, Tensor]:
        """Return what the checkpoint's processor makes of prompts, on the model's device."""
        bos = self._bos()
        with self._tokenizing:
            batch = self.processor(
                text=texts,
                **images,
                padding=True,
                return_tensors="pt",
                # A template that writes the first token must not get it twice.
                add_special_tokens=not (bos and texts[0].startswith(bos)),
            )
        inputs = {
            name: to_device(value, self.device, self.dtype)
            for name, value in batch.items()
            if isinstance(value, Tensor) and name != "labels"  # PaliGemma's processor makes some to train on
        }
        self.check_length(int(batch["attention_mask"].sum(-1).max()), 0)
        return inputs

    def label_ids(self, question: Question, labels: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each label after the prompt, tokenised with it; the opening's tokens come first."""
        prompt = self.render(question) + self.style.opening
        # After a line end or a tag an answer begins at once, after a word with a blank.
        blank = "" if prompt[-1:].isspace() or prompt.endswith((">", "]")) else " "
        whole = self._encode(self.render(question))
        opening = self._encode(prompt)
        if opening[: len(whole)] != whole:
            raise ModelError(f"The opening {self.style.opening!r} is tokenised into one token with the prompt's end.")
        prefix = opening[len(whole) :]
        return [[*prefix, *ids] for ids in label_suffixes(self._encode, prompt, blank, labels)]

    @property
    def prefix_length(self) -> int:
        """Number of tokens of the opening, which precede each label and are not scored."""
        prompt = self.render("")
        return len(self._encode(prompt + self.style.opening)) - len(self._encode(prompt))

    def _encode(self, text: str) -> list[int]:
        with self._tokenizing:
            ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _user_turn(text: str, images: int) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "image"} for _ in range(images)]
    return {"role": "user", "content": [*content, {"type": "text", "text": text}]}


def _pictures(item: VisualInput) -> list[Image]:
    several = list(item) if isinstance(item, Sequence) else [item]
    if not several:
        raise ModelError("Expected at least one image a question, got none.")
    return [eight_bit(picture, index) for index, picture in enumerate(several)]
