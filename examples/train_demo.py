"""Train the demo checkpoint: MedM-VL in miniature, on synthetic phantoms, on a CPU, in minutes.

    python examples/train_demo.py --out demo

The model is a small version of the one of Shi et al. (arXiv 2504.04323): a SigLIP tower, an MLP connector and a Qwen2
language model, connected as in LLaVA and written in the authors' layout of April 2025. Training has three stages, all
of them classification; the second and the third come three times:

1. The language model is trained to answer the task's question after a finding in words, without an image.
2. Tower and connector are trained with three linear heads on the connector's output: the image's class from the mean
   over patches; the class of each patch, known from the drawn mask; and the white square on each patch. The heads are
   discarded. Without the losses on patches, training takes several times as many steps.
3. All parts are trained to generate the answer, with the loss on the answer's tokens only. Questions are about the
   class, about white squares drawn on the image, and about findings in words. Half of those about the class are the
   task's own; the others change the order of the options, their wording and the sentence.

The weights that are written are a mean of those after the last two rounds (stochastic weight averaging: Izmailov et al.
2018, arXiv 1803.05407), which answers more questions correctly than either.

The weights in the package were trained in these stages round by round, with other numbers of steps (450, 400 and
400 of the second stage, 240, 300 and 300 of the third) and more questions about the number of squares in the last
round.

The phantom patients are in no fold of the data set. The seed fixes everything except the order in which a machine sums
floats, so another machine gets different weights of similar accuracy.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from phantom_training import (
    CELLS,
    PATCH,
    SEEN,
    Descent,
    Log,
    QuestionSource,
    TrainingSet,
    answer_loss,
    example_texts,
    initialise,
    scaled,
    training_set,
)
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import FOLDS
from medmllm_plugins.data.layouts import phantoms
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.dataset import Dataset, load_dataset
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.checkpoint import demo_folder
from medmllm_plugins.models.formats.llm_tokenizer import load_qwen_tokenizer
from medmllm_plugins.models.formats.medm_vl import IMAGE_TOKEN, SYSTEM, load
from medmllm_plugins.models.formats.medm_vl_config import read_config
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.tokens import encode_text
from medmllm_plugins.probes.anchors import run_anchors
from medmllm_plugins.prompts.protocols import ask
from medmllm_plugins.prompts.wording import closed_set

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN]
VOCABULARY = 960
# Steps for tower and connector, for findings in words, and for all parts.
STEPS = (370, 120, 250)
# Highest rates: for tower and connector in each round, and for the language model and all parts.
TOWER_RATES = (0.01, 0.008, 0.006)
RATE = 0.006
# Share of the last round in the weights that are written; the rest is of the round before.
LAST_ROUND = 0.7
TOWER = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 6, "num_attention_heads": 4}
LLM = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# Further text for the tokenizer, so that questions about other images are not split into single letters.
GENERAL = """
Classify the image. What is shown in this image? Describe the finding in the medical image. Which option is correct?
Answer with the letter of the correct option only. Answer with yes or no. The options are A, B, C, D, E, F, G, H.
Is there a lesion, a mass, a nodule, an opacity or an effusion in the chest radiograph? There is no abnormality.
The patient has a benign or malignant tumour of the breast, skin, liver, kidney, lung, colon, retina or brain.
Computed tomography, magnetic resonance imaging, ultrasound, microscopy, dermoscopy, endoscopy, fundus photograph, X-ray
slice, scan, volume, tissue, cell, blood, bone, heart, disease, infection, pneumonia, normal, abnormal, grade, stage.
Choose the best answer from the list below and give a short explanation of what you have seen on the left or right side.
"""
# Split rule of Qwen2's published tokenizer.json.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_tokenizer(folder: Path, spec: DatasetSpec) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer like Qwen2's, write it, and load it as the package does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # The prompt's own words count often, so that each becomes one token before the vocabulary is full.
    texts = [GENERAL]
    # Named one by one, so that the tokenizer stays the same when data sets are added.
    for name in ("busi", "covid19_ct", "demo"):
        known = dataset_specs()[name]
        texts += [closed_set(known.modality, known.labels)] * 4
    own = [f"{SYSTEM} USER: ", "\n ASSISTANT:", *example_texts(spec, " ")]
    tokenizer.train_from_iterator([*texts, *own * 32], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 2048,
        },
    )
    return load_qwen_tokenizer(folder)


def write_configs(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write config.json in the authors' layout of April 2025, with the files beside it."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    llm = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": VOCABULARY,
        **LLM,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "eos_token_id": end,
        "pad_token_id": pad,
    }
    tower = {
        "model_type": "siglip_vision_model",
        **TOWER,
        "num_channels": 3,
        "image_size": phantoms.SIZE,
        "patch_size": PATCH,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }
    config = {
        "architectures": ["LVLMForConditionalGeneration"],
        "llm_type": "qwen2",
        "llm_name_or_path": "demo-llm",
        "llm_max_length": 2048,
        "llm_padding_side": "right",
        "encoder_image_type": "siglip",
        "encoder_image_name_or_path": "demo-tower",
        "encoder_image_select_layer": -1,
        "encoder_image_select_feature": "cls_patch",
        "connector_image_type": "mlp",
        "connector_image_name": "mlp2x_gelu",
        "connector_image_path": None,
        "encoder_image3d_type": None,
        "llm_config": llm,
        "encoder_image_config": tower,
        "connector_image_config": {"connector_type": "mlp", "connector_name": "mlp2x_gelu"},
        "hidden_size": LLM["hidden_size"],
        "eos_token_id": end,
        "pad_token_id": pad,
        "torch_dtype": "float16",
    }
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"do_sample": False, "eos_token_id": end, "pad_token_id": pad})
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "SiglipImageProcessor",
            "do_resize": True,
            "size": {"height": phantoms.SIZE, "width": phantoms.SIZE},
            "resample": int(Image.Resampling.BICUBIC),
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
    )


def image_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the token that stands for the image."""
    return tokenizer.get_vocab()[IMAGE_TOKEN]


