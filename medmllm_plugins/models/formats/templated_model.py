"""Models of one image a question whose prompt is a fixed text before and after the image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from medmllm_plugins.errors import ModelError
from medmllm_plugins.models.base import LoadedModel, Question, VisualInput, single
from medmllm_plugins.models.devices import to_device
from medmllm_plugins.models.families.family import Family
from medmllm_plugins.models.families.llava import Llava
from medmllm_plugins.models.image_inputs import eight_bit
from medmllm_plugins.models.tokens import encode_text, label_suffixes

IMAGE = "<image>"


class TemplatedModel(LoadedModel):
    """A LLaVA model in memory; see :class:`medmllm_plugins.models.base.LoadedModel`.

    The text before and after the image is tokenised apart, as the authors' code does. In a question, ``<image>`` and
    the names of special tokens are plain text.
    """

    architecture: ClassVar[type[Family]] = Llava
    model: LlavaForConditionalGeneration

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: Any,
        processor: Any,
        before: str,
        files: tuple[Path, ...],
        *,
        max_length: int,
        pad_token_id: int,
        first_token: int | None = None,
    ) -> None:
        """Wrap a model; ``before`` is the prompt's text before the image, ``first_token`` its first token, if any."""
        self.model = model
        self.tokenizer = tokenizer
        self.family = self.architecture()
        self.device = model.device
        self.dtype = model.dtype
        self.max_length = max_length
        self.eos_token_ids = (int(tokenizer.eos_token_id),)
        self.pad_token_id = pad_token_id
        self.image_tokens = int(model.config.image_seq_length)
        self._image_token = int(model.config.image_token_id)
        self._processor = processor
        self._before = before
        self._first = [] if first_token is None else [first_token]
        self._opening = [*self._first, *encode_text(tokenizer, before)]
        self._files = files

    @abstractmethod
    def _after(self, question: str) -> str:
        """Return the prompt's text after the image."""

    def render(self, question: Question) -> str:
        """Return the whole prompt; the first ``<image>`` in it marks the image."""
        return f"{self._before}{IMAGE}{self._after(single(question))}"

    def prepare(self, questions: Sequence[Question], images: Sequence[VisualInput]) -> dict[str, Tensor]:
        """Make the input of B questions about one image each; a prompt that is too long is an error, never cut."""
        if len(questions) != len(images):
            raise ModelError(f"Expected one image a question, got {len(questions)} and {len(images)}.")
        if not questions:
            raise ModelError("Expected at least one question and image, got none.")
        opening = [*self._opening, *[self._image_token] * self.image_tokens]
        rows = [[*opening, *encode_text(self.tokenizer, self._after(single(question)))] for question in questions]
        pixels = to_device(self._pixels(images), self.device, self.dtype)
        return {**self._padded(rows), "pixel_values": pixels}

    def prepare_text(self, questions: Sequence[str]) -> dict[str, Tensor]:
        """Make the input of B questions without an image: the same prompt without image and line break after it."""
        texts = [self._before + self._after(question).removeprefix("\n") for question in questions]
        return self._padded([[*self._first, *encode_text(self.tokenizer, text)] for text in texts])

    def _padded(self, rows: Sequence[list[int]]) -> dict[str, Tensor]:
        """Return the tokens of the prompts, padded on the left."""
        longest = max(map(len, rows))
        self.check_length(longest, 0)
        ids = torch.tensor([[self.pad_token_id] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        inputs = {"input_ids": ids, "attention_mask": mask}
        return {name: to_device(value, self.device, self.dtype) for name, value in inputs.items()}

    def _pixels(self, images: Sequence[VisualInput]) -> Tensor:
        """Return the tower's input, (B, 3, H, W), float32."""
        pictures = [self._shaped(_one_image(item, index)) for index, item in enumerate(images)]
        pixels: Tensor = self._processor(images=pictures, return_tensors="pt")["pixel_values"]
        return pixels

    def _shaped(self, picture: Image) -> Image:
        """Return a picture in the shape that the processor is to see."""
        return picture

    def label_ids(self, question: Question, labels: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each label as it follows the prompt, tokenised together with the text before it."""
        after = self._after(single(question))
        blank = "" if after.endswith("\n") else " "
        return label_suffixes(partial(encode_text, self.tokenizer), after, blank, labels)


def _one_image(item: VisualInput, index: int) -> Image:
    several = list(item) if isinstance(item, list | tuple) else [item]
    if len(several) != 1:
        raise ModelError(f"Expected one image a question, which is what the model takes, got {len(several)}.")
    return eight_bit(several[0], index)
