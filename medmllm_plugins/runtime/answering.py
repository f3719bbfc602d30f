"""Answer a run's requests from end to end: load the model, open the run, answer, patch, explain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from medmllm_plugins import __version__
from medmllm_plugins.models.base import LoadedModel
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.results.manifest import ModelEntry
from medmllm_plugins.runtime.anchor_loop import AnchorLoop
from medmllm_plugins.runtime.answer_loop import AnswerLoop, AnswerOptions
from medmllm_plugins.runtime.evaluation_run import EvaluationRun
from medmllm_plugins.runtime.explaining import AttributionLoop
from medmllm_plugins.runtime.interchange_loop import InterchangeLoop
from medmllm_plugins.runtime.intervention_loop import InterventionLoop
from medmllm_plugins.runtime.journal import Reply
from medmllm_plugins.runtime.knockout_loop import KnockoutLoop
from medmllm_plugins.runtime.patch_loop import PatchLoop
from medmllm_plugins.runtime.requests import RequestKey, TaskRequest
from medmllm_plugins.runtime.steering_loop import SteeringLoop
from medmllm_plugins.runtime.twin import Twin


def answer_requests(
    load: Callable[[EvaluationRun], LoadedModel],
    load_options: LoadOptions,
    requests: Sequence[TaskRequest],
    run: EvaluationRun,
    options: AnswerOptions,
    twin: Twin | None = None,
) -> dict[RequestKey, Reply]:
    """Answer requests; ask anchors, put states of a twin in, and explain some of the answers where tasks want it.

    ``load`` returns the model, loaded if it is not yet; ``load_options`` go to the manifest. The run is opened
    here.

    Raises:
        OptionError: a task asks for attributions that the model cannot give, or for states of a twin without one.
        ModelError: the model cannot take a request.
    """
    with run.guarded():
        loaded = load(run)
        answering = AnswerLoop(loaded, run, options)
        attribution = AttributionLoop(loaded, run, options, answering)
        attribution.check(requests)
        patching = PatchLoop(loaded, twin, run, options, answering)
        patching.check(requests)
        entry = model_entry(loaded, load_options, options)
        if twin is not None and any(request.patching is not None for request in requests):
            entry = replace(
                entry,
                twin=twin.options.pretrained,
                twin_peft=twin.options.peft,
                twin_fingerprint=twin.fingerprint,
                twin_states="disk" if twin.in_turn else "memory",
            )
        run.model(entry)
        journal = run.open(options.model, deciding_facts(entry, loaded))
        replies = answering.answer(requests, journal)
        AnchorLoop(loaded, run, options).answer(requests, journal)
        patching.patch(requests, journal)
        InterchangeLoop(loaded, run, options, answering).exchange(requests, journal)
        KnockoutLoop(loaded, run, options, answering).cut(requests, journal)
        SteeringLoop(loaded, run, options, answering).steer(requests, journal)
        InterventionLoop(loaded, run, options, answering).intervene(requests, journal)
        attribution.explain(requests, replies)
        run.answered()
    return replies


def model_entry(loaded: LoadedModel, load_options: LoadOptions, options: AnswerOptions) -> ModelEntry:
    """Return the model's entry in the manifest."""
    return ModelEntry(
        name=options.model,
        pretrained=load_options.pretrained,
        fingerprint=loaded.fingerprint,
        parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
        device=str(loaded.device),
        dtype=str(loaded.dtype).removeprefix("torch."),
        attn_implementation=loaded.model.config._attn_implementation,
        device_map=load_options.device_map,
        load_in=load_options.load_in,
        peft=load_options.peft,
        repair=load_options.repair,
        system=load_options.system,
        weight_warnings=tuple(loaded.weight_warnings),
        max_length=loaded.max_length,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
    )


def deciding_facts(entry: ModelEntry, loaded: LoadedModel) -> dict[str, Any]:
    """Return the facts that decide the answers, by which a run that was interrupted finds its journal."""
    beside = ("batch_size", "device", "twin", "twin_peft", "twin_fingerprint", "twin_states")
    deciding = {key: value for key, value in entry.to_dict().items() if key not in beside}
    return {**deciding, "device": loaded.device.type, "version": __version__}
