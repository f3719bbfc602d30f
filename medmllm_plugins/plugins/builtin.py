"""This package's own models, probes, attribution methods and tasks, declared by the hooks that every plugin uses."""

from __future__ import annotations

from typing import Final

from medmllm_plugins.plugins.hookspecs import hookimpl
from medmllm_plugins.plugins.specs import DEMO, AttributionSpec, ModelSpec, ProbeSpec, PromptStyle, TaskFolder

_FORMATS: Final = "medmllm_plugins.models.formats."
_ATTRIBUTION: Final = "medmllm_plugins.attribution."
_ON_ITS_CARD: Final = "as stated on each checkpoint's model card"
_MEDM_VL: Final = "Shi et al. MedM-VL: What Makes a Good Medical LVLM? arXiv:2504.04323 (2025)."
INTEGRATED_GRADIENTS: Final = "Sundararajan et al. Axiomatic Attribution for Deep Networks. arXiv:1703.01365 (2017)."
"""Source of the method and of the check that its sum is complete."""


@hookimpl
def medmllm_models() -> list[ModelSpec]:
    """Return the medical models of "Lost in the Hype" (arXiv:2604.08333), MedM-VL, and any checkpoint of their families."""
    return [
        ModelSpec(
            name="medm_vl",
            summary="MedM-VL for 2D images: SigLIP vision tower, MLP connector, Qwen2.5.",
            sizes={DEMO: "embedded in this package", "2d-3b": "shiym2000/MedM-VL-2D-3B-en"},
            loader=f"{_FORMATS}medm_vl:load",
            licence=f"{_ON_ITS_CARD}; the embedded demo is Apache-2.0",
            citation=_MEDM_VL,
        ),
        ModelSpec(
            name="medm_vl_ct",
            summary="MedM-VL for chest CT volumes: SigLIP on 32 slices, attention pooling, Qwen2.5.",
            sizes={"ct-chest-3b": "shiym2000/MedM-VL-CT-Chest-3B-en"},
            loader=f"{_FORMATS}medm_vl:load_ct",
            licence=_ON_ITS_CARD,
            citation=_MEDM_VL,
        ),
        ModelSpec(
            name="lingshu",
            summary="Lingshu: Qwen2.5-VL.",
            sizes={"7b": "lingshu-medical-mllm/Lingshu-7B", "32b": "lingshu-medical-mllm/Lingshu-32B"},
            family="qwen2_5_vl",
            licence="MIT",
            citation="Xu et al. Lingshu: A Generalist Foundation Model for Unified Multimodal Medical Understanding "
            "and Reasoning. arXiv:2506.07044 (2025).",
        ),
        ModelSpec(
            name="medgemma",
            summary="MedGemma: Gemma 3.",
            sizes={
                "4b": "google/medgemma-4b-it",
                "27b": "google/medgemma-27b-it",
                "1.5-4b": "google/medgemma-1.5-4b-it",
            },
            family="gemma3",
            licence="Health AI Developer Foundations terms; gated",
            citation="Sellergren et al. MedGemma Technical Report. arXiv:2507.05201 (2025).",
        ),
        ModelSpec(
            name="huatuogpt_vision",
            summary="HuatuoGPT-Vision in its first LLaVA format: CLIP, MLP connector, Qwen2 or Yi.",
            sizes={
                "7b": "FreedomIntelligence/HuatuoGPT-Vision-7B",
                "34b": "FreedomIntelligence/HuatuoGPT-Vision-34B",
            },
            loader=f"{_FORMATS}original_llava:huatuogpt_vision",
            licence="Apache-2.0",
            citation="Chen et al. HuatuoGPT-Vision, Towards Injecting Medical Visual Knowledge into Multimodal LLMs at "
            "Scale. arXiv:2406.19280 (2024).",
        ),
        ModelSpec(
            name="shizhengpt",
            summary="ShizhenGPT for images: Qwen2.5-VL.",
            sizes={
                "7b": "FreedomIntelligence/ShizhenGPT-7B-VL",
                "32b": "FreedomIntelligence/ShizhenGPT-32B-VL",
            },
            family="qwen2_5_vl",
            licence=_ON_ITS_CARD,
            citation="Chen et al. ShizhenGPT: Towards Multimodal LLMs for Traditional Chinese Medicine. "
            "arXiv:2508.14706 (2025).",
        ),
        ModelSpec(
            name="hulu_med",
            summary="Hulu-Med: SigLIP with rotary positions, MLP connector, Qwen2.5 or Qwen3.",
            sizes={size: f"ZJU-AI4H/Hulu-Med-{size.upper()}" for size in ("4b", "7b", "14b", "32b")},
            loader=f"{_FORMATS}hulu_med:load",
            licence="Apache-2.0",
            citation="Jiang et al. Hulu-Med: A Transparent Generalist Model towards Holistic Medical Vision-Language "
            "Understanding. arXiv:2510.08668 (2025).",
        ),
        ModelSpec(
            name="medvlm_r1",
            summary="MedVLM-R1: Qwen2-VL that reasons aloud before it answers.",
            sizes={"2b": "JZPeterPan/MedVLM-R1"},
            family="qwen2_vl",
            prompt_style=PromptStyle(
                question="{question}\nFirst think it through step by step between <think> and </think>. Then give the "
                "final answer, and nothing else, between <answer> and </answer>.",
                opening="<answer>",
                max_new_tokens=1024,  # as its authors let it write
            ),
            licence=_ON_ITS_CARD,
            citation="Pan et al. MedVLM-R1: Incentivizing Medical Reasoning Capability of Vision-Language Models via "
            "Reinforcement Learning. arXiv:2502.19634 (2025).",
        ),
        ModelSpec(
            name="llava_med",
            summary="LLaVA-Med v1.5: CLIP, MLP connector, Mistral.",
            sizes={"7b": "microsoft/llava-med-v1.5-mistral-7b"},
            loader=f"{_FORMATS}original_llava:llava_med",
            licence="for research only, see its model card",
            citation="Li et al. LLaVA-Med: Training a Large Language-and-Vision Assistant for Biomedicine in One Day. "
            "arXiv:2306.00890 (2023).",
        ),
        ModelSpec(
            name="medmllm_hf",
            summary="Any checkpoint of Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Gemma 3, LLaVA, LLaVA-NeXT, InternVL, "
            "VideoLLaMA 3, Idefics 3, SmolVLM or PaliGemma.",
            prompt_style=PromptStyle(template={"enable_thinking": False}),
        ),
    ]