def build_model(folder: Path, tokenizer: PreTrainedTokenizerBase) -> LlavaForConditionalGeneration:
    """Return a model with random weights and the shapes of the written config."""
    config = read_config(folder)
    model: LlavaForConditionalGeneration = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=config.vision,
            text_config=config.llm,
            image_token_index=image_token_id(tokenizer),
            image_seq_length=config.image_tokens,
            projector_hidden_act="gelu",
            vision_feature_select_strategy=config.select,
            vision_feature_layer=config.select_layer,
            tie_word_embeddings=True,
        )
    )
    return model


def write_weights(folder: Path, model: LlavaForConditionalGeneration) -> None:
    """Write the weights in float16 under the authors' names; the tied output embeddings are left out."""
    names = (
        ("model.language_model.", "llm.model."),
        ("model.vision_tower.", "encoder_image.encoder.vision_model."),
        ("model.multi_modal_projector.linear_1.", "connector_image.connector.0."),
        ("model.multi_modal_projector.linear_2.", "connector_image.connector.2."),
    )
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        ours, theirs = next(pair for pair in names if name.startswith(pair[0]))
        tensors[theirs + name.removeprefix(ours)] = tensor.detach().to(torch.float16).contiguous()
    path = folder / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    # save_file makes the file readable by its owner only; files of a package must be readable by all.
    path.chmod(0o644)


