"""The library's front door: denoise one run.

Axes: ``x y z`` space, ``v`` volume.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import BadDataError, TryAgainError, UsageError
from ..gradients import Gradients
from ..options import DenoiseOptions, shipped_weights
from .blind import blind_local_pca, bounding_box
from .context import N_CHANNELS, N_COORDINATES, build_context
from .fusion import ESTIMATES, FUSION, SINGLE_B0, make_fusion
from .hardware import choose_device, choose_precision, exact_float32
from .local_pca import angular_contrasts, overcomplete_local_pca
from .model import DenoiserNet, MultiScaleDetailNet
from .noise import check_noise_map, correct_rician_bias, noise_of_signals
from .reconstruct import Reconstruction
from .train import Progress, Training, train
from .twicing import Twicing
from .voxels import Series, Storage, give_back_memory, keeping_memory, signals_of

# float16 holds SNR units; more than this is no noise at all
LARGEST_SNR = 2000.0
# share of voxels beyond that which is no reason to doubt the data: single bright ones
FEW_VOXELS = 0.01


@dataclass(frozen=True, eq=False)
class Denoised:
    """A denoised run.

    Parameters
    ----------
    dwi_xyzv
        (X, Y, Z, V) float32 array, or the series that was overwritten; the input itself outside the mask.
    sigma_xyz
        (X, Y, Z) float32 standard deviation of the noise of one channel, in signal units.
    uncertainty_xyz
        (X, Y, Z) float32 expected error (standard deviation) of a denoised diffusion-weighted volume, in signal units.
    history
        One row per evaluation of the training: step, learning_rate, training_loss, heldout_loss, seconds.
    info
        What happened, ready for JSON.
    """

    dwi_xyzv: Any
    sigma_xyz: NDArray[np.float32]
    uncertainty_xyz: NDArray[np.float32]
    history: list[dict[str, float]]
    info: dict[str, Any]


def denoise(
    dwi_xyzv: Series,
    gradients: Gradients,
    mask_xyz: NDArray[np.bool_],
    options: DenoiseOptions | None = None,
    *,
    sigma_xyz: NDArray[np.floating] | None = None,
    device: str = "auto",
    checkpoint_dir: Path | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    scratch_dir: Path | None = None,
) -> Denoised:
    """Remove the noise of one run, learning from that run alone.

    Parameters
    ----------
    dwi_xyzv
        (X, Y, Z, V) magnitudes, finite: an array, or what gives and takes volumes by ``[..., v]``.
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
    overwrite
        Put the result into ``dwi_xyzv`` (float32) instead of a copy: saves the memory of a run.
    scratch_dir
        Keep the values of all voxels in files of this folder instead of in memory: a run may then be larger than the
        memory. The result is the same to the bit.

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
        with keeping_memory(large=scratch_dir is None), exact_float32():
            return _denoise(
                dwi_xyzv,
                gradients,
                mask_xyz,
                options,
                sigma_xyz,
                place,
                checkpoint_dir,
                progress,
                overwrite,
                Storage(scratch_dir),
            )
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
        give_back_memory()
        now = time.perf_counter()
        self.seconds[stage] = round(now - self.last, 3)
        self.last = now


def _check_shapes(dwi_xyzv: Series, gradients: Gradients, mask_xyz: NDArray[np.bool_]) -> None:
    if len(dwi_xyzv.shape) != 4 or dwi_xyzv.shape[3] != gradients.n_volumes:
        raise BadDataError(
            f"expected data of shape (X, Y, Z, {gradients.n_volumes}), found {tuple(dwi_xyzv.shape)}"
        )
    if mask_xyz.shape != dwi_xyzv.shape[:3] or not mask_xyz.any():
        raise BadDataError(
            f"expected a mask of shape {tuple(dwi_xyzv.shape[:3])} with voxels in it, found {mask_xyz.shape} "
            f"with {int(np.count_nonzero(mask_xyz))}"
        )


