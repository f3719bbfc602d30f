"""Explain an answer of a model in memory, with the methods and checks of ``med_attr``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from medmllm_plugins.attribution.attribution_input import AttributionInput, run_within_memory
from medmllm_plugins.attribution.attribution_target import Target
from medmllm_plugins.attribution.cells import FloatArray
from medmllm_plugins.attribution.checks.map_evaluator import MapEvaluator
from medmllm_plugins.attribution.explainer import resolve_methods, scores_at, token_values
from medmllm_plugins.attribution.explanation_faults import Faults, fault_messages
from medmllm_plugins.attribution.maps import build_map
from medmllm_plugins.attribution.methods.layer_methods import MethodConfig
from medmllm_plugins.errors import OptionError
from medmllm_plugins.models.base import LoadedModel, Question, VisualInput
from medmllm_plugins.prompts.attribution_options import DECISION, METHODS, AttributionOptions, Baseline
from medmllm_plugins.results.attribution_records import MapChecks, TokenAttribution


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attribution:
    """A map of one document by one method at one layer.

    Attributes:
        method: the method.
        layer: the layer.
        target: the label whose log-odds are explained.
        value: these log-odds, in nats.
        map: (pictures, height, width) float64, positive where the image speaks for the target and NaN where there is
            no patch; ``None`` where the method has values for words alone.
        tokens: text and value of each text token of the prompt; ``None`` at layers before the LLM.
        checks: deletion, insertion, stability and more; ``None`` if no checks were asked for.
        warnings: checks that failed, a sentence each.
    """

    method: str
    layer: str
    target: str
    value: float
    map: FloatArray | None
    tokens: tuple[TokenAttribution, ...] | None
    checks: MapChecks | None
    warnings: tuple[str, ...] = ()


def attribute(
    model: LoadedModel,
    image: VisualInput,
    question: Question,
    labels: Sequence[str],
    *,
    target: str = DECISION,
    methods: Sequence[str] = METHODS,
    layers: Sequence[str] = (),
    baseline: Baseline = "blurred",
    steps: int = 24,
    mask: npt.NDArray[np.bool_] | None = None,
    checks: bool = True,
    name: str = "image",
    batch: int = 8,
) -> list[Attribution]:
    """Explain a model's answer about one image, by each method at each layer.

    Args:
        model: a model, see :func:`~medmllm_plugins.models.own_model.open_model` and
            :func:`~medmllm_plugins.models.own_model.wrap_model`.
        image: an image; a list of them or a volume for models that take these.
        question: what the model is asked.
        labels: the possible answers, at least two.
        target: the label whose log-odds against the others are explained; ``"decision"`` for the one that scores
            highest.
        methods: names of methods; ``medmllm plugins`` lists all.
        layers: layers, such as ``vision.12`` or ``connector``, for methods that have none of their own.
        baseline: the image that methods compare with: ``"blurred"`` or ``"blank"``.
        steps: points on the path of methods that integrate.
        mask: (height, width) bool, the lesion, of a single image; adds ``inside``, ``area`` and ``pointing`` to the
            checks.
        checks: whether to check each map, which takes several times as long as the map.
        name: identifies the document in messages and seeds the random orders of the checks.
        batch: rows that go through the model together.

    Raises:
        OptionError: a method, a layer or the target does not exist, or there are fewer than two labels.
        ModelError: the model cannot take the input, or a method has no value for a layer.

    Example:
        >>> from PIL import Image
        >>> from medmllm_plugins import attribute, open_model
        >>> model = open_model("medm_vl", "demo", device="cpu")
        >>> image = Image.effect_noise((64, 64), 40).convert("RGB")
        >>> question = "Does this image show a round mass or no finding?"
        >>> (result,) = attribute(
        ...     model, image, question, ["round mass", "no finding"], methods=["occlusion"], checks=False
        ... )
        >>> result.layer, result.map.shape
        ('pixels', (1, 64, 64))
    """
    if len(labels) < 2:
        raise OptionError(f"Expected at least two labels, whose log-odds are explained, got {list(labels)}.")
    options = AttributionOptions(methods=tuple(methods), layers=tuple(layers), baseline=baseline, steps=steps)
    options.check(labels)
    if target == DECISION:
        (answer,) = model.generate([question], [image], max_new_tokens=0, labels=labels)
        target = labels[int(np.argmax(answer.scores or ()))]
    config, results = MethodConfig(steps=steps), []
    selected_methods = resolve_methods(model, options, question, image)
    case = AttributionInput(
        model, question, image, Target.of_label(target, labels, labels), baseline=baseline, batch=batch
    )
    for selected in selected_methods:
        scores = run_within_memory(case, partial(selected.method, case, selected.layers, config))
        faults = Faults(name, image)
        evaluator = MapEvaluator(case, name, mask, config, faults)
        noisy_values = evaluator.noisy_values(selected) if checks else []
        for layer in selected.layers:
            map_ = build_map(case, layer, scores_at(scores, layer))
            results.append(
                Attribution(
                    method=selected.spec.name,
                    layer=layer,
                    target=target,
                    value=case.value,
                    map=map_.painted,
                    tokens=token_values(case, map_),
                    checks=evaluator.evaluate(selected.spec.name, map_, noisy_values) if checks else None,
                    warnings=tuple(fault_messages(faults.records)),
                )
            )
    return results
