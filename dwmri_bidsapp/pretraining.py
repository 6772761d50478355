"""Where the shipped weights come from: simulated runs of many kinds, and a configuration that says which.

The runs are drawn from the geometric family of anatomies alone; brains are kept for judging.
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .denoising.blind import blind_local_pca, bounding_box
from .denoising.context import build_context
from .denoising.denoise import make_model, to_snr_units
from .denoising.hardware import choose_precision
from .denoising.losses import make_loss
from .denoising.noise import estimate_noise_level
from .denoising.pretrain import Report, TrainingRun, pretrain
from .denoising.voxels import signals_of
from .errors import BadDataError, InputOutputError, UsageError
from .gradients import Gradients
from .options import AUTOMATIC, DenoiseOptions
from .simulation import add_noise, b0_signal, draw_sigma_map, make_protocol, simulate_phantom
from .simulation.motion import move_volumes
from .simulation.noise import expected_magnitude

SHAPE = (48, 48, 40)


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """What weights are made of.

    Parameters
    ----------
    model, base_filters, loss, alpha, beta, block
        As in :class:`DenoiseOptions`.
    n_runs
        Simulated runs.
    steps, batch_size, patch_size, learning_rate
        Optimiser steps, patches of each, edge of a patch in voxels, peak learning rate.
    snr
        Lowest and highest b0 signal-to-noise ratio.
    voxel_sizes
        Edges of the voxels in mm, one drawn for each run.
    motion_share, motion_mm
        Share of the runs whose volumes are out of line, and the largest shift in mm (standard deviation).
    sigma_error
        Relative error (standard deviation) of the noise level that a run is scaled by: as an estimate has.
    random_seed
        Seed of everything.
    """

    model: str = "multiscale"
    base_filters: int = 16
    loss: str = "edge-aware"
    alpha: float = 0.5
    beta: float = 0.1
    block: int = AUTOMATIC
    n_runs: int = 240
    steps: int = 20_000
    batch_size: int = 8
    patch_size: int = 24
    learning_rate: float = 3e-3
    snr: tuple[float, float] = (7.0, 45.0)
    voxel_sizes: tuple[float, ...] = (1.5, 1.8, 2.0, 2.0, 2.5, 2.5, 3.0, 4.0)
    motion_share: float = 0.2
    motion_mm: float = 0.5
    sigma_error: float = 0.03
    random_seed: int = 0


def read_pretraining_config(path: Path) -> PretrainingConfig:
    """Read a TOML file of the fields of :class:`PretrainingConfig`.

    Raises
    ------
    UsageError
        An unknown key, a value of another type, or no TOML.
    InputOutputError
        The file cannot be read.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a TOML file: {error}") from error
    defaults = dataclasses.asdict(PretrainingConfig())
    typed: dict[str, Any] = {}
    for key, value in values.items():
        if key not in defaults:
            raise UsageError(f"{path}: unknown key {key}", f"known keys: {', '.join(defaults)}")
        wanted = type(defaults[key])
        try:
            typed[key] = tuple(map(float, value)) if wanted is tuple else wanted(value)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{path}: {key} = {value!r}: expected {wanted.__name__}") from error
    return PretrainingConfig(**typed)


def draw_protocol(rng: np.random.Generator) -> Gradients:
    """Draw one to three shells and one to seven b=0 volumes."""
    kind = rng.random()
    if kind < 0.35:
        shells = {float(rng.choice([700, 800, 1000, 1200])): int(rng.integers(10, 40))}
    elif kind < 0.65:
        shells = {float(rng.choice([1500, 2000, 2500, 3000])): int(rng.integers(24, 64))}
    elif kind < 0.85:
        outer = float(rng.choice([2000, 2500, 3000]))
        shells = {1000.0: int(rng.integers(12, 26)), outer: int(rng.integers(20, 40))}
    else:
        shells = {
            1000.0: int(rng.integers(8, 18)), 2000.0: int(rng.integers(12, 24)), 3000.0: int(rng.integers(16, 30))
        }  # fmt: skip
    return make_protocol(int(rng.choice([1, 1, 2, 3, 4, 6, 7])), shells, rng)


