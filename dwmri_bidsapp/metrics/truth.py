"""Errors against a known truth.

Peak signal: everywhere in this project the ``data_range`` of PSNR and SSIM is the 99.9th percentile of the clean
diffusion-weighted signal in the mask (:func:`dwi_range`), or of the clean b=0 signal for b=0 volumes. It is a property
of the truth alone, so that all methods are measured with one ruler.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import BadDataError
from ..gradients import Gradients
from .tensor import TensorMaps, fit_tensor

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

_PERCENTILE = 99.9
_WINDOW = 7
_FA_OF_FIBRES = 0.2


def dwi_range(truth_xyzv: Array, gradients: Gradients, mask_xyz: Mask, *, b0: bool = False) -> float:
    """99.9th percentile of the clean diffusion-weighted (or b=0) signal in the mask."""
    volumes = gradients.b0 if b0 else gradients.dwi
    return float(np.percentile(truth_xyzv[mask_xyz][:, volumes], _PERCENTILE))


def psnr(estimate: Array, truth: Array, mask_xyz: Mask, data_range: float) -> float:
    """Peak signal-to-noise ratio in the mask, in dB: 10 log10(data_range² / mean squared error).

    Parameters
    ----------
    estimate, truth : (X, Y, Z) or (X, Y, Z, V)
        Volumes to compare.
    mask_xyz : (X, Y, Z) bool
        Where.
    data_range
        Peak signal; see the top of this file.

    Returns
    -------
    float
        Higher is better; infinite for equal volumes.
    """
    _check_pair(estimate, truth, mask_xyz)
    return _decibels(_squared_error(estimate[mask_xyz], truth[mask_xyz]), data_range)


def psnr_by_volume(estimate_xyzv: Array, truth_xyzv: Array, mask_xyz: Mask, data_range: float) -> Array:
    """:func:`psnr` of each volume, (V,): shows whether any volume became worse."""
    _check_pair(estimate_xyzv, truth_xyzv, mask_xyz)
    errors_v = _errors_by_volume(estimate_xyzv, truth_xyzv, mask_xyz)
    return np.array([_decibels(error, data_range) for error in errors_v], dtype=np.float32)


def ssim(estimate_xyz: Array, truth_xyz: Array, mask_xyz: Mask, data_range: float) -> float:
    """Mean structural similarity of one volume in the mask (Wang 2004, doi:10.1109/TIP.2003.819861).

    Cubes of 7 voxels, K1 = 0.01, K2 = 0.03, as scikit-image computes it with ``use_sample_covariance=False``.

    Returns
    -------
    float
        Up to 1, the higher the better.
    """
    _check_pair(estimate_xyz, truth_xyz, mask_xyz)
    box = ndimage.find_objects(ndimage.binary_dilation(mask_xyz, iterations=_WINDOW // 2).astype(np.int8))[0]
    x, y = (volume[box].astype(np.float64) for volume in (estimate_xyz, truth_xyz))

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return ndimage.uniform_filter(values, _WINDOW)

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y, cov = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2, mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * cov + c2) / (var_x + var_y + c2)
    return float((luminance * structure)[mask_xyz[box]].mean())


def fa_error(estimate: TensorMaps, truth: TensorMaps, mask_xyz: Mask) -> float:
    """Mean absolute error of FA in the mask."""
    return float(np.abs(estimate.fa_xyz - truth.fa_xyz)[mask_xyz].mean(dtype=np.float64))


def md_error(estimate: TensorMaps, truth: TensorMaps, mask_xyz: Mask) -> float:
    """Mean absolute error of MD in the mask, in mm²/s."""
    return float(np.abs(estimate.md_xyz - truth.md_xyz)[mask_xyz].mean(dtype=np.float64))


def angular_error(estimate: TensorMaps, truth: TensorMaps, mask_xyz: Mask) -> float:
    """Mean angle between the first eigenvectors, in degrees, where the true FA is above 0.2.

    Opposite vectors are the same; NaN if no voxel has such an FA.
    """
    fibres = mask_xyz & (truth.fa_xyz > _FA_OF_FIBRES)
    if not fibres.any():
        return float("nan")
    cosine_n = np.abs((estimate.v1_xyzd[fibres] * truth.v1_xyzd[fibres]).sum(axis=1, dtype=np.float64))
    return float(np.rad2deg(np.arccos(np.clip(cosine_n, 0, 1))).mean())


def errors_against_truth(
    estimate_xyzv: Array,
    truth_xyzv: Array,
    gradients: Gradients,
    mask_xyz: Mask,
    *,
    tensor_truth: TensorMaps | None = None,
) -> dict[str, float]:
    """Measure an estimate of a run against the truth, in the mask.

    Parameters
    ----------
    estimate_xyzv, truth_xyzv : (X, Y, Z, V) float32
        Noisy or denoised data, and the clean signal.
    gradients
        Protocol; V volumes.
    mask_xyz : (X, Y, Z) bool
        Brain.
    tensor_truth
        Fit of the truth, to save time when several estimates are measured.

    Returns
    -------
    dict of str to float
        ``psnr_dwi`` (all diffusion-weighted volumes together), ``psnr_dwi_worst_volume``, ``ssim_dwi``
        (their mean), ``psnr_b0``, ``psnr_b1000`` ... for each shell, ``bias_b0``, ``bias_b1000`` ... (mean error / mean
        truth), and, where a tensor can be fitted, ``fa_error``, ``md_error`` (mm²/s) and
        ``angular_error`` (degrees).

    Raises
    ------
    BadDataError
        Arrays that do not fit each other.
    """
    _check_pair(estimate_xyzv, truth_xyzv, mask_xyz)
    found: dict[str, float] = {}
    squared_v = _errors_by_volume(estimate_xyzv, truth_xyzv, mask_xyz)
    if gradients.dwi.any():
        peak = dwi_range(truth_xyzv, gradients, mask_xyz)
        found["psnr_dwi"] = _decibels(float(squared_v[gradients.dwi].mean()), peak)
        found["psnr_dwi_worst_volume"] = _decibels(float(squared_v[gradients.dwi].max()), peak)
        volumes = np.flatnonzero(gradients.dwi)
        similarity = [ssim(estimate_xyzv[..., v], truth_xyzv[..., v], mask_xyz, peak) for v in volumes]
        found["ssim_dwi"] = float(np.mean(similarity))
    for shell in np.unique(gradients.shell):
        in_shell = gradients.shell == shell
        name = gradients.shell_name(shell)
        peak = dwi_range(truth_xyzv, gradients, mask_xyz, b0=shell == 0)
        found[f"psnr_{name}"] = _decibels(float(squared_v[in_shell].mean()), peak)
        found[f"bias_{name}"] = _relative_bias(estimate_xyzv, truth_xyzv, mask_xyz, in_shell)
    return found | _tensor_errors(estimate_xyzv, truth_xyzv, gradients, mask_xyz, tensor_truth)


def _tensor_errors(
    estimate_xyzv: Array,
    truth_xyzv: Array,
    gradients: Gradients,
    mask_xyz: Mask,
    tensor_truth: TensorMaps | None,
) -> dict[str, float]:
    """Errors of the tensor's maps; empty where the protocol has no tensor."""
    try:
        tensor_truth = tensor_truth or fit_tensor(truth_xyzv, gradients, mask_xyz)
        tensor = fit_tensor(estimate_xyzv, gradients, mask_xyz)
    except BadDataError:
        return {}
    return {
        "fa_error": fa_error(tensor, tensor_truth, mask_xyz),
        "md_error": md_error(tensor, tensor_truth, mask_xyz),
        "angular_error": angular_error(tensor, tensor_truth, mask_xyz),
    }


