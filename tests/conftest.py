"""Settings for all tests: offline, and the checkout importable behind an installed package."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Read when torch is imported: threads that wait actively slow down other processes on the same cores severalfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["MEDMLLM_CACHE"] = ""  # nothing of a test is remembered in the home folder of whoever runs it
# At the end, so that an installed wheel is what gets tested and only benchmarks and examples come from the checkout.
sys.path.append(str(Path(__file__).parents[1]))

# No case is wrong for being slow on a busy machine. CI tries the same cases each time, so that a change is judged by
# itself; everywhere else new ones are looked for.
settings.register_profile("tests", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
settings.load_profile("tests")
