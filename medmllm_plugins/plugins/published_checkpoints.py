"""Published checkpoints: the short names that may stand in ``pretrained=``, and their hub ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DEMO: Final = "demo"
"""Short name of the checkpoint that ships with this package."""

MEDM_VL: Final[Mapping[str, str]] = {"2d-3b": "shiym2000/MedM-VL-2D-3B-en"}
MEDM_VL_CT: Final[Mapping[str, str]] = {"ct-chest-3b": "shiym2000/MedM-VL-CT-Chest-3B-en"}
LINGSHU: Final[Mapping[str, str]] = {
    "7b": "lingshu-medical-mllm/Lingshu-7B",
    "32b": "lingshu-medical-mllm/Lingshu-32B",
}
MEDGEMMA: Final[Mapping[str, str]] = {
    "4b": "google/medgemma-4b-it",
    "27b": "google/medgemma-27b-it",
    "1.5-4b": "google/medgemma-1.5-4b-it",
}
HUATUOGPT_VISION: Final[Mapping[str, str]] = {
    "7b": "FreedomIntelligence/HuatuoGPT-Vision-7B",
    "34b": "FreedomIntelligence/HuatuoGPT-Vision-34B",
}
SHIZHENGPT: Final[Mapping[str, str]] = {
    "7b": "FreedomIntelligence/ShizhenGPT-7B-VL",
    "32b": "FreedomIntelligence/ShizhenGPT-32B-VL",
}
HULU_MED: Final[Mapping[str, str]] = {
    "4b": "ZJU-AI4H/Hulu-Med-4B",
    "7b": "ZJU-AI4H/Hulu-Med-7B",
    "14b": "ZJU-AI4H/Hulu-Med-14B",
    "32b": "ZJU-AI4H/Hulu-Med-32B",
}
MEDVLM_R1: Final[Mapping[str, str]] = {"2b": "JZPeterPan/MedVLM-R1"}
LLAVA_MED: Final[Mapping[str, str]] = {"7b": "microsoft/llava-med-v1.5-mistral-7b"}
