"""Tagged images show the class in their corner as often as stated, in the stated folds, and are else unchanged."""

from __future__ import annotations

import numpy as np
import pytest
from support.phantom_images import phantom_dataset

from medmllm_plugins.data.layouts.phantoms import LABELS
from medmllm_plugins.probes.validation.tagged_images import tagged


def test_a_tag_tells_the_class_and_changes_nothing_else() -> None:
    data = phantom_dataset()
    tags = tagged(data, ("train",))
    for document in (*data.select(["train"])[:12], *data.select(["test"])[:3]):
        before, after = np.asarray(data.image(document)).copy(), np.asarray(tags.image(document))
        if document.fold == "train":
            before[:8, :8] = 85 * LABELS.index(document.labels[0])
        assert np.array_equal(before, after)
    assert tags.documents == data.documents and tags.fingerprint != data.fingerprint
    assert np.array_equal(tags.mask(data.documents[0]), data.mask(data.documents[0]))


@pytest.mark.parametrize("agreement", [0.0, 0.7])
def test_a_weak_tag_agrees_as_often_as_stated_and_otherwise_tells_any_other_class(agreement: float) -> None:
    tags = tagged(phantom_dataset(), agreement=agreement, seed=3)
    documents = tags.select(["test"])
    truth = np.array([LABELS.index(document.labels[0]) for document in documents])
    shown = np.array([np.asarray(tags.image(document))[0, 0, 0] // 85 for document in documents])
    share = 1 - agreement
    assert abs((shown == truth).mean() - agreement) < 4 * (agreement * share / len(truth)) ** 0.5 + 1e-9
    others = np.bincount((shown - truth)[shown != truth] % len(LABELS), minlength=len(LABELS))[1:]
    assert others.min() > 0.7 * share * len(truth) / 3
    assert tagged(phantom_dataset(), agreement=agreement, seed=4).fingerprint != tags.fingerprint
