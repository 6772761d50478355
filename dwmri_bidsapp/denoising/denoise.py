"""The library's front door: denoise one run.

Axes: ``x y z`` space, ``v`` volume.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import BadDataError, TryAgainError, UsageError
from ..gradients import Gradients
from .blend import Blend, calibrate, error_variance, noise_variance_of
from .blind import BlindBase, blind_local_pca, bounding_box
from .context import N_CHANNELS, N_COORDINATES, Box, Context, build_context
from .hardware import Precision, choose_device, choose_precision
from .model import DenoiserNet, MultiScaleDetailNet
from .noise import check_noise_map, correct_rician_bias, estimate_noise_level, rician_variance_table
from .options import DenoiseOptions
from .predict import predict_volume, tiles_of
from .train import Progress, Training, train

# float16 holds SNR units; more than this is no noise at all
LARGEST_SNR = 2000.0


@dataclass(frozen=True, eq=False)
class Denoised:
    """A denoised run.

    Parameters
    ----------
    dwi_xyzv
        (X, Y, Z, V) float32; the input itself outside the mask.
    sigma_xyz
        (X, Y, Z) float32 standard deviation of the noise of one channel, in signal units.
    uncertainty_xyz
        (X, Y, Z) float32 expected error (standard deviation) of a denoised diffusion-weighted volume, in signal units.
    history
        One row per evaluation of the training: step, learning_rate, training_loss, heldout_loss, seconds.
    info
        What happened, ready for JSON.
    """

    dwi_xyzv: NDArray[np.float32]
    sigma_xyz: NDArray[np.float32]
    uncertainty_xyz: NDArray[np.float32]
    history: list[dict[str, float]]
    info: dict[str, Any]


def denoise(
    dwi_xyzv: NDArray[np.floating],
    gradients: Gradients,
    mask_xyz: NDArray[np.bool_],
    options: DenoiseOptions | None = None,
    *,
    sigma_xyz: NDArray[np.floating] | None = None,
    device: str = "auto",
    checkpoint_dir: Path | None = None,
    progress: Progress | None = None,
) -> Denoised:
    """Remove the noise of one run, learning from that run alone.

    Parameters
    ----------
    dwi_xyzv
        (X, Y, Z, V) magnitudes, finite.
    gradients
        The gradient table of the V volumes.
    mask_xyz
        (X, Y, Z) the brain.
    options
        How; the defaults of :class:`DenoiseOptions` if not given.
    sigma_xyz
        (X, Y, Z) noise standard deviation, if it is known; estimated otherwise.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    checkpoint_dir
        Where the training keeps its state and finds it again, and writes a TensorBoard log.
    progress
        Called with step, number of steps and held-out loss.

    Returns
    -------
    Denoised

    Raises
    ------
    BadDataError
        Shapes that do not fit, an empty mask, an unusable noise map.
    UsageError
        A device that is not there, weights that do not fit.
    TryAgainError
        The device's memory is too small.
    """
    options = options or DenoiseOptions()
    _check_shapes(dwi_xyzv, gradients, mask_xyz)
    place = choose_device(device)
    try:
        return _denoise(dwi_xyzv, gradients, mask_xyz, options, sigma_xyz, place, checkpoint_dir, progress)
    except torch.cuda.OutOfMemoryError as error:
        raise TryAgainError(
            f"the memory of {place} is too small for this run", "lower --batch-size or use --device cpu"
        ) from error


@dataclass
class _Stopwatch:
    """Seconds of each stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = round(now - self.last, 3)
        self.last = now


def _check_shapes(dwi_xyzv: NDArray[Any], gradients: Gradients, mask_xyz: NDArray[np.bool_]) -> None:
    if dwi_xyzv.ndim != 4 or dwi_xyzv.shape[3] != gradients.n_volumes:
        raise BadDataError(
            f"expected data of shape (X, Y, Z, {gradients.n_volumes}), found {tuple(dwi_xyzv.shape)}"
        )
    if mask_xyz.shape != dwi_xyzv.shape[:3] or not mask_xyz.any():
        raise BadDataError(
            f"expected a mask of shape {tuple(dwi_xyzv.shape[:3])} with voxels in it, found {mask_xyz.shape} "
            f"with {int(np.count_nonzero(mask_xyz))}"
        )


