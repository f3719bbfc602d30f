"""Image networks of timm, fine-tuned on the train fold."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from medmllm_plugins.errors import DataError, OptionError, one_line
from medmllm_plugins.reference.classifier import ReferenceClassifier
from medmllm_plugins.reference.labelled_images import LabelledImages, LogProbabilities
from medmllm_plugins.utils.progress import Progress

logger = logging.getLogger(__name__)

EPOCHS = 30
"""Maximum number of epochs."""
PATIENCE = 5
"""Training ends after this many epochs without a smaller log loss on the validation fold."""
BATCH = 32
"""Documents in a batch; fewer if the train fold has fewer than ten such batches, down to :data:`MIN_BATCH`."""
MIN_BATCH = 8
RATES = {True: 1e-4, False: 1e-3}
"""Peak learning rate of AdamW, for pretrained weights and without."""
WEIGHT_DECAY = 0.05
CROP = 0.8
"""Smallest side of a random crop, as a part of the picture's."""
CACHE_BYTES = 4 << 30
"""Images are cached in memory if they need no more than this at the size of the network's input."""


class TimmClassifier(ReferenceClassifier):
    """``timm:NAME``: a network with a new head, fine-tuned completely; the epoch with the best validation loss is used.

    Batch norms keep their pretrained statistics.

    Images are those that an MLLM sees, padded with black to a square and resized to the network's input. If a volume is
    shown as several slices, their logits are averaged. Training images are cropped at random but not flipped, since
    left and right differ in medical images.
    """

    def __init__(
        self, name: str, *, weights: Path | None = None, epochs: int = EPOCHS, device: str | None = None, seed: int = 0
    ) -> None:
        """Look the network up.

        ``name`` is timm's, such as ``"resnet50.a1_in1k"``. Without ``weights``, timm's are used if they are in the
        local cache or can be downloaded, else random ones; without ``device``, the GPU if there is one.

        Raises:
            OptionError: timm is not installed or has no network of that name, or the file of weights does not exist.
        """
        try:
            import timm
        except ImportError as error:
            raise OptionError("timm is not installed; pip install 'medmllm-plugins[timm]'.") from error
        if not timm.is_model(name):
            close = timm.list_models(f"*{name.split('.')[0]}*")[:5]
            similar = f" Similar: {', '.join(close)}." if close else ""
            raise OptionError(f"Expected the name of a timm network, got {name!r}.{similar}")
        if weights is not None and not weights.is_file():
            raise OptionError(f"{weights}: expected a file of weights, but it does not exist.")
        if epochs < 1:
            raise OptionError(f"Expected argument `epochs` to be at least 1, got {epochs}.")
        self._timm: Any = timm
        self._name, self._weights, self._epochs, self._seed = name, weights, epochs, seed
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._network: nn.Module = nn.Identity()
        self._shape = (0, 0)
        self._input: dict[str, Any] = {}
        self._facts: dict[str, Any] = {}

    def fit(self, train: LabelledImages, validation: LabelledImages) -> None:
        """Fine-tune with AdamW on a cosine schedule; keep the round with the smallest validation loss."""
        self._shape = (len(train.findings), len(train.answers))
        torch.manual_seed(self._seed)
        pretrained = self._make(self._shape[0] * self._shape[1])
        size = min(BATCH, max(MIN_BATCH, len(train) // 10))
        rounds = -(-len(train) // size)
        optimiser = torch.optim.AdamW(self._network.parameters(), lr=RATES[pretrained], weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, RATES[pretrained], total_steps=rounds * self._epochs, pct_start=0.1
        )
        generator = np.random.default_rng(self._seed)
        pictures, held_out = _Pictures(train, self._input), _Pictures(validation, self._input)
        targets, right = torch.from_numpy(train.targets()), torch.from_numpy(validation.targets())
        best, best_round, losses = float("inf"), -1, []
        best_state: dict[str, Tensor] = {}
        title = f"{train.data.spec.title}: {self._name}"
        with Progress(title, rounds * self._epochs, "steps") as progress:
            for number in range(self._epochs):
                self._train_mode(pretrained)
                for indices in _batches(generator.permutation(len(train)), size):
                    progress.update()
                    if len(indices) == 1 and len(train) > 1:  # batch normalisation needs two
                        continue
                    logits = self._logits(*pictures.batch(indices, generator))
                    answers = targets[indices].to(self._device).flatten()
                    loss = nn.functional.cross_entropy(logits.flatten(0, 1), answers)
                    optimiser.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
                    optimiser.step()
                    schedule.step()
                log_p = self._predict(held_out)
                losses.append(-float(log_p.gather(2, right[:, :, None]).mean()))
                progress.note = f"epoch {number + 1}, validation loss {losses[-1]:.3f}"
                logger.info("epoch %d: log loss on the validation fold %.4f", number + 1, losses[-1])
                if losses[-1] < best:
                    best, best_round = losses[-1], number
                    state = self._network.state_dict()
                    best_state = {key: value.detach().cpu().clone() for key, value in state.items()}
                elif number - best_round >= PATIENCE:
                    break
        if best_round < 0:
            raise DataError(f"{self._name}: expected a finite loss on the validation fold, got {losses}.")
        self._network.load_state_dict(best_state)
        self._facts |= {
            "trained_on": len(train),
            "epochs": len(losses),
            "kept_epoch": best_round + 1,
            "validation_losses": [round(loss, 6) for loss in losses],
        }

    def log_probabilities(self, examples: LabelledImages) -> LogProbabilities:
        """Return the log-softmax over the answers to each question."""
        return np.asarray(self._predict(_Pictures(examples, self._input)).numpy(), dtype=np.float64)

    def facts(self) -> Mapping[str, Any]:
        """Return name, weights, input and the course of training."""
        return self._facts

    def _make(self, outputs: int) -> bool:
        """Make the network, and return whether its weights are pretrained."""
        known = self._weights is not None or self._timm.models.get_pretrained_cfg(self._name).has_weights
        why = "" if known else "timm knows no weights for it"
        network = None
        if known:
            overlay = {} if self._weights is None else {"file": str(self._weights)}
            try:
                network = self._timm.create_model(
                    self._name, pretrained=True, num_classes=outputs, pretrained_cfg_overlay=overlay
                )
            # Errors of the hub, the network and the file system have no common type; the message is reported.
            except Exception as error:
                if self._weights is not None:
                    raise OptionError(
                        f"{self._weights}: expected weights of {self._name}, got {one_line(error)}."
                    ) from error
                why = one_line(error)
        if network is None:
            logger.warning(
                "%s starts from random weights because its pretrained weights are not available: %s", self._name, why
            )
            network = self._timm.create_model(self._name, pretrained=False, num_classes=outputs)
        self._network = network.to(self._device)
        self._input = self._timm.data.resolve_model_data_config(network)
        self._facts = {
            "network": self._name,
            "timm": self._timm.__version__,
            "pretrained": not why,
            "weights": "" if why else str(self._weights.name) if self._weights else "timm's",
            "input": list(self._input["input_size"]),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "device": str(self._device),
        }
        return not why

    def _train_mode(self, pretrained: bool) -> None:
        """Switch to training; pretrained batch norms keep their running statistics.

        A few hundred updates of small batches do not move these to the new images (EfficientNets of TensorFlow keep
        99% at each update), so that weights trained on statistics of batches fail once those of the past are used.
        """
        self._network.train()
        if pretrained:
            for module in self._network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _logits(self, pictures: Tensor, counts: list[int]) -> Tensor:
        """Average the logits over the images of each document: ``[N, Q, A]``."""
        bf16 = self._device.type == "cuda" and torch.cuda.is_bf16_supported()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            logits = self._network(pictures.to(self._device)).float()
        return torch.stack([part.mean(0) for part in logits.split(counts)]).view(-1, *self._shape)

    @torch.inference_mode()
    def _predict(self, pictures: _Pictures) -> Tensor:
        self._network.eval()
        batches = map(pictures.batch, _batches(np.arange(len(pictures))))
        return torch.cat([self._logits(*batch).log_softmax(-1).cpu() for batch in batches])


class _Pictures:
    """Images preprocessed for the network, cached in memory if they fit."""

    def __init__(self, examples: LabelledImages, settings: Mapping[str, Any]) -> None:
        self._examples = examples
        self._channels, height, width = settings["input_size"]
        self._size = (width, height)
        self._mean, self._std = (torch.tensor(settings[key])[:, None, None] for key in ("mean", "std"))
        self._cache: dict[int, list[npt.NDArray[np.uint8]]] | None = (
            {} if len(examples) * width * height * 3 <= CACHE_BYTES else None
        )

    def __len__(self) -> int:
        return len(self._examples)

    def batch(
        self, indices: npt.NDArray[np.intp], generator: np.random.Generator | None = None
    ) -> tuple[Tensor, list[int]]:
        """Return normalised images ``[P, C, H, W]``, cropped at random with a generator, and counts a document."""
        several = self._examples.each(self._read, [int(index) for index in indices])
        shown = [self._cropped(picture, generator) for pictures in several for picture in pictures]
        values = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).float() / 255
        if self._channels == 1:
            values = values.mean(1, keepdim=True)
        return (values - self._mean) / self._std, [len(pictures) for pictures in several]

    def _read(self, index: int) -> list[npt.NDArray[np.uint8]]:
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        pictures = [
            np.asarray(ImageOps.pad(picture, self._size, Image.Resampling.BICUBIC, color=(0, 0, 0)))
            for picture in self._examples.pictures(index)
        ]
        if self._cache is not None:
            self._cache[index] = pictures
        return pictures

    def _cropped(self, picture: npt.NDArray[np.uint8], generator: np.random.Generator | None) -> npt.NDArray[np.uint8]:
        if generator is None:
            return picture
        width, height = self._size
        part = generator.uniform(CROP, 1.0)
        left, top = generator.uniform(0, 1 - part, size=2)
        box = (left * width, top * height, (left + part) * width, (top + part) * height)
        return np.asarray(Image.fromarray(picture).resize(self._size, Image.Resampling.BILINEAR, box=box))


def _batches(indices: npt.NDArray[np.intp], size: int = BATCH) -> Iterator[npt.NDArray[np.intp]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
