"""Models that benchmarks run on (the demo checkpoint, random weights in MedM-VL's shapes), and answers by batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, SiglipImageProcessorPil

from medmllm_plugins.data.core.documents import FOLDS, Fold
from medmllm_plugins.data.layouts import phantoms
from medmllm_plugins.errors import ModelError
from medmllm_plugins.features.control_features import control_features
from medmllm_plugins.features.recorder import FeatureRecorder
from medmllm_plugins.models.base import Generation
from medmllm_plugins.models.checkpoint import demo_folder
from medmllm_plugins.models.formats import medm_vl
from medmllm_plugins.models.formats.llm_tokenizer import load_qwen_tokenizer
from medmllm_plugins.models.formats.medm_vl_config import MedMVLConfig, read_config
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.prompts.feature_options import FeatureOptions
from medmllm_plugins.prompts.wording import closed_set
from medmllm_plugins.results.feature_store import Header

QUESTION = closed_set("synthetic phantom image", phantoms.LABELS)
"""The question of med_cls_demo."""
BATCH = 16

CHECKPOINTS = Path(__file__).parent / "checkpoints"
"""Configurations without weights. That of MedM-VL-2D-3B-en, in the format since October 2025, names the parts and holds
no shapes; this package fills in those of the published checkpoint. ``medm_vl_7b`` is the same with the LLM of 7B."""


class MeasuredModel(NamedTuple):
    """A model as this package loads it, the most tokens of an answer, and whether a batch must not change answers.

    Random bfloat16 weights have many near ties, which a batch may round differently. No token ends their answers, so
    the work is the same.
    """

    loaded: medm_vl.MedMVL
    max_new_tokens: int
    exact: bool


def dtype_name(model: MeasuredModel) -> str:
    """Return the name of a model's dtype, such as ``"bfloat16"``."""
    return str(model.loaded.dtype).removeprefix("torch.")


class PhantomDocument(NamedTuple):
    """One phantom, drawn before anything is timed."""

    id: str
    group: str
    fold: Fold
    label: str
    picture: Image.Image


def phantom_documents(counts: Mapping[Fold, int]) -> list[PhantomDocument]:
    """Return the first phantoms of each fold, 64 x 64 pixels, RGB."""
    remaining, chosen = dict(counts), []
    for index, record in enumerate(phantoms.records()):
        if remaining.get(record.fold, 0) > 0:
            remaining[record.fold] -= 1
            picture = Image.fromarray(phantoms.phantom(index).image).convert("RGB")
            chosen.append(PhantomDocument(f"{index:05d}", f"{record.patient:04d}", record.fold, record.label, picture))
    return chosen


def phantom_images(count: int) -> list[Image.Image]:
    """Return the images of the first ``count`` phantoms of the test fold."""
    return [document.picture for document in phantom_documents({"test": count})]


def model_of_size(size: str, device: str) -> MeasuredModel:
    """Return the demo in float32, or random weights for ``"3b"`` and ``"7b"``: bfloat16 on CUDA, float32 on a CPU."""
    if size not in ("3b", "7b"):
        return MeasuredModel(medm_vl.load(LoadOptions("demo", device=device, dtype="float32")), 64, exact=True)
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    return random_model(read_config(CHECKPOINTS / f"medm_vl_{size}"), dtype, torch.device(device))


