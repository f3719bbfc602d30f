"""Settings for all tests: offline, and the checkout importable behind an installed package."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["MEDMLLM_CACHE"] = ""  # nothing of a test is remembered in the home folder of whoever runs it
# At the end, so that an installed wheel is what gets tested and the checkout only lends benchmarks and examples.
sys.path.append(str(Path(__file__).parents[1]))
