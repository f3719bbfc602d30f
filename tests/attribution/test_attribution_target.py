"""Targets of attributions by hand."""

from __future__ import annotations

import pytest
import torch

from medmllm_plugins.attribution.attribution_target import Target
from medmllm_plugins.errors import OptionError

LABELS = ("benign", "malignant tumour", "no")


def test_targets_by_hand() -> None:
    scores = torch.tensor([[-1.0, -2.0, -3.0], [-9.0, -0.5, -4.0]])
    target = Target.of_label("m", ("b", "m", "n"), LABELS)
    wanted = scores[:, 1] - torch.log(scores[:, 0].exp() + scores[:, 2].exp())
    torch.testing.assert_close(target.value(scores), wanted)
    torch.testing.assert_close(target.probability(scores), torch.sigmoid(wanted))
    answer = Target.of_answer(" a mass ")
    assert answer.answers == ("a mass",) and not answer.is_label and target.is_label
    assert torch.equal(answer.value(scores[:, :1]), scores[:, 0])
    torch.testing.assert_close(answer.probability(scores[:, :1]), scores[:, 0].exp())
    with pytest.raises(OptionError, match=r"one of \['b', 'm', 'n'\], got 'x'"):
        Target.of_label("x", ("b", "m", "n"), LABELS)
    with pytest.raises(OptionError, match="got an empty one"):
        Target.of_answer("  ")
