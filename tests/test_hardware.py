"""Choice of device and number format, with devices that this machine need not have."""

from __future__ import annotations

import pytest
import torch

from dwmri_bidsapp.denoising.hardware import Precision, choose_device, choose_precision
from dwmri_bidsapp.errors import UsageError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int, bf16: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0) if bf16 else (7, 5))


@pytest.mark.parametrize(("gpus", "expected"), [(0, "cpu"), (1, "cuda")])
def test_auto_takes_a_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch, gpus: int, expected: str) -> None:
    pretend_gpus(monkeypatch, gpus)
    assert choose_device("auto") == torch.device(expected)
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize(("name", "gpus"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("cuda:2", 2)])
def test_absent_gpu_is_an_error_that_counts(monkeypatch: pytest.MonkeyPatch, name: str, gpus: int) -> None:
    pretend_gpus(monkeypatch, gpus)
    with pytest.raises(
        UsageError, match=f"device {name} was asked for, but PyTorch sees {gpus} GPUs"
    ) as error:
        choose_device(name)
    assert "--device cpu" in error.value.hint


def test_second_gpu_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["banana", "cuda:x", ""])
def test_unknown_device_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="expected auto, cpu, cuda or cuda:N"):
        choose_device(name)


@pytest.mark.parametrize(("bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_gpu_precision(monkeypatch: pytest.MonkeyPatch, bf16: bool, expected: torch.dtype) -> None:
    pretend_gpus(monkeypatch, 1, bf16)
    precision = choose_precision(CUDA, mixed=True)
    assert precision.autocast is expected
    assert precision.scales_loss is (expected is torch.float16)


def test_precision_is_that_of_the_chosen_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first GPU, which is the current one, is too old for bf16; the second has it."""
    capabilities = [(7, 5), (9, 0)]
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device=None: capabilities[device.index if device else 0]
    )
    formats = [choose_precision(torch.device("cuda", index), mixed=True).autocast for index in (0, 1)]
    assert formats == [torch.float16, torch.bfloat16]


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "avx2": True}, torch.bfloat16),
        ({"amx_tile": True}, torch.bfloat16),
        ({"avx512_bf16": False, "avx512_f": True}, None),
        ({}, None),
    ],
)
def test_cpu_precision(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert choose_precision(CPU, mixed=True).autocast is expected


def test_cpu_of_a_torch_that_cannot_say_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_precision(CPU, mixed=True).autocast is None


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_without_mixed_precision_it_is_float32(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    pretend_gpus(monkeypatch, 1)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert choose_precision(device, mixed=False) == Precision(None)


@pytest.mark.parametrize(
    ("dtype", "name"), [(None, "float32"), (torch.bfloat16, "bfloat16"), (torch.float16, "float16")]
)
def test_name_for_reports(dtype: torch.dtype | None, name: str) -> None:
    assert Precision(dtype).name == name
