"""An attribution method: how much the target would change if a row of a layer did."""

from collections.abc import Sequence

from medmllm_plugins import AttributionInput, MethodConfig, Scores


def gradient_norm(case: AttributionInput, layers: Sequence[str], config: MethodConfig) -> dict[str, Scores]:
    """Return the length of the target's gradient at each row.

    Args:
        case: one document, its question and the target, a number in nats. Run the model only through it.
        layers: the layers that the user chose, such as ``vision.03`` or ``connector``.
        config: ``steps``, ``samples`` and ``seed``, of which this method needs none.

    Returns:
        For each layer ``Scores`` with values (n,), one for each of its n patches or tokens.
    """
    # gradients are (1, n, d): one document, n rows of width d.
    return {layer: Scores(result.gradients[0].norm(dim=-1)) for layer, result in case.gradients(layers).items()}
