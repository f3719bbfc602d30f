"""This package's own models and tasks, brought in by the hooks that every plugin uses."""

from __future__ import annotations

from medmllm_plugins.plugins import published_checkpoints
from medmllm_plugins.plugins.hookspecs import hookimpl
from medmllm_plugins.plugins.specs import AttributionSpec, ModelSpec, ProbeSpec, TaskFolder

INTEGRATED_GRADIENTS = "Sundararajan et al. Axiomatic Attribution for Deep Networks. arXiv:1703.01365 (2017)."
"""Source of the method and of the check that its sum is complete."""


@hookimpl
def medmllm_models() -> list[ModelSpec]:
    """The medical models of "Lost in the Hype" (arXiv:2604.08333), MedM-VL, and any checkpoint of their families."""
    return [
        ModelSpec(
            name="medm_vl",
            summary="MedM-VL for 2D images: SigLIP vision tower, MLP connector, Qwen2.5.",
            loader="medmllm_plugins.models.formats.medm_vl:load",
            sizes={published_checkpoints.DEMO: "embedded in this package", **published_checkpoints.MEDM_VL},
            licence="as stated on each checkpoint's model card; the embedded demo is Apache-2.0",
            citation="Shi et al. MedM-VL: What Makes a Good Medical LVLM? arXiv:2504.04323 (2025).",
        ),
        ModelSpec(
            name="medm_vl_ct",
            summary="MedM-VL for chest CT volumes: SigLIP on 32 slices, attention pooling, Qwen2.5.",
            loader="medmllm_plugins.models.families.medm_vl_ct:load",
            sizes=published_checkpoints.MEDM_VL_CT,
            licence="as stated on its model card",
            citation="Shi et al. MedM-VL: What Makes a Good Medical LVLM? arXiv:2504.04323 (2025).",
        ),
        ModelSpec(
            name="lingshu",
            summary="Lingshu: Qwen2.5-VL.",
            loader="medmllm_plugins.models.medical_models:lingshu",
            sizes=published_checkpoints.LINGSHU,
            licence="MIT",
            citation="Xu et al. Lingshu: A Generalist Foundation Model for Unified Multimodal Medical Understanding "
            "and Reasoning. arXiv:2506.07044 (2025).",
        ),
        ModelSpec(
            name="medgemma",
            summary="MedGemma: Gemma 3.",
            loader="medmllm_plugins.models.medical_models:medgemma",
            sizes=published_checkpoints.MEDGEMMA,
            licence="Health AI Developer Foundations terms; gated",
            citation="Sellergren et al. MedGemma Technical Report. arXiv:2507.05201 (2025).",
        ),
        ModelSpec(
            name="huatuogpt_vision",
            summary="HuatuoGPT-Vision in its first LLaVA format: CLIP, MLP connector, Qwen2 or Yi.",
            loader="medmllm_plugins.models.formats.original_llava:huatuogpt_vision",
            sizes=published_checkpoints.HUATUOGPT_VISION,
            licence="Apache-2.0",
            citation="Chen et al. HuatuoGPT-Vision, Towards Injecting Medical Visual Knowledge into Multimodal LLMs at "
            "Scale. arXiv:2406.19280 (2024).",
        ),
        ModelSpec(
            name="shizhengpt",
            summary="ShizhenGPT for images: Qwen2.5-VL.",
            loader="medmllm_plugins.models.medical_models:shizhengpt",
            sizes=published_checkpoints.SHIZHENGPT,
            licence="as stated on each checkpoint's model card",
            citation="Chen et al. ShizhenGPT: Towards Multimodal LLMs for Traditional Chinese Medicine. "
            "arXiv:2508.14706 (2025).",
        ),
        ModelSpec(
            name="hulu_med",
            summary="Hulu-Med: SigLIP with rotary positions, MLP connector, Qwen2.5 or Qwen3.",
            loader="medmllm_plugins.models.formats.hulu_med:load",
            sizes=published_checkpoints.HULU_MED,
            licence="Apache-2.0",
            citation="Jiang et al. Hulu-Med: A Transparent Generalist Model towards Holistic Medical Vision-Language "
            "Understanding. arXiv:2510.08668 (2025).",
        ),
        ModelSpec(
            name="medvlm_r1",
            summary="MedVLM-R1: Qwen2-VL that thinks aloud before it answers.",
            loader="medmllm_plugins.models.medical_models:medvlm_r1",
            sizes=published_checkpoints.MEDVLM_R1,
            licence="as stated on its model card",
            citation="Pan et al. MedVLM-R1: Incentivizing Medical Reasoning Capability of Vision-Language Models via "
            "Reinforcement Learning. arXiv:2502.19634 (2025).",
        ),
        ModelSpec(
            name="llava_med",
            summary="LLaVA-Med v1.5: CLIP, MLP connector, Mistral.",
            loader="medmllm_plugins.models.formats.original_llava:llava_med",
            sizes=published_checkpoints.LLAVA_MED,
            licence="for research only, see its model card",
            citation="Li et al. LLaVA-Med: Training a Large Language-and-Vision Assistant for Biomedicine in One Day. "
            "arXiv:2306.00890 (2023).",
        ),
        ModelSpec(
            name="medmllm_hf",
            summary="Any checkpoint of Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Gemma 3, LLaVA, LLaVA-NeXT, InternVL, "
            "VideoLLaMA 3, Idefics 3, SmolVLM or PaliGemma.",
            loader="medmllm_plugins.models.medical_models:any_family",
        ),
    ]


