"""A probe that knows the mean of each class: rows belong to the class with the nearest mean.

Any scikit-learn classifier is a probe in one line: ``probe = SklearnProbe(KNeighborsClassifier())``, with
``from medmllm_plugins import SklearnProbe``, and ``target="medmllm_centroid.probe:probe"``.
"""

import torch
from medmllm_plugins import FittedProbe, ProbeData
from torch import Tensor


def fit_nearest_centroids(data: ProbeData) -> FittedProbe:
    """Fit the probe to all layers and label sets at once.

    The classes are Gaussian with one variance for all features, which is that of the rows around their own means.

    Args:
        data: features of L layers: train (L, N, D) and validation (L, V, D), float32; P label sets: train_labels
            (P, N) and validation_labels (P, V), int64, classes from 0 to K - 1. The first label set is the real one;
            the others are controls, which are fitted in the same way.
    """
    classes = torch.nn.functional.one_hot(data.train_labels, data.classes).float()  # (P, N, K)
    counts = classes.sum(1)  # (P, K)
    centroids = torch.einsum("lnd,pnk->lpkd", data.train, classes) / counts.clamp(min=1)[..., None]
    own = centroids.gather(2, data.train_labels[None, :, :, None].expand(len(data.train), -1, -1, centroids.shape[-1]))
    variance = (data.train[:, None] - own).square().mean((2, 3)).clamp(min=1e-12)  # (L, P)

    def log_p(features: Tensor, label_sets: slice) -> Tensor:
        """Return log-probabilities of the classes, (L, p, T, K), for features (L, T, D)."""
        means = centroids[:, label_sets]
        squares = torch.cdist(features[:, None].expand(-1, means.shape[1], -1, -1), means).square()
        log_likelihood = -0.5 * squares / variance[:, label_sets, None, None]
        absent = counts[label_sets] == 0  # a class without a train row is never predicted
        return log_likelihood.masked_fill(absent[:, None], -torch.inf).log_softmax(-1).clamp(min=-30)

    validation = log_p(data.validation, slice(1))[:, 0]  # (L, V, K)
    truth = data.validation_labels[0][None, :, None].expand(len(validation), -1, 1)
    return FittedProbe(
        predict=lambda features: log_p(features, slice(None)).argmax(-1),
        validation=validation.argmax(-1),
        validation_loss=-validation.gather(-1, truth).mean((1, 2)),
        log_p=lambda features: log_p(features, slice(1))[:, 0],
    )
