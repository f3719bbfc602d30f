"""Loading in 8 or 4 bits, where bitsandbytes is there."""

from __future__ import annotations

import importlib.util
from typing import Any

from medmllm_plugins.errors import OptionError
from medmllm_plugins.models.options import LoadOptions


def quantisation(options: LoadOptions) -> Any:
    """Return the quantisation config that the options ask for; ``None`` for none.

    Raises:
        OptionError: bitsandbytes is missing, or the device is not one that it serves.
    """
    if options.load_in is None:
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise OptionError(f"load_in={options.load_in} needs the package bitsandbytes; pip install bitsandbytes.")
    if options.torch_device.type != "cuda":
        raise OptionError(f"load_in={options.load_in} needs a CUDA device, got {options.torch_device}.")
    from transformers import BitsAndBytesConfig

    if options.load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=options.torch_dtype
    )