def draw_run(config: PretrainingConfig, index: int) -> TrainingRun:
    """Simulate one run; the same index gives the same run."""
    rng = np.random.default_rng([config.random_seed, index])
    gradients = draw_protocol(rng)
    voxel_mm = float(rng.choice(config.voxel_sizes))
    phantom = simulate_phantom(
        gradients=gradients,
        seed=int(rng.integers(1 << 30)),
        shape=SHAPE,
        voxel_size=voxel_mm,
        family="geometric",
    )
    clean_xyzv, mask_xyz = phantom.clean_xyzv, phantom.mask_xyz
    if rng.random() < config.motion_share:
        motion_mm = float(rng.uniform(0, config.motion_mm))
        clean_xyzv = move_volumes(clean_xyzv, gradients, voxel_mm, motion_mm, rng)
    snr = float(np.exp(rng.uniform(*np.log(config.snr))))
    sigma_xyz = draw_sigma_map(mask_xyz, b0_signal(phantom) / snr, rng, spread=float(rng.uniform(0, 1.2)))
    kind: Any = str(rng.choice(["rician", "chi", "zero-filled"], p=[0.65, 0.1, 0.25]))
    noisy_xyzv, sigma_xyz = add_noise(clean_xyzv, sigma=sigma_xyz, rng=rng, kind=kind)
    expected_xyzv = expected_magnitude(clean_xyzv, sigma_xyz[..., None], kind)
    unit_xyz = sigma_xyz * np.float32(np.exp(rng.normal(0, config.sigma_error)))
    return _training_run(noisy_xyzv, expected_xyzv, unit_xyz, mask_xyz, gradients, config.block)


def measured_run(
    dwi_xyzv: np.ndarray, mask_xyz: np.ndarray, gradients: Gradients, config: PretrainingConfig
) -> TrainingRun:
    """A run of one's own to learn from: its measured volumes are the targets, as in the training on a single run."""
    sigma_xyz = estimate_noise_level(dwi_xyzv, mask_xyz)
    if not np.all(sigma_xyz[mask_xyz] > 0):
        raise BadDataError("expected noise in the run to learn from, found none", "leave this run out")
    return _training_run(dwi_xyzv, None, sigma_xyz, mask_xyz, gradients, config.block)


def _training_run(
    noisy_xyzv: np.ndarray,
    expected_xyzv: np.ndarray | None,
    sigma_xyz: np.ndarray,
    mask_xyz: np.ndarray,
    gradients: Gradients,
    block: int,
) -> TrainingRun:
    """Blind base, context and targets of a run, cut to the box of its mask."""
    box = bounding_box(mask_xyz)
    mask = torch.from_numpy(np.ascontiguousarray(mask_xyz[box]))
    sigma_n = sigma_xyz[mask_xyz]
    snr = to_snr_units(signals_of(noisy_xyzv, mask_xyz), sigma_n)
    edge = DenoiseOptions(block=block).block_edge(gradients.n_volumes)
    base = blind_local_pca(snr, mask, block=edge).base_vn
    volumes = np.flatnonzero(gradients.dwi if gradients.b0.sum() < 2 else np.ones(gradients.n_volumes, bool))
    context = build_context(snr, base, mask, gradients, volumes.tolist())
    target = snr if expected_xyzv is None else to_snr_units(signals_of(expected_xyzv, mask_xyz), sigma_n)
    dwi = torch.as_tensor(gradients.dwi)
    error = float((base[dwi].float() - target[dwi].float()).square().mean())
    # the noise of a measured target has variance 1, and is no error of the base
    return TrainingRun(context, mask, target, max(0.0, error - (expected_xyzv is None)))


def train_weights(
    config: PretrainingConfig, runs: list[TrainingRun], *, device: str = "cpu", report: Report | None = None
) -> dict[str, torch.Tensor]:
    """Train the network of the configuration on the runs; its weights, on the CPU."""
    place = torch.device(device)
    options = DenoiseOptions(
        model=config.model,  # type: ignore[arg-type]
        base_filters=config.base_filters,
        init="random",
        random_seed=config.random_seed,
    )
    model = make_model(options).to(place, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    pretrain(
        model,
        runs,
        make_loss(config.loss, config.alpha, config.beta),
        steps=config.steps,
        batch_size=config.batch_size,
        patch_size=config.patch_size,
        learning_rate=config.learning_rate,
        precision=choose_precision(place, True),
        generator=torch.Generator().manual_seed(config.random_seed),
        report=report,
    )
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
