"""Train the demo checkpoint: MedM-VL in miniature, on synthetic phantoms, on a CPU, in minutes.

    python examples/train_demo.py --out demo

The model is a small version of the one of Shi et al. (arXiv 2504.04323): a SigLIP tower, an MLP connector and a Qwen2
language model, connected as in LLaVA and written in the authors' layout of April 2025. Training has two stages, like
theirs, but both are classification:

1. Tower and connector are trained with two linear heads on the connector's output: the image's class from the mean over
   patches, and the class of each patch, known from the drawn mask. The heads are discarded. Without the loss on
   patches, training takes several times as many steps.
2. All parts are trained to generate the answer, with the loss on the answer's tokens only. Half of the questions are
   the task's own; the others change the order of the options, their wording and the sentence.

Images are those of the train fold and of further phantom patients that are in no fold. The seed fixes everything except
the order in which a machine sums floats, so another machine gets different weights of similar accuracy.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from medmllm_plugins.data.core.dataset_spec import DatasetSpec
from medmllm_plugins.data.core.documents import FOLDS
from medmllm_plugins.data.layouts import phantoms
from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.dataset import load_dataset
from medmllm_plugins.models.checkpoint import demo_folder
from medmllm_plugins.models.formats.llm_tokenizer import load_qwen_tokenizer
from medmllm_plugins.models.formats.medm_vl import IMAGE_TOKEN, SYSTEM, load
from medmllm_plugins.models.formats.medm_vl_config import read_config
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.models.tokens import encode_text
from medmllm_plugins.prompts.wording import closed_set

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN]
VOCABULARY = 768
PATCH = 8
TOWER = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 6, "num_attention_heads": 4}
LLM = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# Other wordings of the question: {0} is the modality, {1} the options.
PARAPHRASES = (
    "Which of the following categories does this {0} belong to: {1}? Answer with the category name only.",
    "What does this {0} show? Choose one: {1}.",
    "Assign this {0} to one of these classes: {1}. Reply with the class name.",
    "Look at the {0}. Which finding do you see? The options are {1}.",
)
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
# Patients from here on are in no fold of the set.
_FIRST_EXTRA = 1_000_000


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
    words = [word for label, synonyms in spec.classes.items() for word in (label, *synonyms)]
    own = [f"{SYSTEM} USER: ", f"\n{closed_set(spec.modality, words)} ASSISTANT:"]
    own += [text.format(spec.modality, ", ".join(words)) for text in PARAPHRASES]
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


@dataclass(frozen=True)
class TrainingSet:
    """Training images and their classes.

    Attributes:
        images: grey values, (N, 64, 64), uint8.
        covers: share of each patch that the finding covers, (N, 8, 8), float32.
        labels: index into the declaration's labels, (N,), int64.
    """

    images: Tensor
    covers: Tensor
    labels: Tensor

    def batches(self, size: int, steps: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Draw random batches, rotated and mirrored.

        Yields:
            Pixel values, (B, 3, 64, 64), float32 in [-1, 1]; covers, (B, 64), float32; labels, (B,), int64.
        """
        for _ in range(steps):
            rows = torch.randint(len(self.images), (size,), generator=generator)
            turns = torch.randint(8, (size,), generator=generator).tolist()
            grey, covers = (_turned(values[rows], turns) for values in (self.images, self.covers))
            pixels = (grey.float() / 127.5 - 1.0)[:, None].expand(-1, 3, -1, -1)
            yield pixels, covers.flatten(1), self.labels[rows]


def _turned(values: Tensor, turns: Sequence[int]) -> Tensor:
    """Return each of B squares rotated and mirrored into one of its eight positions."""
    return torch.stack(
        [torch.rot90(image.T if turn >= 4 else image, turn % 4) for image, turn in zip(values, turns, strict=True)]
    )


def training_set(labels: Sequence[str], extra: int) -> TrainingSet:
    """Return the train fold, and one image of each class for ``extra`` patients outside the data set."""
    train = [record for record in phantoms.records() if record.fold == "train"]
    drawn = [phantoms.draw(record.label, record.patient, record.view) for record in train]
    classes = [labels.index(record.label) for record in train]
    for patient in range(extra):
        for view, label in enumerate(labels):
            drawn.append(phantoms.draw(label, _FIRST_EXTRA + patient, view))
            classes.append(view)
    images, masks = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*drawn, strict=True))
    side = phantoms.SIZE // PATCH
    covers = masks.float().view(-1, side, PATCH, side, PATCH).mean((2, 4))
    return TrainingSet(images, covers, torch.tensor(classes))


class Prompts:
    """Questions and answers as token ids."""

    def __init__(self, spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase, image_tokens: int, seed: int) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        self.image = [image_token_id(tokenizer)] * image_tokens
        self.opening = encode_text(tokenizer, f"{SYSTEM} USER: ")
        self.random = np.random.default_rng(seed)

    def sample(self, label: int) -> tuple[list[int], list[int]]:
        """Draw a prompt for an image of a class; return it with its answer and the token that ends the answer."""
        words = list(self.spec.labels)
        answer = words[label]
        question = closed_set(self.spec.modality, words)
        if self.random.random() < 0.5:
            if self.random.random() < 0.4:
                words = [str(self.random.choice((word, *self.spec.classes[word]))) for word in words]
                answer = words[label]
            listed = [words[i] for i in self.random.permutation(len(words))]
            question = closed_set(self.spec.modality, listed)
            if self.random.random() < 0.4:
                question = str(self.random.choice(PARAPHRASES)).format(self.spec.modality, ", ".join(listed))
        closing = encode_text(self.tokenizer, f"\n{question} ASSISTANT:")
        target = [*encode_text(self.tokenizer, f" {answer}"), int(self.tokenizer.eos_token_id)]
        return [*self.opening, *self.image, *closing], target

    def batch(self, labels: Tensor) -> tuple[dict[str, Tensor], Tensor, int]:
        """Return inputs padded on the left, targets (-100 outside the answer), and the length of the longest answer."""
        pairs = [self.sample(int(label)) for label in labels]
        # The token that ends an answer is a target, but no input.
        rows = [prompt + target[:-1] for prompt, target in pairs]
        width, longest = max(map(len, rows)), max(len(target) for _, target in pairs)
        pad = int(self.tokenizer.pad_token_id)
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        targets = torch.tensor([[-100] * (longest - len(target)) + target for _, target in pairs])
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}, targets, longest


