"""This package's own models and tasks, brought in by the hooks that every plugin uses."""

from __future__ import annotations

from medmllm_plugins import published
from medmllm_plugins.hookspecs import hookimpl
from medmllm_plugins.specs import ModelSpec, ProbeSpec, TaskFolder

_MODELS = "medmllm_plugins.models."


@hookimpl
def medmllm_models() -> list[ModelSpec]:
    """The medical models of "Lost in the Hype" (arXiv:2604.08333), MedM-VL, and any checkpoint of their families."""
    return [
        ModelSpec(
            name="medm_vl",
            summary="MedM-VL for 2D images: SigLIP vision tower, MLP connector, Qwen2.5.",
            loader=f"{_MODELS}medm_vl:load",
            sizes={published.DEMO: "embedded in this package", **published.MEDM_VL},
            licence="as stated on each checkpoint's model card; the embedded demo is Apache-2.0",
            citation="Shi et al. MedM-VL: What Makes a Good Medical LVLM? arXiv:2504.04323 (2025).",
        ),
        ModelSpec(
            name="medm_vl_ct",
            summary="MedM-VL for chest CT volumes: SigLIP on 32 slices, attention pooling, Qwen2.5.",
            loader=f"{_MODELS}medm_vl_ct:load",
            sizes=published.MEDM_VL_CT,
            licence="as stated on its model card",
            citation="Shi et al. MedM-VL: What Makes a Good Medical LVLM? arXiv:2504.04323 (2025).",
        ),
        ModelSpec(
            name="lingshu",
            summary="Lingshu: Qwen2.5-VL.",
            loader=f"{_MODELS}named:lingshu",
            sizes=published.LINGSHU,
            licence="MIT",
            citation="Xu et al. Lingshu: A Generalist Foundation Model for Unified Multimodal Medical Understanding "
            "and Reasoning. arXiv:2506.07044 (2025).",
        ),
        ModelSpec(
            name="medgemma",
            summary="MedGemma: Gemma 3.",
            loader=f"{_MODELS}named:medgemma",
            sizes=published.MEDGEMMA,
            licence="Health AI Developer Foundations terms; gated",
            citation="Sellergren et al. MedGemma Technical Report. arXiv:2507.05201 (2025).",
        ),
        ModelSpec(
            name="huatuogpt_vision",
            summary="HuatuoGPT-Vision in its first LLaVA format: CLIP, MLP connector, Qwen2 or Yi.",
            loader=f"{_MODELS}old_llava:huatuogpt_vision",
            sizes=published.HUATUOGPT_VISION,
            licence="Apache-2.0",
            citation="Chen et al. HuatuoGPT-Vision, Towards Injecting Medical Visual Knowledge into Multimodal LLMs at "
            "Scale. arXiv:2406.19280 (2024).",
        ),
        ModelSpec(
            name="shizhengpt",
            summary="ShizhenGPT for images: Qwen2.5-VL.",
            loader=f"{_MODELS}named:shizhengpt",
            sizes=published.SHIZHENGPT,
            licence="as stated on each checkpoint's model card",
            citation="Chen et al. ShizhenGPT: Towards Multimodal LLMs for Traditional Chinese Medicine. "
            "arXiv:2508.14706 (2025).",
        ),
        ModelSpec(
            name="hulu_med",
            summary="Hulu-Med: SigLIP with rotary positions, MLP connector, Qwen2.5 or Qwen3.",
            loader=f"{_MODELS}hulu_med:load",
            sizes=published.HULU_MED,
            licence="Apache-2.0",
            citation="Jiang et al. Hulu-Med: A Transparent Generalist Model towards Holistic Medical Vision-Language "
            "Understanding. arXiv:2510.08668 (2025).",
        ),
        ModelSpec(
            name="medvlm_r1",
            summary="MedVLM-R1: Qwen2-VL that thinks aloud before it answers.",
            loader=f"{_MODELS}named:medvlm_r1",
            sizes=published.MEDVLM_R1,
            licence="as stated on its model card",
            citation="Pan et al. MedVLM-R1: Incentivizing Medical Reasoning Capability of Vision-Language Models via "
            "Reinforcement Learning. arXiv:2502.19634 (2025).",
        ),
        ModelSpec(
            name="llava_med",
            summary="LLaVA-Med v1.5: CLIP, MLP connector, Mistral.",
            loader=f"{_MODELS}old_llava:llava_med",
            sizes=published.LLAVA_MED,
            licence="for research only, see its model card",
            citation="Li et al. LLaVA-Med: Training a Large Language-and-Vision Assistant for Biomedicine in One Day. "
            "arXiv:2306.00890 (2023).",
        ),
        ModelSpec(
            name="medmllm_hf",
            summary="Any checkpoint of Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Gemma 3, LLaVA, LLaVA-NeXT, InternVL, "
            "VideoLLaMA 3, Idefics 3, SmolVLM or PaliGemma.",
            loader=f"{_MODELS}named:any_family",
        ),
    ]


@hookimpl
def medmllm_probes() -> list[ProbeSpec]:
    """The probes of ``medmllm diagnose --protocol NAME``."""
    return [
        ProbeSpec(
            name="linear",
            target="medmllm_plugins.probes.recipes:linear",
            summary="Multinomial logistic regression, its L2 strength chosen on the validation fold.",
        ),
        ProbeSpec(
            name="paper",
            target="medmllm_plugins.probes.recipes:paper",
            summary="The two-layer MLP of arXiv:2604.08333.",
        ),
    ]


@hookimpl
def medmllm_tasks() -> list[TaskFolder]:
    """The task YAML files and data-set declarations of ``tasks/``."""
    return [TaskFolder(path="medmllm_plugins:tasks")]
