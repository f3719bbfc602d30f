"""``medmllm selfcheck``: the diagnosis tried on the demo model, broken on purpose."""

from __future__ import annotations

from collections.abc import Callable

from medmllm_plugins.data.loading.catalogue import dataset_specs
from medmllm_plugins.data.loading.dataset import load_dataset
from medmllm_plugins.errors import OptionError
from medmllm_plugins.models.formats.medm_vl import load
from medmllm_plugins.models.options import LoadOptions
from medmllm_plugins.plugins.specs import DEMO
from medmllm_plugins.probes.validation.selfcheck import Report, selfcheck


def check_demo(seeds: int, say: Callable[[str], None]) -> Report:
    """Break the embedded demo in all ways, and diagnose it.

    Args:
        seeds: rounds; each plants every mode at every strength, and none.
        say: told of each trial.

    Raises:
        OptionError: there is no round.
    """
    if seeds < 1:
        raise OptionError(f"Expected argument `seeds` to be at least 1, but got {seeds}.")
    model = load(LoadOptions(DEMO, device="cpu", dtype="float32"))
    return selfcheck(model, load_dataset(dataset_specs()["demo"]), seeds=range(seeds), say=say)