class Prompts:
    """Questions and answers as token ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, image_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.image = [image_token_id(tokenizer)] * image_tokens
        self.before = f"{SYSTEM} USER: "

    def batch(self, questions: Sequence[Sequence[tuple[str, str]]], *, image: bool) -> tuple[dict[str, Tensor], Tensor]:
        """Tokenise the questions about each of B images, or questions without an image, with their answers.

        The questions about an image stand one after the other, but each sees only the image and itself, so an image
        goes through the model once.

        Returns:
            Inputs padded on the right; and the target of each position, (B, L), -100 outside the answers.
        """
        rows = [self._row(pairs, image) for pairs in questions]
        width = max(len(row) for row in rows)
        filler = (int(self.tokenizer.pad_token_id), 0, -1, -100)
        padded = torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])
        ids, positions, owners, targets = padded.unbind(-1)
        same = owners[:, None, :] == owners[:, :, None]
        seen = (same | (owners == 0)[:, None]) & torch.ones(width, width, dtype=torch.bool).tril()
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}, targets

    def _row(self, pairs: Sequence[tuple[str, str]], image: bool) -> list[tuple[int, int, int, int]]:
        """Return token, position, question (0: the shared beginning) and target of each position."""
        # As the package does it: the text before and after an image is tokenised apart.
        start = [*encode_text(self.tokenizer, self.before), *self.image] if image else []
        row = [(token, position, 0, -100) for position, token in enumerate(start)]
        for number, (question, answer) in enumerate(pairs, start=1):
            text = f"\n{question} ASSISTANT:" if image else f"{self.before}{question} ASSISTANT:"
            prompt = encode_text(self.tokenizer, text)
            target = [*encode_text(self.tokenizer, f" {answer}"), int(self.tokenizer.eos_token_id)]
            # The token that ends an answer is a target, but no input.
            tokens = zip([*prompt, *target[:-1]], [*[-100] * (len(prompt) - 1), *target], strict=True)
            row += [(token, len(start) + depth, number, goal) for depth, (token, goal) in enumerate(tokens)]
        return row


def train_tower(
    model: LlavaForConditionalGeneration,
    data: TrainingSet,
    questions: QuestionSource,
    rate: float,
    steps: int,
    generator: torch.Generator,
) -> None:
    """Train tower and connector (stage 2), with linear heads on the mean over patches and on each patch."""
    classes = len(questions.spec.labels)
    tower, connector = model.model.vision_tower, model.model.multi_modal_projector
    by_image, by_patch, by_square = (nn.Linear(LLM["hidden_size"], size) for size in (classes, classes + 1, CELLS + 1))
    parts = [tower, connector, by_image, by_patch, by_square]
    descent, log = Descent([(part, 1.0) for part in parts], rate, steps), Log("tower", steps, report)
    entropy = nn.functional.cross_entropy
    for grey, covers, labels in data.batches(64, steps, generator):
        images, cells = questions.squares(grey, 0.4)
        # The last block's output before the final norm is the input of the language model.
        states = connector(tower(pixels(images), output_hidden_states=True).hidden_states[-1])
        logits = by_image(states.mean(1))
        # A patch has the finding's class if the mask covers a tenth of it, otherwise an additional class.
        patch_labels = torch.where(covers > 0.1, labels[:, None], classes)
        loss = entropy(logits, labels) + entropy(by_patch(states).flatten(0, 1), patch_labels.flatten())
        by_cell = by_square(states)
        loss = loss + 2.0 * entropy(by_cell.flatten(0, 1), cells.flatten())
        descent.step(loss)
        on_squares = (by_cell.argmax(-1) == cells)[cells > 0]
        log(loss, classes=logits.argmax(-1) == labels, squares=on_squares)


def train_words(model: LlavaForConditionalGeneration, questions: QuestionSource, prompts: Prompts, steps: int) -> None:
    """Train the language model on findings in words (stage 1)."""
    descent, log = Descent([(model.model.language_model, 1.0)], RATE, steps), Log("words", steps, report)
    for _ in range(steps):
        loss, correct = answer_loss(model, *prompts.batch([[pair] for pair in questions.in_words(32)], image=False))
        descent.step(loss)
        log(loss, words=correct)


def train_all(
    model: LlavaForConditionalGeneration,
    data: TrainingSet,
    questions: QuestionSource,
    prompts: Prompts,
    steps: int,
    generator: torch.Generator,
) -> None:
    """Train the whole model (stage 3), with the loss on the answer's tokens."""
    # So few images at a time would disturb the tower at a higher rate.
    descent = Descent([(model.model.vision_tower, 0.05), (model, 1.0)], RATE, steps)
    log = Log("answer", steps, report)
    for grey, _, labels in data.batches(14, steps, generator):
        images, pairs = questions.about_images(grey, labels, squares=8, more=True)
        inputs, targets = prompts.batch(pairs, image=True)
        loss, correct = answer_loss(model, inputs | {"pixel_values": pixels(images)}, targets)
        words = [[pair] for pair in questions.in_words(6)]
        text_loss, text_correct = answer_loss(model, *prompts.batch(words, image=False))
        descent.step(loss + 0.2 * text_loss)
        log(loss, classes=correct[:-8], squares=correct[-8:], words=text_correct)


def pixels(grey: Tensor) -> Tensor:
    """Return the tower's input, (B, 3, 64, 64), float32 in [-1, 1], of grey values, (B, 64, 64), uint8."""
    return scaled(grey)[:, None].expand(-1, 3, -1, -1)


def report(line: str) -> None:
    """Print a line of progress at once."""
    print(line, flush=True)


def evaluate(folder: Path, spec: DatasetSpec) -> dict[str, float]:
    """Return the accuracy of generated answers of the written checkpoint by fold; an answer must equal the label."""
    loaded = load(LoadOptions(str(folder), device="cpu", dtype="float32"))
    data, question = load_dataset(spec), closed_set(spec.modality, spec.labels)
    accuracies = {}
    for fold in FOLDS[1:]:
        documents = data.select([fold])
        right, answers = 0, dict.fromkeys(spec.labels, 0)
        for start in range(0, len(documents), 40):
            some = documents[start : start + 40]
            images = [data.image(document) for document in some]
            for document, answer in zip(
                some, loaded.generate([question] * len(some), images, max_new_tokens=8), strict=True
            ):
                text = answer.text.strip()
                right += text == document.label
                answers[text] = answers.get(text, 0) + 1
        accuracies[fold] = right / len(documents)
        report(f"{fold}: {right} of {len(documents)} answers correct ({accuracies[fold]:.2%}); counts: {answers}")
    return accuracies | evaluate_anchors(loaded, data)