@hookimpl
def medmllm_probes() -> list[ProbeSpec]:
    """Return the probes of ``medmllm diagnose --protocol NAME``."""
    return [
        ProbeSpec(
            name="linear",
            target="medmllm_plugins.probes.probe_methods:fit_linear",
            summary="Multinomial logistic regression, its L2 strength chosen on the validation fold.",
            description="multinomial logistic regression on standardised features, its L2 strength chosen by log loss "
            "on the validation fold",
            citation="Alain G, Bengio Y. Understanding intermediate layers using linear classifier probes. "
            "arXiv:1610.01644 (2016).",
        ),
        ProbeSpec(
            name="paper",
            target="medmllm_plugins.probes.probe_methods:fit_paper_mlp",
            summary="The two-layer MLP of arXiv:2604.08333.",
            description="a two-layer MLP",
            citation="Zhu et al. Lost in the Hype. arXiv:2604.08333 (2026).",
        ),
    ]


@hookimpl
def medmllm_attributions() -> list[AttributionSpec]:
    """Return Captum's methods at layers, pixels and words, and attention rollout to compare them with."""
    return [
        AttributionSpec(
            name="saliency",
            target=f"{_ATTRIBUTION}methods.input_methods:saliency",
            summary="Size of the gradient at each pixel (Captum's Saliency).",
            at="pixels",
            citation="Simonyan et al. Deep Inside Convolutional Networks. arXiv:1312.6034 (2013).",
            captum=True,
        ),
        AttributionSpec(
            name="integrated_gradients",
            target=f"{_ATTRIBUTION}methods.input_methods:integrated_gradients",
            summary="Gradients along the path from the baseline to the image, at each pixel (Captum's).",
            at="pixels",
            citation=INTEGRATED_GRADIENTS,
            captum=True,
        ),
        AttributionSpec(
            name="occlusion",
            target=f"{_ATTRIBUTION}methods.input_methods:occlusion",
            summary="The loss without each patch of the image (Captum's FeatureAblation on patches).",
            at="pixels",
            gradients=False,
            citation="Zeiler and Fergus. Visualizing and Understanding Convolutional Networks. ECCV (2014).",
            captum=True,
        ),
        AttributionSpec(
            name="layer_activation",
            target=f"{_ATTRIBUTION}methods.layer_methods:layer_activation",
            summary="Length of each state, whatever the answer (Captum's LayerActivation).",
            gradients=False,
        ),
        AttributionSpec(
            name="layer_gradient_x_activation",
            target=f"{_ATTRIBUTION}methods.layer_methods:layer_gradient_x_activation",
            summary="Gradient times state at layers (Captum's LayerGradientXActivation).",
            citation="Shrikumar et al. Not Just a Black Box. arXiv:1605.01713 (2016).",
        ),
        AttributionSpec(
            name="layer_grad_cam",
            target=f"{_ATTRIBUTION}methods.layer_methods:layer_grad_cam",
            summary="States weighted by the mean gradient of each channel (Captum's LayerGradCam).",
            citation="Selvaraju et al. Grad-CAM. arXiv:1610.02391 (2016).",
        ),
        AttributionSpec(
            name="layer_integrated_gradients",
            target=f"{_ATTRIBUTION}methods.layer_methods:layer_integrated_gradients",
            summary="Gradients along the path from the baseline's states to the document's (Captum's).",
            citation=INTEGRATED_GRADIENTS,
            captum=True,
        ),
        AttributionSpec(
            name="layer_conductance",
            target=f"{_ATTRIBUTION}methods.layer_methods:layer_conductance",
            summary="Each state's share in the change from the baseline to the image (Captum's rule).",
            citation="Dhamdhere et al. How Important Is a Neuron? arXiv:1805.12233 (2018).",
            captum=True,
        ),
        AttributionSpec(
            name="layer_feature_ablation",
            target=f"{_ATTRIBUTION}methods.layer_methods:layer_feature_ablation",
            summary="The loss without each state (Captum's FeatureAblation).",
            gradients=False,
            captum=True,
        ),
        AttributionSpec(
            name="attention_rollout",
            target=f"{_ATTRIBUTION}methods.rollout:attention_rollout",
            summary="Attention multiplied through the LLM's layers, whatever the answer; a plain baseline.",
            at="llm.embed",
            gradients=False,
            citation="Abnar and Zuidema. Quantifying Attention Flow in Transformers. arXiv:2005.00928 (2020).",
        ),
        AttributionSpec(
            name="prompt_ablation",
            target=f"{_ATTRIBUTION}methods.input_methods:prompt_ablation",
            summary="The loss without each word of the prompt (Captum's FeatureAblation).",
            at="prompt",
            gradients=False,
            captum=True,
        ),
        AttributionSpec(
            name="kernel_shap",
            target=f"{_ATTRIBUTION}methods.input_methods:kernel_shap",
            summary="Shapley values of the prompt's words (Captum's KernelShap).",
            at="prompt",
            gradients=False,
            citation="Lundberg and Lee. A Unified Approach to Interpreting Model Predictions. arXiv:1705.07874 (2017).",
            captum=True,
        ),
    ]


@hookimpl
def medmllm_tasks() -> list[TaskFolder]:
    """Return the task YAML files and data-set declarations of ``tasks/``."""
    return [TaskFolder(path="medmllm_plugins:tasks")]
