"""Which device, and the number format it is fast in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..errors import UsageError


@dataclass(frozen=True)
class Precision:
    """Number format of the forward pass: ``None`` is float32 throughout; only float16 needs its loss scaled."""

    autocast: torch.dtype | None

    @property
    def name(self) -> str:
        """Name for reports."""
        return "float32" if self.autocast is None else str(self.autocast).removeprefix("torch.")

    @property
    def scales_loss(self) -> bool:
        """Whether small gradients would vanish without a scaler."""
        return self.autocast is torch.float16


def choose_device(name: str) -> torch.device:
    """The device asked for.

    Parameters
    ----------
    name
        ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises
    ------
    UsageError
        A GPU was asked for and is not there, or no device has that name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"expected auto, cpu, cuda or cuda:N as the device, found {name!r}") from error
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise UsageError(
            f"device {name} was asked for, but PyTorch sees {count} GPUs",
            "check nvidia-smi, run the container with --gpus all (docker) or --nv (apptainer), or use --device cpu",
        )
    return device


def choose_precision(device: torch.device, mixed: bool) -> Precision:
    """The fastest format that the device computes in hardware; float32 where there is none.

    Parameters
    ----------
    device
        Where the network runs.
    mixed
        Whether formats other than float32 may be used.
    """
    if not mixed:
        return Precision(None)
    if device.type == "cuda":
        # torch.cuda.is_bf16_supported would ask the current GPU; they compute bf16 since Ampere
        since_ampere = torch.cuda.get_device_capability(device) >= (8, 0)
        return Precision(torch.bfloat16 if since_ampere else torch.float16)
    # emulated bf16 is slower than float32: only AVX512-BF16 and AMX gain
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    gains = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "amx_tile"))
    return Precision(torch.bfloat16 if gains else None)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Convolve float32 as float32: PyTorch has cuDNN round it to TF32, of 10 bits, on GPUs since Ampere."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
