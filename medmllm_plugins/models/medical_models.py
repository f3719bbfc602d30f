"""Medical models whose architecture transformers knows, each with its own manner of being asked."""

from __future__ import annotations

from medmllm_plugins.models.chat import ChatModel, PromptStyle
from medmllm_plugins.models.native import open_native
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.plugins.published_checkpoints import LINGSHU, MEDGEMMA, MEDVLM_R1, SHIZHENGPT

THINKING_TOKENS = 1024
"""What MedVLM-R1's authors let it write: it thinks aloud before it answers."""


def any_family(options: LoadOptions) -> ChatModel:
    """Load any checkpoint of a known architecture; see :func:`medmllm_plugins.models.native.open_native`."""
    return ChatModel(
        open_native(options, {}), PromptStyle(system=options.system, template=(("enable_thinking", False),))
    )


def lingshu(options: LoadOptions) -> ChatModel:
    """Load Lingshu (arXiv:2506.07044): Qwen2.5-VL."""
    return ChatModel(open_native(options, LINGSHU, expected=("qwen2_5_vl",)), PromptStyle(system=options.system))


def medgemma(options: LoadOptions) -> ChatModel:
    """Load MedGemma (arXiv:2507.05201): Gemma 3."""
    return ChatModel(open_native(options, MEDGEMMA, expected=("gemma3",)), PromptStyle(system=options.system))


def shizhengpt(options: LoadOptions) -> ChatModel:
    """Load ShizhenGPT-VL (arXiv:2508.14706): Qwen2.5-VL."""
    return ChatModel(open_native(options, SHIZHENGPT, expected=("qwen2_5_vl",)), PromptStyle(system=options.system))


def medvlm_r1(options: LoadOptions) -> ChatModel:
    """Load MedVLM-R1 (arXiv:2502.19634): Qwen2-VL, trained to reason between tags before it answers between others."""
    manner = PromptStyle(system=options.system, question=_reasoned, opening="<answer>", max_new_tokens=THINKING_TOKENS)
    return ChatModel(open_native(options, MEDVLM_R1, expected=("qwen2_vl",)), manner)


def _reasoned(question: str) -> str:
    return (
        f"{question}\nFirst think it through step by step between <think> and </think>. Then give the final answer, "
        "and nothing else, between <answer> and </answer>."
    )
