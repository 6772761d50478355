"""Diffusion tensors with DIPY.

Axis letters: N voxels of the mask, V volumes; ``dwi_xyzv`` is (X, Y, Z, V).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from dipy.core.gradients import GradientTable, gradient_table
from dipy.reconst.dti import TensorModel, design_matrix
from numpy.typing import NDArray

from ..errors import BadDataError
from ..gradients import MIN_DIRECTIONS, Gradients, count_directions

Array = NDArray[np.float32]

_TENSOR_B_LIMIT = 1550.0
_SIGNAL_FLOOR = 1e-3
_CHUNK = 20_000


@dataclass(frozen=True, eq=False)
class TensorMaps:
    """Maps of a tensor fit, zero outside the mask.

    Attributes
    ----------
    fa_xyz : (X, Y, Z) float32
        Fractional anisotropy, 0 to 1.
    md_xyz : (X, Y, Z) float32
        Mean diffusivity in mm²/s.
    v1_xyzd : (X, Y, Z, 3) float32
        Unit vector of the fastest diffusion, in the frame of the b-vectors.
    mask_xyz : (X, Y, Z) bool
        Where the fit was made.
    """

    fa_xyz: Array
    md_xyz: Array
    v1_xyzd: Array
    mask_xyz: NDArray[np.bool_]


def tensor_volumes(gradients: Gradients) -> NDArray[np.bool_]:
    """Choose the volumes a tensor is fitted to, (V,).

    b=0 and the shells up to about 1500 s/mm², above which one tensor no longer describes the signal; all
    volumes where those shells have fewer than six directions.
    """
    low = gradients.b0 | (gradients.shell_bvals[gradients.shell] <= _TENSOR_B_LIMIT)
    if count_directions(gradients.select(low)) >= MIN_DIRECTIONS:
        return low
    return np.ones(gradients.n_volumes, dtype=bool)


def fit_tensor(
    dwi_xyzv: Array,
    gradients: Gradients,
    mask_xyz: NDArray[np.bool_],
    *,
    method: Literal["OLS", "WLS"] = "WLS",
) -> TensorMaps:
    """Fit a diffusion tensor to each voxel of the mask, with :func:`tensor_volumes` of the run.

    Signals below a thousandth of the mean b=0 signal (denoised data may be negative) are raised to it for
    the logarithm.

    Parameters
    ----------
    dwi_xyzv : (X, Y, Z, V) float32
        Signal.
    gradients
        Protocol; V volumes.
    mask_xyz : (X, Y, Z) bool
        Where to fit.
    method
        Weighted or ordinary least squares of the logarithm (ordinary is ten times faster).

    Raises
    ------
    BadDataError
        Fewer than six directions, no b=0 volume, or an empty mask.
    """
    _check_fit(gradients, mask_xyz)
    volumes = tensor_volumes(gradients)
    signal_nv = dwi_xyzv[mask_xyz][:, volumes]
    floor = signal_floor(signal_nv, gradients.b0[volumes])
    model = TensorModel(dipy_table(gradients.select(volumes)), fit_method=method, min_signal=floor)
    fit = model.fit(signal_nv)
    fa_xyz, md_xyz = (np.zeros(mask_xyz.shape, dtype=np.float32) for _ in range(2))
    v1_xyzd = np.zeros((*mask_xyz.shape, 3), dtype=np.float32)
    fa_xyz[mask_xyz] = fit.fa
    md_xyz[mask_xyz] = fit.md
    v1_xyzd[mask_xyz] = fit.evecs[..., 0]
    return TensorMaps(fa_xyz, md_xyz, v1_xyzd, mask_xyz)


def dti_kfold_error(
    raw_xyzv: Array,
    gradients: Gradients,
    mask_xyz: NDArray[np.bool_],
    sigma_xyz: Array,
    *,
    fitted_xyzv: Array | None = None,
    n_folds: int = 5,
) -> float:
    """Predict held-out raw volumes by tensors that were fitted (OLS) to the other volumes.

    Folds cut the diffusion-weighted volumes; b=0 volumes always stay in. The floor is about 1 where the tensor
    describes the signal (lower for Rician data at low SNR, higher at high b). Good: less when fitted
    to denoised volumes than to raw ones, whose noise the fit adds.

    Notes
    -----
    The denoiser has seen the held-out volumes, so a denoiser that is not blind can get a little below its
    honest value. This ranks nothing on its own: look at the residuals too.

    Parameters
    ----------
    raw_xyzv : (X, Y, Z, V) float32
        Acquired data: what is to be predicted.
    gradients, mask_xyz
        Protocol and brain.
    sigma_xyz : (X, Y, Z) float32
        Noise level of the raw data.
    fitted_xyzv : (X, Y, Z, V) float32
        Data that the tensors are fitted to (None: the raw data).
    n_folds
        Number of parts (at most the number of diffusion-weighted volumes).

    Returns
    -------
    float
        Root mean square of (raw - predicted) / sigma in the mask.

    Raises
    ------
    BadDataError
        Too few directions remain in a fold for a tensor, no b=0 volume, or an empty mask.
    """
    _check_fit(gradients, mask_xyz)
    volumes = tensor_volumes(gradients)
    used = gradients.select(volumes)
    floor = signal_floor(raw_xyzv[mask_xyz][:, volumes], used.b0)
    dwi = np.flatnonzero(used.dwi)
    folds = [dwi[k::n_folds] for k in range(min(n_folds, len(dwi)))]
    predictors = [_held_out_predictor(used, held) for held in folds]
    total = 0.0
    for voxels in _chunks(mask_xyz):
        raw_nv = raw_xyzv[voxels][:, volumes]
        fitted_nv = raw_nv if fitted_xyzv is None else fitted_xyzv[voxels][:, volumes]
        log_nv = np.log(np.maximum(fitted_nv, floor))
        for held, predictor_vv in zip(folds, predictors, strict=True):
            error_nv = (raw_nv[:, held] - np.exp(log_nv @ predictor_vv)) / sigma_xyz[voxels][:, None]
            total += float((error_nv**2).sum(dtype=np.float64))
    return float(np.sqrt(total / (len(dwi) * mask_xyz.sum())))


def _held_out_predictor(gradients: Gradients, held: NDArray[np.int64]) -> Array:
    """Matrix (V, held) from log signals to those of the held-out volumes, whose own rows are zero."""
    kept = np.setdiff1d(np.arange(gradients.n_volumes), held)
    if count_directions(gradients.select(kept)) < MIN_DIRECTIONS:
        raise BadDataError(f"expected {MIN_DIRECTIONS} directions beside each fold, found fewer")
    design_vp = design_matrix(dipy_table(gradients))
    predictor_vv = np.zeros((gradients.n_volumes, len(held)), dtype=np.float32)
    predictor_vv[kept] = (design_vp[held] @ np.linalg.pinv(design_vp[kept])).T
    return predictor_vv


def _chunks(mask_xyz: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.int64], ...]]:
    """Yield indices of the mask's voxels, some ten thousand at a time, to bound the memory."""
    indices = np.nonzero(mask_xyz)
    for start in range(0, len(indices[0]), _CHUNK):
        yield tuple(index[start : start + _CHUNK] for index in indices)


def _check_fit(gradients: Gradients, mask_xyz: NDArray[np.bool_]) -> None:
    n_directions = count_directions(gradients)
    if n_directions < MIN_DIRECTIONS or not gradients.b0.any():
        raise BadDataError(
            f"expected {MIN_DIRECTIONS} directions and a b=0 volume for a tensor, "
            f"found {n_directions} and {int(gradients.b0.sum())}"
        )
    if not mask_xyz.any():
        raise BadDataError("expected a mask with voxels, found an empty one")


def signal_floor(signal_nv: Array, b0_v: NDArray[np.bool_]) -> float:
    """Smallest signal that a logarithm is taken of."""
    return max(_SIGNAL_FLOOR * float(signal_nv[:, b0_v].mean()), float(np.finfo(np.float32).tiny))


def dipy_table(gradients: Gradients) -> GradientTable:
    return gradient_table(
        gradients.bvals, bvecs=gradients.bvecs, b0_threshold=gradients.bvals[gradients.b0].max()
    )