def _denoise(
    dwi_xyzv: NDArray[np.floating],
    gradients: Gradients,
    mask_xyz: NDArray[np.bool_],
    options: DenoiseOptions,
    sigma_xyz: NDArray[np.floating] | None,
    device: torch.device,
    checkpoint_dir: Path | None,
    progress: Progress | None,
) -> Denoised:
    watch = _Stopwatch()
    warnings: list[str] = []
    box = bounding_box(mask_xyz)
    mask_cpu = torch.from_numpy(np.ascontiguousarray(mask_xyz[box]))
    sigma = (
        estimate_noise_level(dwi_xyzv, mask_xyz) if sigma_xyz is None else check_noise_map(sigma_xyz, mask_xyz)
    )
    sigma = _without_zeros(sigma, dwi_xyzv, mask_xyz, warnings)
    watch.lap("noise")

    snr = _to_snr(dwi_xyzv[box], sigma[box], mask_cpu)
    targets, passed = _targets(gradients, options)
    base = blind_local_pca(snr, mask_cpu, block=options.block, device=device)
    watch.lap("blind")

    context = build_context(snr.to(device), base.base_vxyz.to(device), gradients, targets)
    mask = mask_cpu.to(device)
    model = make_model(options).to(device, memory_format=torch.channels_last_3d)
    precision = choose_precision(device, options.mixed_precision)
    training = train(
        model, context, mask, options, precision, checkpoint_dir=checkpoint_dir, progress=progress
    )
    if training.stop_reason == "diverged":
        warnings.append("the training diverged: the best weights before that were used; lower --learning-rate")
    watch.lap("training")

    result = np.array(dwi_xyzv, dtype=np.float32, order="F")
    uncertainty, blends = _reconstruct(result, box, sigma, context, base, model, mask, options, precision)
    if options.bias_correction == "rician":
        for volume in range(result.shape[3]):
            result[mask_xyz, volume] = correct_rician_bias(result[mask_xyz, volume], sigma[mask_xyz])
    watch.lap("prediction")

    info = {
        "device": str(device),
        "precision": precision.name,
        "model": options.model,
        "weights": sum(p.numel() for p in model.parameters()),
        "steps": training.steps,
        "best_step": training.best_step,
        "stop_reason": training.stop_reason,
        "heldout_loss_start": training.history[0]["heldout_loss"],
        "heldout_loss_end": min(row["heldout_loss"] for row in training.history),
        "data_loading_share": training.loading_seconds / max(training.training_seconds, 1e-9),
        "seconds": watch.seconds,
        "blend": {f"{gradients.shell_bvals[s]:g}": b.scale for s, b in blends.items()},
        "passed_through_volumes": passed,
        "sigma_median": float(np.median(sigma[mask_xyz])),
        "warnings": warnings,
    }
    return Denoised(result, sigma, uncertainty, training.history, info)


def _without_zeros(
    sigma: NDArray[np.float32], dwi_xyzv: NDArray[np.floating], mask_xyz: NDArray[np.bool_], warnings: list[str]
) -> NDArray[np.float32]:
    """Keep the signal-to-noise ratio finite where the data have next to no noise."""
    largest = max(float(np.max(dwi_xyzv[..., v][mask_xyz])) for v in range(dwi_xyzv.shape[3]))
    floor = largest / LARGEST_SNR
    if not np.isfinite(floor) or floor <= 0:
        raise BadDataError("expected a signal in the mask, found only zeros", "check the image and the mask")
    if np.any(sigma[mask_xyz] < floor):
        warnings.append("hardly any noise was found: the data were denoised already, or smoothed, or simulated")
    return np.maximum(sigma, np.float32(floor))