def _denoise(
    dwi_xyzv: Series,
    gradients: Gradients,
    mask_xyz: NDArray[np.bool_],
    options: DenoiseOptions,
    given_sigma_xyz: NDArray[np.floating] | None,
    device: torch.device,
    checkpoint_dir: Path | None,
    progress: Progress | None,
    overwrite: bool,
    storage: Storage,
) -> Denoised:
    watch = _Stopwatch()
    warnings: list[str] = []
    box = bounding_box(mask_xyz)
    # of even size, or the network would fill up every volume
    mask = torch.from_numpy(np.pad(mask_xyz[box], [(0, (b.stop - b.start) % 2) for b in box]))
    signal_vn = signals_of(dwi_xyzv, mask_xyz, storage)
    sigma_xyz = _noise_level(signal_vn, mask_xyz, given_sigma_xyz, warnings)
    watch.lap("noise")

    sigma_n = sigma_xyz[mask_xyz]
    snr_vn = to_snr_units(signal_vn, sigma_n, storage)
    del signal_vn
    roles = _roles(gradients, options, empty=set((~snr_vn.any(dim=1)).nonzero().flatten().tolist()))
    # both PCAs stay on the CPU: a GPU takes ten times as long for many small eigendecompositions
    base = blind_local_pca(
        snr_vn,
        mask,
        block=options.block_edge(gradients.n_volumes),
        grids=options.block_grids(gradients.n_volumes),
        out_vn=storage.tensor(snr_vn.shape),
    )
    watch.lap("blind")

    context = build_context(
        snr_vn.to(device),
        base.base_vn.to(device),
        mask.to(device),
        gradients,
        roles.targets,
        leave_out=options.leave_out,
    )
    model = make_model(options).to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    precision = choose_precision(device, options.mixed_precision)
    training = train(
        model,
        context,
        context.voxels.mask_xyz,
        options,
        precision,
        checkpoint_dir=checkpoint_dir,
        progress=progress,
    )
    if training.stop_reason == "diverged":
        warnings.append(
            "the training diverged: the best weights before that were used; lower --learning-rate"
        )
    watch.lap("training")

    reconstruction = Reconstruction(
        context,
        base,
        model,
        precision,
        options.blend,
        floor_stays=options.bias_correction == "none",
        local_pca="local-pca" not in options.leave_out,
        fusion=load_fusion(options, FUSION, device),
        single_b0=load_fusion(options, SINGLE_B0, device),
        mirrored=options.mirrored(gradients.n_volumes),
    )
    reconstruction.predict()
    watch.lap("prediction")
    # last, because the training and the network need memory of their own
    pca_vn = snr_vn
    if options.blend:
        contrasts_vk = None if "second-look" in options.leave_out else angular_contrasts(gradients)
        pca_vn = overcomplete_local_pca(snr_vn, mask, contrasts_vk, out_vn=storage.tensor(snr_vn.shape))
    watch.lap("local_pca")
    twicing = None
    if options.blend and "twicing" not in options.leave_out:
        twicing = Twicing(gradients, context.voxels)
    for volume in range(gradients.n_volumes):
        if volume in roles.passed:
            continue
        rebuild = reconstruction.values_unpredicted if volume in roles.pca_only else reconstruction.values
        rebuilt_n = rebuild(volume, pca_vn[volume].float().to(device))
        if twicing is not None:
            twicing.learn(volume, context.snr_vn[volume], rebuilt_n)
        # in place of the prediction, which no other volume needs
        context.base_vn[volume] = rebuilt_n
    if twicing is not None:
        twicing.finish()
    in_place = overwrite and getattr(dwi_xyzv, "dtype", np.float32) == np.float32
    result_xyzv = dwi_xyzv if in_place else np.empty(dwi_xyzv.shape, np.float32, order="F")
    for volume in range(gradients.n_volumes):
        image_xyz = np.array(dwi_xyzv[..., volume], dtype=np.float32)
        if volume not in roles.passed:
            values_n = context.base_vn[volume].float()
            if twicing is not None:
                values_n += twicing.given_back(volume)
            signal_n = values_n.cpu().numpy() * sigma_n
            if options.bias_correction == "rician":
                signal_n = correct_rician_bias(signal_n, sigma_n)
            image_xyz[mask_xyz] = signal_n
        result_xyzv[..., volume] = image_xyz
    uncertainty_xyz = np.zeros_like(sigma_xyz)
    uncertainty_xyz[mask_xyz] = reconstruction.uncertainty().cpu().numpy() * sigma_n
    watch.lap("blending")

    info = {
        "device": str(device),
        "precision": precision.name,
        "model": options.model,
        "weights": sum(p.numel() for p in model.parameters()),
        **_training_summary(training),
        "seconds": watch.seconds,
        "blend": {f"{gradients.shell_bvals[s]:g}": b.scale for s, b in reconstruction.blends.items()}
        if options.blend
        else {},
        "local_pca_share": {
            f"{gradients.shell_bvals[s]:g}": share for s, share in reconstruction.shell_shares().items()
        },
        "fusion": reconstruction.fusion is not None,
        "local_pca_only_volumes": roles.pca_only,
        "passed_through_volumes": roles.passed,
        "sigma_median": float(np.median(sigma_n)),
        "warnings": warnings,
    }
    return Denoised(result_xyzv, sigma_xyz, uncertainty_xyz, training.history, info)


def _training_summary(training: Training) -> dict[str, Any]:
    losses = [row["heldout_loss"] for row in training.history]
    return {
        "steps": training.steps,
        "best_step": training.best_step,
        "stop_reason": training.stop_reason,
        "heldout_loss_start": losses[0],
        "heldout_loss_end": min(losses),
        "data_loading_share": training.loading_seconds / max(training.training_seconds, 1e-9),
    }


