"""Where the shipped weights come from: simulated runs of many kinds, and a configuration that says which.

The runs are drawn from the geometric family of anatomies alone; brains are kept for judging.
"""

from __future__ import annotations

import tomllib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from .config import typed
from .denoising.blind import BlindBase, blind_local_pca, bounding_box
from .denoising.context import Context, build_context
from .denoising.denoise import make_model, to_snr_units
from .denoising.fusion import FUSION, SINGLE_B0, Estimates, make_fusion
from .denoising.hardware import choose_precision
from .denoising.local_pca import angular_contrasts, overcomplete_local_pca
from .denoising.losses import make_loss
from .denoising.noise import estimate_noise_level
from .denoising.pretrain import Report, TrainingRun, pretrain
from .denoising.reconstruct import Reconstruction
from .denoising.voxels import Voxels, signals_of
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
    fusion_runs, fusion_steps
        Simulated runs, none of those above, and optimiser steps for the fusion of the estimates. No steps, or no
        simulated runs, which alone have a clean target: weights without a fusion.
    fusion_motion_share, fusion_motion_mm
        Motion of these runs: in raw data the volumes fit each other less well than in those above.
    single_b0_runs, single_b0_steps
        The same for the network of a single b=0, with the motion of the fusion.
    random_seed
        Seed of everything.
    """

    model: Literal["multiscale", "denoiser"] = "multiscale"
    base_filters: int = 16
    loss: Literal["edge-aware", "l1", "mse"] = "edge-aware"
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
    fusion_runs: int = 200
    fusion_steps: int = 9000
    fusion_motion_share: float = 0.6
    fusion_motion_mm: float = 1.0
    single_b0_runs: int = 240
    single_b0_steps: int = 4000
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
    hints = typing.get_type_hints(PretrainingConfig)
    for key, value in values.items():
        if key not in hints:
            raise UsageError(f"{path}: unknown key {key}", f"known keys: {', '.join(hints)}")
        try:
            values[key] = typed(value, hints[key])
        except (TypeError, ValueError) as error:
            raise UsageError(f"{path}: {key} = {value!r}: {error}") from error
    return PretrainingConfig(**values)


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


@dataclass(frozen=True, eq=False)
class KnownRun:
    """A simulated run (X, Y, Z, V), with its mean over all noise, and the noise level that it is scaled by."""

    noisy_xyzv: np.ndarray
    expected_xyzv: np.ndarray
    sigma_xyz: np.ndarray
    mask_xyz: np.ndarray
    gradients: Gradients


def _simulate(config: PretrainingConfig, index: int, motion_share: float, most_mm: float) -> KnownRun:
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
    if rng.random() < motion_share:
        motion_mm = float(rng.uniform(0, most_mm))
        clean_xyzv = move_volumes(clean_xyzv, gradients, voxel_mm, motion_mm, rng)
    snr = float(np.exp(rng.uniform(*np.log(config.snr))))
    sigma_xyz = draw_sigma_map(mask_xyz, b0_signal(phantom) / snr, rng, spread=float(rng.uniform(0, 1.2)))
    kind: Any = str(rng.choice(["rician", "chi", "zero-filled"], p=[0.65, 0.1, 0.25]))
    noisy_xyzv, sigma_xyz = add_noise(clean_xyzv, sigma=sigma_xyz, rng=rng, kind=kind)
    expected_xyzv = expected_magnitude(clean_xyzv, sigma_xyz[..., None], kind)
    unit_xyz = sigma_xyz * np.float32(np.exp(rng.normal(0, config.sigma_error)))
    return KnownRun(noisy_xyzv, expected_xyzv, unit_xyz, mask_xyz, gradients)


def draw_run(config: PretrainingConfig, index: int) -> TrainingRun:
    """Simulate one run for the network; the same index gives the same run."""
    return known_run(_simulate(config, index, config.motion_share, config.motion_mm), config.block)


def known_run(run: KnownRun, block: int = AUTOMATIC) -> TrainingRun:
    """A run whose truth is known, to learn from or to judge a network by; ``block`` as in :class:`DenoiseOptions`."""
    context, base = _predicted(run.noisy_xyzv, run.sigma_xyz, run.mask_xyz, run.gradients, block)
    target = _in_snr_units(run.expected_xyzv, run)
    error = _error(base.base_vn, target, run.gradients)
    return TrainingRun(context, context.voxels.mask_xyz, target, error)


def measured_run(
    dwi_xyzv: np.ndarray, mask_xyz: np.ndarray, gradients: Gradients, config: PretrainingConfig
) -> TrainingRun:
    """A run of one's own to learn from: its measured volumes are the targets, as in the training on a single run."""
    sigma_xyz = estimate_noise_level(dwi_xyzv, mask_xyz)
    if not np.all(sigma_xyz[mask_xyz] > 0):
        raise BadDataError("expected noise in the run to learn from, found none", "leave this run out")
    context, base = _predicted(dwi_xyzv, sigma_xyz, mask_xyz, gradients, config.block)
    # the noise of a measured target has variance 1, and is no error of the base
    error = _error(base.base_vn, context.snr_vn, gradients) - 1.0
    return TrainingRun(context, context.voxels.mask_xyz, context.snr_vn, max(0.0, error))