def random_model(config: MedMVLConfig, dtype: torch.dtype, device: torch.device) -> MeasuredModel:
    """Return a model with transformers' initial weights, made on the device, whose answers all have 16 tokens.

    The tokenizer is the demo's; the model does the work of its own, larger vocabulary.

    Raises:
        ModelError: The machine has too little memory.
    """
    tokenizer = load_qwen_tokenizer(demo_folder())
    shapes = medm_vl.llava_config(config, tokenizer.get_vocab()[medm_vl.IMAGE_TOKEN])
    network: Any = LlavaForConditionalGeneration
    with torch.device("meta"):
        weights = network(shapes).num_parameters() * dtype.itemsize
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().total
    if free < 1.2 * weights:  # for the KV cache and the activations
        raise ModelError(
            f"Expected {1.2 * weights / 1e9:.1f} GB of memory on {device} for this model, got {free / 1e9:.1f} GB. "
            "Use `--size tiny`, or a larger machine."
        )
    torch.manual_seed(0)
    with device:
        model = network._from_config(shapes, dtype=dtype)
    model.requires_grad_(False).eval()
    limits = {"max_length": config.max_length, "pad_token_id": int(tokenizer.pad_token_id)}
    processor, opening = siglip_processor(config.vision.image_size), f"{medm_vl.SYSTEM} USER: "
    loaded = medm_vl.MedMVL(model, tokenizer, processor, opening, (), **limits)
    loaded.eos_token_ids = (int(config.llm.vocab_size),)  # one past the last token, so never generated
    return MeasuredModel(loaded, 16, exact=False)


def siglip_processor(side: Any) -> Any:
    """Return SigLIP's image processor to ``side`` pixels; the demo's settings are transformers' defaults."""
    return SiglipImageProcessorPil(size={"height": side, "width": side}, do_convert_rgb=True)


def answer(
    model: MeasuredModel, members: Sequence[PhantomDocument], recorder: FeatureRecorder | None = None
) -> list[str]:
    """Answer documents in batches as the host's wrapper does, and return the texts of the test fold.

    The train fold gets a prefill alone, the validation fold label scores as well, the test fold text and scores.
    """
    loaded, labels, texts = model.loaded, phantoms.LABELS, []
    label_ids = [] if recorder is None else [ids[loaded.prefix_length :] for ids in loaded.label_ids(QUESTION, labels)]
    for batch in _batches(members):
        fold, pictures, questions = batch[0].fold, [document.picture for document in batch], [QUESTION] * len(batch)
        inputs = loaded.prepare(questions, pictures)
        options: dict[str, Any] = {"labels": None if fold == "train" else labels, "inputs": inputs}
        options |= {"max_new_tokens": model.max_new_tokens if fold == "test" else 0}
        answers = loaded.generate(questions, pictures, watch=None if recorder is None else recorder.watch, **options)
        if recorder is not None:
            rows = [_row(document, generation) for document, generation in zip(batch, answers, strict=True)]
            recorder.keep(rows, inputs, [control_features(picture) for picture in pictures], label_ids)
        if fold == "test":
            texts += [generation.text for generation in answers]
    return texts


def answer_and_record(
    model: MeasuredModel, members: Sequence[PhantomDocument], folder: Path, *, random_encoder: bool
) -> list[str]:
    """Answer documents, and write the features of every stage, with a random encoder or without, to a store."""
    header = Header("benchmark", "demo", phantoms.LABELS, "", "benchmark", "", layers=())
    example = model.loaded.prepare([QUESTION], [members[0].picture])
    options = FeatureOptions(random_encoder=random_encoder)
    recorder = FeatureRecorder(model.loaded, options, header, folder, rank=0, example=example)
    try:
        return answer(model, members, recorder)
    finally:
        recorder.close()


def _row(document: PhantomDocument, generation: Generation) -> dict[str, Any]:
    scores = None if generation.scores is None else list(generation.scores)
    tokens = None if generation.label_tokens is None else list(generation.label_tokens)
    row = {"id": document.id, "document": document.id, "group": document.group, "fold": document.fold}
    row |= {"label": document.label, "answer": generation.text}
    return {**row, "scores": scores, "blank": scores, "label_tokens": tokens}


def _batches(members: Sequence[PhantomDocument]) -> list[list[PhantomDocument]]:
    """Return batches of one fold each."""
    folds = [[document for document in members if document.fold == fold] for fold in FOLDS]
    return [fold[start : start + BATCH] for fold in folds for start in range(0, len(fold), BATCH)]