@dataclass(frozen=True)
class _Roles:
    """What is done with each volume: predicted blindly and blended, local PCA alone, or nothing."""

    targets: list[int]
    pca_only: list[int]
    passed: list[int]


def _roles(gradients: Gradients, options: DenoiseOptions, empty: Collection[int] = ()) -> _Roles:
    """Empty volumes stay so, for later tools to find them as they were."""
    b0, dwi = (
        [volume for volume in np.flatnonzero(kind).tolist() if volume not in empty]
        for kind in (gradients.b0, gradients.dwi)
    )
    passed = sorted(empty)
    if not options.b0_denoising:
        b0, passed = [], sorted(passed + b0)
    if len(b0) > 1:
        return _Roles(sorted(b0 + dwi), [], passed)
    # no other volume of its kind to predict a single b=0 from
    return _Roles(dwi, b0, passed) if options.blend else _Roles(dwi, [], sorted(passed + b0))


def _noise_level(
    signal_vn: NDArray[np.float32],
    mask_xyz: NDArray[np.bool_],
    given_sigma_xyz: NDArray[np.floating] | None,
    warnings: list[str],
) -> NDArray[np.float32]:
    """The noise map that was given, or an estimate; kept from zero where the data have next to no noise."""
    largest_n, smallest_n = signal_vn.max(axis=0), signal_vn.min(axis=0)
    if not (np.isfinite(largest_n).all() and np.isfinite(smallest_n).all()):
        raise BadDataError("expected finite values in the mask, found others", "repair or mask these voxels")
    if not (largest_n > 0).any():
        raise BadDataError("expected a signal in the mask, found only zeros", "check the image and the mask")
    if given_sigma_xyz is None:
        sigma_xyz = noise_of_signals(signal_vn, mask_xyz)
    else:
        sigma_xyz = check_noise_map(given_sigma_xyz, mask_xyz)
    # voxel by voxel, so that a single bright one does not speak for the others
    largest_n = np.maximum(largest_n, -smallest_n)
    typical = np.median(largest_n[largest_n > 0]) / LARGEST_SNR
    floor_xyz = np.full_like(sigma_xyz, typical)
    floor_xyz[mask_xyz] = np.maximum(largest_n / LARGEST_SNR, typical)
    if np.mean((sigma_xyz < floor_xyz)[mask_xyz][largest_n > 0]) > FEW_VOXELS:
        warnings.append(
            "hardly any noise was found: the data were denoised already, or smoothed, or simulated"
        )
    return np.maximum(sigma_xyz, floor_xyz)


def to_snr_units(
    signal_vn: NDArray[np.float32], sigma_n: NDArray[np.float32], storage: Storage | None = None
) -> Tensor:
    """(V, N) float16 data in units of the noise."""
    snr_vn = (storage or Storage()).tensor(signal_vn.shape)
    scale_n = torch.from_numpy(1.0 / sigma_n)
    for volume, signal_n in enumerate(signal_vn):
        snr_vn[volume] = torch.from_numpy(signal_n) * scale_n
    return snr_vn


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
                N_CHANNELS,
                1,
                options.base_filters,
                use_sinusoidal_encoding="encoding" not in options.leave_out,
                coordinates_per_channel=N_COORDINATES,
                leave_out=options.leave_out,
            )
        else:
            model = DenoiserNet(N_CHANNELS, 1, options.base_filters)
    if options.init != "random":
        path = _weights_path(options)
        try:
            weights = _read(path)
            own = {name: value for name, value in weights.items() if not name.startswith(tuple(ESTIMATES))}
            model.load_state_dict(own)
        except Exception as error:  # what is no weights file fails in many ways, IndexError among them
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise UsageError(
                f"{options.init}: expected weights of the {options.model} network with {options.base_filters} "
                f"base filters, found: {first}",
                "use --init random, or the --model and --base-filters they were made with",
            ) from error
    return model


def _weights_path(options: DenoiseOptions) -> str | Path:
    return shipped_weights(options) if options.init == "pretrained" else options.init


def _read(path: str | Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def load_fusion(options: DenoiseOptions, prefix: str, device: torch.device) -> nn.Module | None:
    """A network of :mod:`.fusion`, by its prefix, if one came with the weights of the options and is wanted."""
    if not options.fuses:
        return None
    weights = {
        name.removeprefix(prefix): value
        for name, value in _read(_weights_path(options)).items()
        if name.startswith(prefix)
    }
    if not weights:
        return None
    fusion = make_fusion(options.random_seed, prefix)
    fusion.load_state_dict(weights)
    return fusion.to(device, memory_format=torch.channels_last_3d).eval()  # type: ignore[call-overload]