class Descent:
    """AdamW with warm-up, cosine decay to a twentieth and clipped gradients."""

    def __init__(self, parameters: Sequence[nn.Parameter], rate: float, steps: int) -> None:
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.02)
        warm = max(1, steps // 20)

        def factor(step: int) -> float:
            cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))
            return min(1.0, (step + 1) / warm) * (0.05 + 0.95 * cosine)

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    def step(self, loss: Tensor) -> None:
        """Update the parameters once."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()


def train_tower(
    model: LlavaForConditionalGeneration, data: TrainingSet, classes: int, steps: int, generator: torch.Generator
) -> None:
    """Train tower and connector (stage 1), with linear heads on the mean over patches and on each patch."""
    tower, connector = model.model.vision_tower, model.model.multi_modal_projector
    # The usual initial scale suits photographs, which vary several times as much as a phantom.
    tower.embeddings.patch_embedding.weight.data.mul_(4.0)
    image_head, patch_head = nn.Linear(LLM["hidden_size"], classes), nn.Linear(LLM["hidden_size"], classes + 1)
    parts = nn.ModuleList([tower, connector, image_head, patch_head])
    descent = Descent(list(parts.parameters()), 1e-3, steps)
    log = Log("tower", steps)
    for pixels, covers, labels in data.batches(64, steps, generator):
        # The last block's output before the final norm is the input of the language model.
        states = connector(tower(pixels, output_hidden_states=True).hidden_states[-1])
        logits, patches = image_head(states.mean(1)), patch_head(states)
        # A patch has the finding's class if the mask covers a tenth of it, otherwise an additional class.
        patch_labels = torch.where(covers > 0.1, labels[:, None], classes)
        loss = nn.functional.cross_entropy(logits, labels)
        loss = loss + nn.functional.cross_entropy(patches.flatten(0, 1), patch_labels.flatten())
        descent.step(loss)
        log(loss, (logits.argmax(-1) == labels).float().mean())


def train_all(
    model: LlavaForConditionalGeneration, data: TrainingSet, prompts: Prompts, steps: int, generator: torch.Generator
) -> None:
    """Train the whole model (stage 2), with the loss on the answer's tokens."""
    descent = Descent(list(model.parameters()), 1e-3, steps)
    log = Log("answer", steps)
    for pixels, _, labels in data.batches(32, steps, generator):
        inputs, targets, longest = prompts.batch(labels)
        logits = model(**inputs, pixel_values=pixels, use_cache=False, logits_to_keep=longest).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        descent.step(loss)
        correct = (logits.argmax(-1) == targets) | (targets == -100)
        log(loss, correct.all(-1).float().mean())


class Log:
    """Print the mean loss and training accuracy of every 50 steps."""

    def __init__(self, name: str, steps: int) -> None:
        self.name, self.steps, self.start = name, steps, time.perf_counter()
        self.rows: list[tuple[float, float]] = []

    def __call__(self, loss: Tensor, accuracy: Tensor) -> None:
        """Record one step."""
        self.rows.append((loss.item(), accuracy.item()))
        step = len(self.rows)
        if step % 50 == 0 or step == self.steps:
            mean_loss, mean_accuracy = np.mean(self.rows[-50:], axis=0)
            seconds = time.perf_counter() - self.start
            print(
                f"{self.name} {step}/{self.steps}: loss {mean_loss:.3f}, accuracy {mean_accuracy:.3f}, {seconds:.0f} s",
                flush=True,
            )


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
        print(f"{fold}: {right} of {len(documents)} answers correct ({accuracies[fold]:.2%}); counts: {answers}")
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
    parser.add_argument("--steps", type=int, default=1000, help="steps of stage 2; stage 1 takes 1.5 times as many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"expected --steps to be positive, got {options.steps}")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    begin = time.perf_counter()

    spec = dataset_specs()["demo"]
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(options.out, spec)
    write_configs(options.out, tokenizer)
    model = build_model(options.out, tokenizer)
    data = training_set(spec.labels, extra=4000)
    prompts = Prompts(spec, tokenizer, read_config(options.out).image_tokens, options.seed)
    example = prompts.batch(torch.zeros(32, dtype=torch.int64))[0]["input_ids"]
    print(
        f"{len(data.images)} training images, {model.num_parameters()} parameters, {len(tokenizer)} tokens, "
        f"sequences of up to {example.shape[1]} tokens, ready after {time.perf_counter() - begin:.0f} s",
        flush=True,
    )
    model.train()
    train_tower(model, data, len(spec.labels), 3 * options.steps // 2, generator)
    train_all(model, data, prompts, options.steps, generator)
    write_weights(options.out, model)
    trained = time.perf_counter() - begin
    write_readme(options.out, evaluate(options.out, spec))
    print(f"{trained:.0f} s of training, {time.perf_counter() - begin:.0f} s in total; written to {options.out}")


if __name__ == "__main__":
    main()