def draw_fusion_run(config: PretrainingConfig, index: int, model: nn.Module) -> TrainingRun:
    """Simulate one run for the fusion, with the estimates that the trained network leads to."""
    run = _simulate(config, config.n_runs + index, config.fusion_motion_share, config.fusion_motion_mm)
    context, base = _predicted(run.noisy_xyzv, run.sigma_xyz, run.mask_xyz, run.gradients, config.block)
    reconstruction = Reconstruction(context, base, model, choose_precision(context.device, True))
    reconstruction.predict()
    pca = overcomplete_local_pca(context.snr_vn, context.voxels.mask_xyz, angular_contrasts(run.gradients))
    mean = pca.clone()
    for volume in range(run.gradients.n_volumes):
        if volume in context.targets:
            mean[volume] = reconstruction.values(volume, pca[volume].float())
        else:  # a single b=0 has no prediction; it is one more example of what the local PCA leaves
            context.base_vn[volume] = pca[volume]
    estimates = (mean, context.snr_vn, context.base_vn, pca)
    volumes = torch.arange(run.gradients.n_volumes)
    seen = Estimates(context.voxels, lambda v: [estimate[v] for estimate in estimates], volumes)
    target = _in_snr_units(run.expected_xyzv, run)
    return TrainingRun(seen, context.voxels.mask_xyz, target, _error(mean, target, run.gradients))


def draw_single_b0_run(config: PretrainingConfig, index: int) -> TrainingRun:
    """Simulate one run of a single b=0, with the estimates of that volume."""
    first = config.n_runs + config.fusion_runs
    run = _simulate(config, first + index, config.fusion_motion_share, config.fusion_motion_mm)
    b0 = int(np.flatnonzero(run.gradients.b0)[0])
    kept = np.sort([b0, *np.flatnonzero(run.gradients.dwi)])
    gradients = run.gradients.select(kept)
    mask = _cut_to_box(run.mask_xyz)
    snr = _in_snr_units(run.noisy_xyzv[..., kept], run)
    place = int(np.flatnonzero(gradients.b0)[0])
    measured_n = snr[place].clone()
    pca_n = overcomplete_local_pca(snr, mask, angular_contrasts(gradients))[place].clone()
    target = _in_snr_units(run.expected_xyzv[..., [b0]], run)
    seen = Estimates(Voxels(mask), lambda _: (pca_n, measured_n), torch.zeros(1, dtype=torch.long))
    error = float((pca_n.float() - target[0].float()).square().mean())
    return TrainingRun(seen, seen.voxels.mask_xyz, target, error)


def _predicted(
    noisy_xyzv: np.ndarray, sigma_xyz: np.ndarray, mask_xyz: np.ndarray, gradients: Gradients, block: int
) -> tuple[Context, BlindBase]:
    """Context and blind base of a run, cut to the box of its mask."""
    mask = _cut_to_box(mask_xyz)
    snr = to_snr_units(signals_of(noisy_xyzv, mask_xyz), sigma_xyz[mask_xyz])
    edge = DenoiseOptions(block=block).block_edge(gradients.n_volumes)
    # of one grid: weights made for the average of two gave more error with it, see docs/research-log.md
    base = blind_local_pca(snr, mask, block=edge)
    volumes = np.flatnonzero(gradients.dwi if gradients.b0.sum() < 2 else np.ones(gradients.n_volumes, bool))
    return build_context(snr, base.base_vn, mask, gradients, volumes.tolist()), base


def _cut_to_box(mask_xyz: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask_xyz[bounding_box(mask_xyz)]))


def _in_snr_units(signal_xyzv: np.ndarray, run: KnownRun) -> torch.Tensor:
    return to_snr_units(signals_of(signal_xyzv, run.mask_xyz), run.sigma_xyz[run.mask_xyz])


def _error(estimate_vn: torch.Tensor, target_vn: torch.Tensor, gradients: Gradients) -> float:
    """Mean squared difference of the diffusion-weighted volumes."""
    dwi = torch.as_tensor(gradients.dwi)
    return float((estimate_vn[dwi].float() - target_vn[dwi].float()).square().mean())


def train_weights(
    config: PretrainingConfig, runs: list[TrainingRun], *, device: str = "cpu", report: Report | None = None
) -> dict[str, torch.Tensor]:
    """Train the network of the configuration on the runs; its weights, on the CPU."""
    options = DenoiseOptions(
        model=config.model,
        base_filters=config.base_filters,
        init="random",
        random_seed=config.random_seed,
    )
    model = _train(make_model(options), config, runs, config.steps, config.loss, device, report)
    return _state(model)


def train_fusion(
    config: PretrainingConfig, runs: list[TrainingRun], *, device: str = "cpu", report: Report | None = None
) -> dict[str, torch.Tensor]:
    """Train the fusion on runs of :func:`draw_fusion_run`; its weights as they stand in a file of weights."""
    return _train_fusion(FUSION, config, runs, config.fusion_steps, device, report)


def train_single_b0(
    config: PretrainingConfig, runs: list[TrainingRun], *, device: str = "cpu", report: Report | None = None
) -> dict[str, torch.Tensor]:
    """The same for the network of a single b=0, on runs of :func:`draw_single_b0_run`."""
    return _train_fusion(SINGLE_B0, config, runs, config.single_b0_steps, device, report)


def _train_fusion(
    prefix: str,
    config: PretrainingConfig,
    runs: list[TrainingRun],
    steps: int,
    device: str,
    report: Report | None,
) -> dict[str, torch.Tensor]:
    trained = _train(make_fusion(config.random_seed, prefix), config, runs, steps, "mse", device, report)
    return {prefix + name: value for name, value in _state(trained).items()}


def _train(
    model: nn.Module,
    config: PretrainingConfig,
    runs: list[TrainingRun],
    steps: int,
    loss: str,
    device: str,
    report: Report | None,
) -> nn.Module:
    place = torch.device(device)
    model = model.to(place, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    pretrain(
        model,
        runs,
        make_loss(loss, config.alpha, config.beta),
        steps=steps,
        batch_size=config.batch_size,
        patch_size=config.patch_size,
        learning_rate=config.learning_rate,
        precision=choose_precision(place, True),
        generator=torch.Generator().manual_seed(config.random_seed),
        report=report,
    )
    return model


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
