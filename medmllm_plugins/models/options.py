"""What a user may choose about loading a model, checked before anything heavy happens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medmllm_plugins.errors import OptionError

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
_CHOICES = {
    "dtype": ("auto", *_DTYPES),
    "attn_implementation": ("eager", "sdpa", "flash_attention_2"),
    "device_map": ("auto", "balanced", "balanced_low_0", "sequential"),
    "load_in": ("8bit", "4bit"),
}
_REQUIRED = ("pretrained", "device", "dtype")
_DEVICES = '"auto", "cpu", "cuda", "cuda:N" or "mps"'


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a checkpoint.

    Attributes:
        pretrained: a local folder, a hub id, a short size name of the family, or ``"demo"``.
        device: ``"auto"`` (the first CUDA device, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
        dtype: ``"auto"`` (bfloat16 on a CUDA device that has it, else float32) or a name in ``float32 fp32 bfloat16
            bf16 float16 fp16``.
        attn_implementation: ``"eager"``, ``"sdpa"`` or ``"flash_attention_2"``; ``None`` leaves it to transformers.
        device_map: ``"auto"``, ``"balanced"``, ``"balanced_low_0"`` or ``"sequential"``: spread the model over all
            devices, see accelerate; ``None`` for one device.
        load_in: ``"8bit"`` or ``"4bit"``: quantise while loading, with bitsandbytes.
        peft: a LoRA adapter's folder or hub id, merged into the weights.
        trust_remote_code: the very text of ``pretrained``, to let a checkpoint run the code it brings.
        system: a system prompt in place of the model's own.
        repair: a folder that ``medmllm repair`` wrote for this checkpoint.

    Raises:
        OptionError: a value has the wrong type or is none of the above. Whether the device exists is checked by
            :func:`resolve_device`.
    """

    pretrained: str
    device: str = "auto"
    dtype: str = "auto"
    attn_implementation: str | None = None
    device_map: str | None = None
    load_in: str | None = None
    peft: str | None = None
    trust_remote_code: str | None = None
    system: str | None = None
    repair: str | None = None

    def __post_init__(self) -> None:
        for name in ("pretrained", "device", "dtype", "peft", "trust_remote_code", "system", "repair"):
            value = getattr(self, name)
            if (value is not None or name in _REQUIRED) and (not isinstance(value, str) or not value.strip()):
                raise OptionError(f"Expected `{name}` to be a non-empty string, got {value!r}.")
        _device(self.device)
        for name, known in _CHOICES.items():
            if getattr(self, name) not in (None, *known):
                raise OptionError(f"Expected `{name}` to be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        if self.trust_remote_code is not None and self.trust_remote_code != self.pretrained:
            raise OptionError(
                f"Expected `trust_remote_code` to be the name of the checkpoint whose code may run, "
                f"{self.pretrained!r}, got {self.trust_remote_code!r}."
            )

    @property
    def torch_device(self) -> torch.device:
        """The device, see :func:`resolve_device`."""
        return resolve_device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the weights, see :func:`resolve_dtype`."""
        return resolve_dtype(self.dtype, self.torch_device)

    def check(self) -> None:
        """Check what depends on this machine, so that it can be said before anything is loaded.

        Raises:
            OptionError: the device is not there, or flash attention cannot run with this device and dtype.
        """
        device, dtype = self.torch_device, self.torch_dtype
        if self.attn_implementation == "flash_attention_2" and (device.type != "cuda" or dtype == torch.float32):
            raise OptionError(
                f"flash_attention_2 needs a CUDA device and dtype bfloat16 or float16, got {device} and {dtype}: "
                "use `attn_implementation=sdpa`."
            )


def _device(name: str) -> tuple[str, int | None]:
    """Split a device name into its type and index, or say what is wrong with it."""
    kind, _, index = name.partition(":")
    if name in ("auto", "cpu", "cuda", "mps"):
        return name, None
    if kind == "cuda" and index.isascii() and index.isdigit():
        return kind, int(index)
    raise OptionError(f"Expected `device` to be {_DEVICES}, got {name!r}.")


def resolve_device(name: str) -> torch.device:
    """Turn a device option into a device that this machine has.

    Raises:
        OptionError: the name is wrong, or the device is not there.
    """
    kind, index = _device(name)
    if kind == "auto":
        # MPS is taken only when asked for: its kernels are not covered by our tests.
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise OptionError(
                f"Got `device={name}`, but torch {torch.__version__} finds no CUDA device here: "
                "use `device=cpu` or install a CUDA build of torch."
            )
        if (index or 0) >= torch.cuda.device_count():
            raise OptionError(f"Got `device={name}`, but this machine has {torch.cuda.device_count()} CUDA device(s).")
        return torch.device("cuda", index or 0)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise OptionError("Got `device=mps`, but torch finds no Metal device here: use `device=cpu`.")
    return torch.device(kind)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turn a dtype option into a dtype for ``device``; ``"auto"`` is explained at :class:`LoadOptions`.

    Raises:
        OptionError: the name is none of the known ones.
    """
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    if name not in _DTYPES:
        raise OptionError(f'Expected `dtype` to be "auto" or one of {", ".join(_DTYPES)}, got {name!r}.')
    return _DTYPES[name]