def _relative_bias(estimate_xyzv: Array, truth_xyzv: Array, mask_xyz: Mask, volumes: Mask) -> float:
    true_mean = truth_xyzv[mask_xyz][:, volumes].mean(dtype=np.float64)
    return float(estimate_xyzv[mask_xyz][:, volumes].mean(dtype=np.float64) / true_mean - 1)


def _errors_by_volume(estimate_xyzv: Array, truth_xyzv: Array, mask_xyz: Mask) -> NDArray[np.float64]:
    """Mean squared error of each volume, (V,)."""
    n_volumes = truth_xyzv.shape[3]
    return np.array(
        [
            _squared_error(estimate_xyzv[..., v][mask_xyz], truth_xyzv[..., v][mask_xyz])
            for v in range(n_volumes)
        ]
    )


def _squared_error(estimate: Array, truth: Array) -> float:
    return float(((estimate - truth) ** 2).mean(dtype=np.float64))


def _decibels(squared_error: float, data_range: float) -> float:
    return float("inf") if squared_error == 0 else float(10 * np.log10(data_range**2 / squared_error))


def _check_pair(estimate: Array, truth: Array, mask_xyz: Mask) -> None:
    if estimate.shape != truth.shape or truth.shape[:3] != mask_xyz.shape:
        raise BadDataError(
            f"expected an estimate, a truth and a mask of one grid, "
            f"found {estimate.shape}, {truth.shape} and {mask_xyz.shape}"
        )
    if not mask_xyz.any():
        raise BadDataError("expected a mask with voxels, found an empty one")