@hookimpl
def medmllm_probes() -> list[ProbeSpec]:
    """The probes of ``medmllm diagnose --protocol NAME``."""
    return [
        ProbeSpec(
            name="linear",
            target="medmllm_plugins.probes.probe_methods:fit_linear",
            summary="Multinomial logistic regression, its L2 strength chosen on the validation fold.",
        ),
        ProbeSpec(
            name="paper",
            target="medmllm_plugins.probes.probe_methods:fit_paper_mlp",
            summary="The two-layer MLP of arXiv:2604.08333.",
        ),
    ]


@hookimpl
def medmllm_attributions() -> list[AttributionSpec]:
    """Captum's methods at layers, pixels and words, and attention rollout to compare them with."""
    return [
        AttributionSpec(
            name="saliency",
            target="medmllm_plugins.attribution.methods.input_methods:saliency",
            summary="Size of the gradient at each pixel (Captum's Saliency).",
            at="pixels",
            citation="Simonyan et al. Deep Inside Convolutional Networks. arXiv:1312.6034 (2013).",
            captum=True,
        ),
        AttributionSpec(
            name="integrated_gradients",
            target="medmllm_plugins.attribution.methods.input_methods:integrated_gradients",
            summary="Gradients along the way from the baseline to the image, at each pixel (Captum's).",
            at="pixels",
            citation=INTEGRATED_GRADIENTS,
            captum=True,
        ),
        AttributionSpec(
            name="occlusion",
            target="medmllm_plugins.attribution.methods.input_methods:occlusion",
            summary="What is lost with each patch of the image (Captum's FeatureAblation on patches).",
            at="pixels",
            gradients=False,
            citation="Zeiler and Fergus. Visualizing and Understanding Convolutional Networks. ECCV (2014).",
            captum=True,
        ),
        AttributionSpec(
            name="layer_activation",
            target="medmllm_plugins.attribution.methods.layer_methods:layer_activation",
            summary="Length of each state, whatever the answer (Captum's LayerActivation).",
            gradients=False,
        ),
        AttributionSpec(
            name="layer_gradient_x_activation",
            target="medmllm_plugins.attribution.methods.layer_methods:layer_gradient_x_activation",
            summary="Gradient times state at layers (Captum's LayerGradientXActivation).",
            citation="Shrikumar et al. Not Just a Black Box. arXiv:1605.01713 (2016).",
        ),
        AttributionSpec(
            name="layer_grad_cam",
            target="medmllm_plugins.attribution.methods.layer_methods:layer_grad_cam",
            summary="States weighted by the mean gradient of each channel (Captum's LayerGradCam).",
            citation="Selvaraju et al. Grad-CAM. arXiv:1610.02391 (2016).",
        ),
        AttributionSpec(
            name="layer_integrated_gradients",
            target="medmllm_plugins.attribution.methods.layer_methods:layer_integrated_gradients",
            summary="Gradients along the way from the baseline's states to the document's (Captum's).",
            citation=INTEGRATED_GRADIENTS,
            captum=True,
        ),
        AttributionSpec(
            name="layer_conductance",
            target="medmllm_plugins.attribution.methods.layer_methods:layer_conductance",
            summary="What flows through each state while the image comes up from its baseline (Captum's rule).",
            citation="Dhamdhere et al. How Important Is a Neuron? arXiv:1805.12233 (2018).",
            captum=True,
        ),
        AttributionSpec(
            name="layer_feature_ablation",
            target="medmllm_plugins.attribution.methods.layer_methods:layer_feature_ablation",
            summary="What is lost with each state (Captum's FeatureAblation).",
            gradients=False,
            captum=True,
        ),
        AttributionSpec(
            name="attention_rollout",
            target="medmllm_plugins.attribution.methods.rollout:attention_rollout",
            summary="Attention multiplied through the LLM's layers, whatever the answer; a plain baseline.",
            at="llm.embed",
            gradients=False,
            citation="Abnar and Zuidema. Quantifying Attention Flow in Transformers. arXiv:2005.00928 (2020).",
        ),
        AttributionSpec(
            name="prompt_ablation",
            target="medmllm_plugins.attribution.methods.input_methods:prompt_ablation",
            summary="What is lost with each word of the prompt (Captum's FeatureAblation).",
            at="prompt",
            gradients=False,
            captum=True,
        ),
        AttributionSpec(
            name="kernel_shap",
            target="medmllm_plugins.attribution.methods.input_methods:kernel_shap",
            summary="Shapley values of the prompt's words (Captum's KernelShap).",
            at="prompt",
            gradients=False,
            citation="Lundberg and Lee. A Unified Approach to Interpreting Model Predictions. arXiv:1705.07874 (2017).",
            captum=True,
        ),
    ]


@hookimpl
def medmllm_tasks() -> list[TaskFolder]:
    """The task YAML files and data-set declarations of ``tasks/``."""
    return [TaskFolder(path="medmllm_plugins:tasks")]