def _to_snr(dwi_xyzv: NDArray[np.floating], sigma_xyz: NDArray[np.float32], mask_xyz: Tensor) -> Tensor:
    """(V, X, Y, Z) float16 data in units of the noise, zero outside the mask."""
    scale = torch.from_numpy(1.0 / sigma_xyz) * mask_xyz
    snr = torch.empty((dwi_xyzv.shape[3], *dwi_xyzv.shape[:3]), dtype=torch.float16)
    for volume in range(dwi_xyzv.shape[3]):
        snr[volume] = torch.from_numpy(np.ascontiguousarray(dwi_xyzv[..., volume], dtype=np.float32)) * scale
    return snr


def _targets(gradients: Gradients, options: DenoiseOptions) -> tuple[list[int], list[int]]:
    """Volumes to denoise, and volumes to pass through."""
    denoise_b0 = options.b0_denoising and int(gradients.b0.sum()) > 1
    targets = [v for v in range(gradients.n_volumes) if denoise_b0 or not gradients.b0[v]]
    return targets, [v for v in range(gradients.n_volumes) if v not in set(targets)]


def make_model(options: DenoiseOptions) -> nn.Module:
    """The network of the options, with its initial weights.

    Raises
    ------
    UsageError
        The weights file is missing or belongs to another network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.random_seed)
        model: nn.Module
        if options.model == "multiscale":
            model = MultiScaleDetailNet(
                N_CHANNELS, 1, options.base_filters, coordinates_per_channel=N_COORDINATES
            )
        else:
            model = DenoiserNet(N_CHANNELS, 1, options.base_filters)
    if options.init != "random":
        try:
            model.load_state_dict(torch.load(options.init, map_location="cpu", weights_only=True))
        except (OSError, RuntimeError) as error:
            first = str(error).splitlines()[0]
            raise UsageError(
                f"{options.init}: expected weights of the {options.model} network with {options.base_filters} "
                f"base filters, found: {first}",
                "use --init random, or the --model and --base-filters they were made with",
            ) from error
    return model


def _reconstruct(
    result_xyzv: NDArray[np.float32],
    box: Box,
    sigma_xyz: NDArray[np.float32],
    context: Context,
    base: BlindBase,
    model: nn.Module,
    mask: Tensor,
    options: DenoiseOptions,
    precision: Precision,
) -> tuple[NDArray[np.float32], dict[int, Blend]]:
    """Write the denoised volumes into ``result_xyzv``; the uncertainty, and the blend of each shell."""
    tiles = tiles_of(mask)
    table = rician_variance_table(context.device)
    shape = tuple(mask.shape)
    sigma = torch.from_numpy(np.ascontiguousarray(sigma_xyz[box])).to(context.device)
    squares = torch.zeros(shape, device=context.device)
    blends: dict[int, Blend] = {}
    n_dwi = 0
    for shell in torch.unique(context.shell[context.targets]).tolist():
        volumes = [v for v in context.targets.tolist() if context.shell[v] == shell]
        predictions = {}
        residuals = []
        for v in volumes:
            p = predict_volume(model, context, v, tiles, precision)
            predictions[v] = p[mask].half()
            if options.blend:
                e = base.expected_error(v, shape).to(context.device)
                residuals.append(
                    ((context.snr_vxyz[v][mask] - p[mask]).square(), noise_variance_of(p[mask], table), e[mask])
                )
        blends[shell] = calibrate(residuals) if options.blend else Blend(0.0, 1.0)
        del residuals
        for v in volumes:
            p = torch.zeros(shape, device=context.device)
            p[mask] = predictions.pop(v).float()
            estimate = p
            if options.blend:
                y = context.snr_vxyz[v].float()
                noise = noise_variance_of(p, table)
                e = base.expected_error(v, shape).to(context.device)
                variance = error_variance(y, p, e, noise, mask, blends[shell])
                estimate = p + variance / (variance + noise) * (y - p)
                if shell > 0:
                    squares += variance * noise / (variance + noise)
                    n_dwi += 1
            values = (estimate * sigma).cpu()
            part = result_xyzv[(*box, v)]
            part[mask.cpu().numpy()] = values[mask.cpu()].numpy()
    uncertainty = np.zeros(sigma_xyz.shape, dtype=np.float32)
    rms = (squares / max(1, n_dwi)).sqrt() * sigma * mask
    uncertainty[box] = rms.cpu().numpy()
    return uncertainty, blends