def evaluate_anchors(loaded: LoadedModel, data: Dataset) -> dict[str, float]:
    """Return the accuracy on squares drawn on images of the test fold, and on wordings seen and held out."""
    spec = data.spec
    question = ask("closed_set", spec.modality, spec.classes)
    accuracies = {}
    for name, wordings, documents in (
        ("seen", slice(SEEN), data.select(["test"])),
        ("held_out", slice(SEEN, None), ()),
    ):
        findings = {label: texts[wordings] for label, texts in spec.findings.items()}
        some = replace(data, spec=spec.model_copy(update={"findings": findings}))
        for result in run_anchors(loaded, some, question, documents).results:
            accuracies[name if result.kind == "text" else result.kind] = result.accuracy.value
            report(f"{name}, {result.kind}: {result.accuracy.value:.1%} of {result.n}, {result.verdict}")
    return accuracies


def write_readme(folder: Path, accuracies: dict[str, float]) -> None:
    """Write the README of the checkpoint."""
    sizes = phantoms.FOLD_SIZES
    (folder / "README.md").write_text(
        f"""# Demo checkpoint: MedM-VL in miniature

Not for clinical use, and of no use for medical images: it has seen nothing but synthetic phantoms, drawn by
`medmllm_plugins/data/layouts/phantoms.py`. It exists so that every stage of this package can be tried and tested on a
model whose truth is known: `--model medm_vl --model_args pretrained=demo --tasks med_cls_demo`.

Made by `examples/train_demo.py` from random weights; no published weights or data went into it. Licence: Apache-2.0.

- Layout: that of MedM-VL's authors (Shi et al., arXiv 2504.04323), April 2025; float16 safetensors.
- Vision tower: SigLIP, {TOWER["num_hidden_layers"]} blocks of width {TOWER["hidden_size"]}, {phantoms.SIZE} px,
  patch {PATCH}.
- Connector: two-layer MLP, GELU.
- LLM: Qwen2, {LLM["num_hidden_layers"]} blocks of width {LLM["hidden_size"]}, tied embeddings, {VOCABULARY} tokens.
- Accuracy of generated answers: {accuracies["test"]:.3f} on the held-out test fold ({sizes["test"]} images),
  {accuracies["validation"]:.3f} on the validation fold ({sizes["validation"]} images); chance is 0.25.
- Positive control, questions about white squares drawn on images of the test fold: accuracy
  {accuracies["presence"]:.3f} (presence), {accuracies["position"]:.3f} (position), {accuracies["count"]:.3f} (count).
  Training saw squares of the same size on other images, in other places of the same grid of 3 x 3.
- Text anchor, the finding in words without an image: accuracy {accuracies["seen"]:.3f} on the first {SEEN} wordings of
  each finding in `tasks/datasets/demo.yaml`, which training saw, and {accuracies["held_out"]:.3f} on the others, which
  it did not see. Training saw most of their words in other sentences (`examples/phantom_training.py`).
""",
        encoding="utf-8",
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as indented JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Train, write and evaluate."""
    parser = argparse.ArgumentParser(description="Train the demo checkpoint on synthetic phantoms.")
    parser.add_argument("--out", type=Path, default=demo_folder(), help="folder to write (default: the package's own)")
    parser.add_argument("--share", type=float, default=1.0, help="share of the usual number of steps, to try things")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if not 0.0 < options.share <= 1.0:
        parser.error(f"expected --share to be above 0 and at most 1, got {options.share}")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)

    spec = dataset_specs()["demo"]
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(options.out, spec)
    write_configs(options.out, tokenizer)
    model = build_model(options.out, tokenizer)
    initialise(model, LLM["hidden_size"])
    data = training_set(spec.labels, patients=4500)
    questions = QuestionSource(spec, options.seed, varied=True)
    prompts = Prompts(tokenizer, read_config(options.out).image_tokens)
    report(
        f"{len(data.images)} training images, {model.num_parameters()} parameters, {len(tokenizer)} tokens, "
        f"ready after {time.process_time():.0f} s of CPU time"
    )
    model.train()
    tower_steps, words_steps, all_steps = (math.ceil(options.share * steps) for steps in STEPS)
    train_words(model, questions, prompts, words_steps)
    before: dict[str, Tensor] = {}
    for rate in TOWER_RATES:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        train_tower(model, data, questions, rate, tower_steps, generator)
        train_all(model, data, questions, prompts, all_steps, generator)
    last = model.state_dict()
    model.load_state_dict({name: before[name].lerp(value, LAST_ROUND) for name, value in last.items()})
    write_weights(options.out, model)
    report(f"{time.process_time():.0f} s of CPU time; written to {options.out}")
    write_readme(options.out, evaluate(options.out, spec))


if __name__ == "__main__":
    main()
