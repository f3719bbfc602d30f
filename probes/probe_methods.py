"""Probes as the fit uses them: features and label sets in, fitted probes out. A plugin may bring its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from medmllm_plugins.errors import OptionError, PluginError
from medmllm_plugins.plugins.manager import get_manager
from medmllm_plugins.probes.logistic import RowSpace, solve
from medmllm_plugins.probes.mlp import fit_mlp
from medmllm_plugins.utils.import_by_name import import_by_name


@dataclass(frozen=True, slots=True, eq=False)
class ProbeData:
    """What probes of some layers are fitted on, all on one device.

    Label sets are the real one first, then those of the control task, then shuffled ones.

    Attributes:
        train: (L, N, D) float32 features of L layers of one width.
        validation: (L, V, D) float32.
        targets: (P, N) int64 classes of the train fold, a row for each label set.
        right: (P, V) int64 classes of the validation fold, likewise.
        controls: number of label sets of the control task, C.
        classes: number of classes, K.
        strengths: inverse L2 strengths to choose from, for probes that have one.
        seed: of what is drawn.
    """

    train: Tensor
    validation: Tensor
    targets: Tensor
    right: Tensor
    controls: int
    classes: int
    strengths: tuple[float, ...]
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class FittedProbe:
    """Fitted probes.

    Attributes:
        predict: takes (L, T, D) float32 features, in one go or in parts, and returns the classes predicted after
            fitting on each label set, (L, P, T) int64.
        validation: (L, V) int64, classes predicted after fitting on the real labels.
        loss: (L,) float, mean log loss of the real labels on the validation fold, in nats.
        strength: (L,) float, the strength chosen for the real labels; ``None`` where there is none to choose.
        gradient_norm: (L,) float, at the solution; ``None`` where it is not known.
    """

    predict: Callable[[Tensor], Tensor]
    validation: Tensor
    loss: Tensor
    strength: Tensor | None = None
    gradient_norm: Tensor | None = None


Probe: TypeAlias = Callable[[ProbeData], FittedProbe]
"""What a plugin's ``ProbeSpec`` names as its target."""


def linear(material: ProbeData) -> FittedProbe:
    """Multinomial logistic regression, the strength chosen by log loss on the validation fold.

    For the real labels and each drawing of the control task on its own; shuffled labels take the real ones' strength.
    """
    real = 1 + material.controls
    space = RowSpace(material.train)
    held_out = space.coordinates(material.validation)
    strengths = torch.tensor(material.strengths, dtype=torch.float32, device=material.train.device)
    grid = solve(space, material.targets[:real], strengths, classes=material.classes)
    log_p = grid.logits(held_out).log_softmax(-1)
    index = material.right[None, :real, None, :, None].expand(*log_p.shape[:-1], 1)
    losses = -log_p.gather(-1, index).squeeze(-1).mean(-1)  # (L, 1 + C, G)
    chosen = losses.argmin(-1)
    best = grid.choose(chosen)
    solved = [best]
    if len(shuffled := material.targets[real:]):
        same = strengths[chosen[:, :1]].expand(-1, len(shuffled))
        solved.append(solve(space, shuffled, same, classes=material.classes))

    def predict(features: Tensor) -> Tensor:
        tested = space.coordinates(features)
        return torch.cat([one.logits(tested)[:, :, 0].argmax(-1) for one in solved], dim=1)

    return FittedProbe(
        predict=predict,
        validation=best.logits(held_out)[:, 0, 0].argmax(-1),
        loss=losses.gather(-1, chosen[..., None])[:, 0, 0],
        strength=strengths[chosen[:, 0]],
        gradient_norm=best.gradient_norm[:, 0, 0],
    )


def paper(material: ProbeData) -> FittedProbe:
    """The two-layer MLP of "Lost in the Hype" (arXiv:2604.08333), as it stands after its last epoch."""
    probes = fit_mlp(material.train, material.targets, classes=material.classes, seed=material.seed)
    log_p = probes.logits(material.validation)[:, 0].log_softmax(-1)
    index = material.right[0][None, :, None].expand(len(log_p), -1, 1)
    return FittedProbe(
        predict=lambda features: probes.logits(features).argmax(-1),
        validation=log_p.argmax(-1),
        loss=-log_p.gather(-1, index).mean((1, 2)),
    )


def probe(name: str) -> Probe:
    """The probe of that name, of this package or of a plugin.

    Raises:
        OptionError: there is none.
        PluginError: its code cannot be imported.
    """
    known = get_manager().probes()
    if name not in known:
        raise OptionError(f"Expected argument `protocol` to be one of {sorted(known)}, but got {name!r}.")
    try:
        found: Probe = import_by_name(known[name].target)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"The probe {name!r} names {known[name].target}, which cannot be had: {error}.") from error
    return found
