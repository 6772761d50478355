"""What a real GPU must do like the CPU; all of it is skipped where there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dwmri_bidsapp.denoising import Denoised, EdgeAwareLoss, MultiScaleDetailNet, denoise
from dwmri_bidsapp.denoising.denoise import make_model
from dwmri_bidsapp.errors import TryAgainError
from dwmri_bidsapp.options import DenoiseOptions
from dwmri_bidsapp.pretraining import (
    PretrainingConfig,
    draw_fusion_run,
    draw_run,
    train_fusion,
    train_weights,
)
from dwmri_bidsapp.simulation import Phantom, add_noise, b0_signal, make_protocol, simulate_phantom

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

STEPS = DenoiseOptions(max_steps=20, patch_size=16)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    gradients = make_protocol(2, {1000.0: 20}, np.random.default_rng(0))
    return simulate_phantom(gradients=gradients, seed=3, shape=(31, 35, 17))


@pytest.fixture(scope="module")
def noisy(phantom: Phantom) -> NDArray[np.float32]:
    sigma = b0_signal(phantom) / 20
    return add_noise(phantom.clean_xyzv, sigma=sigma, rng=np.random.default_rng(0))[0]


def on(
    device: str, phantom: Phantom, noisy: NDArray[np.float32], options: DenoiseOptions = STEPS
) -> Denoised:
    return denoise(noisy, phantom.gradients, phantom.mask_xyz, options, device=device)


def difference(one: Denoised, other: Denoised, phantom: Phantom) -> float:
    """Root mean squared difference in units of the noise."""
    sigma_n1 = one.sigma_xyz[phantom.mask_xyz][:, None]
    apart_nv = (one.dwi_xyzv - other.dwi_xyzv)[phantom.mask_xyz] / sigma_n1
    return float(np.sqrt(np.mean(apart_nv**2)))


@pytest.mark.parametrize("steps", [0, 20])
def test_result_is_that_of_the_cpu(phantom: Phantom, noisy: NDArray[np.float32], steps: int) -> None:
    options = dataclasses.replace(STEPS, max_steps=steps, mixed_precision=False)
    gpu = on("cuda", phantom, noisy, options)
    assert gpu.info["device"] == "cuda"
    # the noise left is ten times that
    assert difference(gpu, on("cpu", phantom, noisy, options), phantom) < 0.03


def test_same_seed_gives_the_same_result(phantom: Phantom, noisy: NDArray[np.float32]) -> None:
    one, other = (on("cuda", phantom, noisy) for _ in range(2))
    assert difference(one, other, phantom) < 0.03


@pytest.mark.parametrize(("supported", "name"), [(True, "bfloat16"), (False, "float16")])
def test_sixteen_bits_are_as_good(
    phantom: Phantom, noisy: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch, supported: bool, name: str
) -> None:
    exact = on("cuda", phantom, noisy, dataclasses.replace(STEPS, mixed_precision=False))
    monkeypatch.setattr(
        "torch.cuda.get_device_capability", lambda device=None: (8, 0) if supported else (7, 5)
    )
    mixed = on("cuda", phantom, noisy)
    assert mixed.info["precision"] == name
    assert mixed.info["stop_reason"] == "max-steps"
    assert difference(mixed, exact, phantom) < 0.05


@pytest.fixture
def little_memory() -> Iterator[None]:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(4e6 / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("little_memory")
def test_too_little_memory_names_a_way_out(phantom: Phantom, noisy: NDArray[np.float32]) -> None:
    with pytest.raises(TryAgainError, match="memory of cuda is too small") as caught:
        on("cuda", phantom, noisy)
    assert "--device cpu" in str(caught.value.hint)


def test_weights_can_be_made_there() -> None:
    config = PretrainingConfig(base_filters=8, steps=250, batch_size=2, patch_size=12, fusion_steps=200)
    ratios: list[float] = []
    weights = train_weights(
        config, [draw_run(config, 0)], device="cuda", report=lambda step, ratio: ratios.append(ratio)
    )
    assert ratios[-1] < 0.97
    model = make_model(DenoiseOptions(base_filters=8, init="random")).eval()
    model.load_state_dict(weights)
    run = draw_fusion_run(config, 0, model)
    train_fusion(config, [run], device="cuda", report=lambda step, ratio: ratios.append(ratio))
    assert ratios[-1] < 0.99


def test_loss_and_gradients_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    model = MultiScaleDetailNet(
        input_channels=9, output_channels=1, base_filters=32, num_volumes=10, use_sinusoidal_encoding=True
    )
    torch.nn.init.normal_(model.correct.weight, std=0.1)  # zero at the start, and so would be all gradients
    criterion = EdgeAwareLoss(alpha=0.5, beta=0.1)
    inputs, target = torch.rand(2, 9, 12, 14, 11), torch.rand(2, 1, 12, 14, 11)
    volume_indices = torch.randint(10, (2, 9))
    found = []
    for device in ("cpu", "cuda"):
        model.to(device).zero_grad()
        loss = criterion(model(inputs.to(device), volume_indices.to(device)), target.to(device))
        loss.backward()
        gradients = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
        found.append((float(loss.detach()), gradients))
    (loss_cpu, gradients_cpu), (loss_gpu, gradients_gpu) = found
    assert loss_gpu == pytest.approx(loss_cpu, rel=1e-3)
    apart = (gradients_gpu - gradients_cpu).norm() / gradients_cpu.norm()
    assert float(apart) < 0.01
