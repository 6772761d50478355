"""Judging a denoised run without a truth.

No number here proves anything alone: an untouched run has a perfect edge width, a blurred one a perfect
neighbouring correlation. Each docstring says what a good value is. Manzano-Patron 2024
(doi:10.1162/imag_a_00060) argues for judging on accuracy and precision together.

Axis letters: ``_xyzv`` is (X, Y, Z, V), N voxels of the mask.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import BadDataError
from ..gradients import Gradients, nearest_in_shell
from ..outlying import outlying_volumes
from .tensor import TensorMaps, dti_kfold_error, fit_tensor

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

_MOST_SHELLS = 8  # a Cartesian grid in q-space has dozens: a table of them would help nobody
_STRONGEST_EDGES = 0.05
_PROFILE_VOXELS = 3


def residual_statistics(
    noisy_xyzv: Array, denoised_xyzv: Array, sigma_xyz: Array, mask_xyz: Mask, gradients: Gradients
) -> dict[str, float]:
    """Describe what was taken away, (noisy - denoised) / sigma, in the diffusion-weighted volumes.

    Returns
    -------
    dict of str to float
        ``residual_std``: good is 0.95 to 1.02 (Rician data below an SNR of 2 are narrower than sigma, down to
        0.66); less means noise was left, more means signal was taken.
        ``residual_mean``: 0 unless a bias was corrected.
        ``residual_autocorrelation_x`` (``_y``, ``_z``): correlation of neighbouring voxels. Good is that of the
        noise: 0 without interpolation or k-space filling (up to 0.05 where the Rician floor is left in the
        residual).
        ``residual_edge_correlation``: of the residual's magnitude with the gradient magnitude of the
        mean denoised signal of the shell. Good is below 0.02: no anatomy was taken.
        ``residual_std_b0``: as ``residual_std``, for the b=0 volumes, where it is 0 if they were passed through;
        ``residual_std_b1000`` ...: for each shell, if there are 2 to 8.
    """
    sums: dict[str, list[float]] = {}
    by_shell = 1 < len(np.unique(gradients.shell[gradients.dwi])) <= _MOST_SHELLS
    edges = _shell_edges(denoised_xyzv, gradients)
    for volume in range(gradients.n_volumes):
        residual_xyz = (noisy_xyzv[..., volume] - denoised_xyzv[..., volume]) / sigma_xyz
        inside_n = residual_xyz[mask_xyz].astype(np.float64)
        if gradients.b0[volume]:
            sums.setdefault("residual_std_b0", []).append(float(inside_n.var()))
            continue
        sums.setdefault("residual_std", []).append(float(inside_n.var()))
        if by_shell:
            name = f"residual_std_{gradients.shell_name(gradients.shell[volume])}"
            sums.setdefault(name, []).append(float(inside_n.var()))
        sums.setdefault("residual_mean", []).append(float(inside_n.mean()))
        for axis, name in enumerate("xyz"):
            correlation = _lag_one_correlation(residual_xyz, mask_xyz, axis)
            sums.setdefault(f"residual_autocorrelation_{name}", []).append(correlation)
        edge_n = edges[int(gradients.shell[volume])][mask_xyz]
        sums.setdefault("residual_edge_correlation", []).append(_correlation(np.abs(inside_n), edge_n))
    means = {name: float(np.mean(values)) for name, values in sums.items()}
    return {name: float(np.sqrt(m)) if name.startswith("residual_std") else m for name, m in means.items()}


def shell_means(dwi_xyzv: Array, mask_xyz: Mask, gradients: Gradients) -> dict[str, float]:
    """Mean signal of each shell in the mask, by names such as ``b0`` and ``b1000``.

    Good: within 1% of the noisy run's, or lower by about the noise floor if the Rician bias was corrected.
    """
    means_v = [float(dwi_xyzv[..., v][mask_xyz].mean(dtype=np.float64)) for v in range(gradients.n_volumes)]
    return {
        gradients.shell_name(shell): float(np.mean(np.array(means_v)[gradients.shell == shell]))
        for shell in np.unique(gradients.shell)
    }


def repeat_spread(dwi_xyzv: Array, mask_xyz: Mask, gradients: Gradients) -> float:
    """Standard deviation over repeated b=0 volumes / their mean, the median over the mask.

    Good: smaller than before. It falls to zero for any method that makes the b=0 volumes equal.
    NaN with fewer than two b=0 volumes.
    """
    if gradients.b0.sum() < 2:
        return float("nan")
    repeats_nv = dwi_xyzv[mask_xyz][:, gradients.b0].astype(np.float64)
    mean_n = repeats_nv.mean(axis=1)
    visible = mean_n > 0
    return float(np.median(repeats_nv.std(axis=1, ddof=1)[visible] / mean_n[visible]))


def neighbouring_dwi_correlation(dwi_xyzv: Array, mask_xyz: Mask, gradients: Gradients) -> dict[str, float]:
    """Mean correlation of each diffusion-weighted volume with the nearest one of its shell (Yeh 2019).

    doi:10.1016/j.neuroimage.2019.116131. Good: higher than before, below 1; blurring also raises it.

    Returns
    -------
    dict of str to float
        ``neighbouring_dwi_correlation``, and the same with ``_b1000`` ... for each shell of at least two volumes,
        if there are 2 to 8 shells. Empty with fewer than two volumes.
    """
    if gradients.dwi.sum() < 2:
        return {}
    name = "neighbouring_dwi_correlation"
    nearest = nearest_in_shell(gradients, 1)[:, 0]
    value_v = np.full(gradients.n_volumes, np.nan)
    for v in np.flatnonzero(gradients.dwi):
        value_v[v] = _correlation(dwi_xyzv[..., v][mask_xyz], dwi_xyzv[..., nearest[v]][mask_xyz])
    found = {name: float(np.mean(value_v[gradients.dwi]))}
    shells, sizes = np.unique(gradients.shell[gradients.dwi], return_counts=True)
    if 1 < len(shells) <= _MOST_SHELLS:
        for shell in shells[sizes > 1]:
            key = f"{name}_{gradients.shell_name(shell)}"
            found[key] = float(np.mean(value_v[gradients.shell == shell]))
    return found


def edge_width(volume_xyz: Array, guide_xyz: Array, mask_xyz: Mask) -> float:
    """10-90% width, in voxels, of the mean profile across the strongest edges.

    The profile is linear in the volume, and the edges are found in the guide, so that noise
    averages out and two volumes measured with one guide can be compared, if the guide's noise is not theirs.
    Good: at most 5% wider than before denoising.

    Parameters
    ----------
    volume_xyz : (X, Y, Z)
        What is measured.
    guide_xyz : (X, Y, Z)
        Where the edges are, and which way they face: the mean of the noisy shell.
    mask_xyz : (X, Y, Z) bool
        Brain.

    Returns
    -------
    float
        NaN where the mask has no edges.
    """
    slopes = _slopes(ndimage.gaussian_filter(guide_xyz.astype(np.float32), 0.7))
    magnitude_xyz = np.linalg.norm(slopes, axis=0)
    inner_xyz = ndimage.binary_erosion(mask_xyz, iterations=_PROFILE_VOXELS)
    if not inner_xyz.any() or magnitude_xyz[inner_xyz].max() == 0:
        return float("nan")
    strong_xyz = inner_xyz & (magnitude_xyz >= np.quantile(magnitude_xyz[inner_xyz], 1 - _STRONGEST_EDGES))
    at_3n = np.argwhere(strong_xyz).T
    normal_3n = slopes[:, *at_3n] / magnitude_xyz[tuple(at_3n)]
    steepest_3n = _steepest_points(magnitude_xyz, at_3n, normal_3n)
    steps = np.linspace(-_PROFILE_VOXELS, _PROFILE_VOXELS, 8 * _PROFILE_VOXELS + 1)
    profile = np.array([_mean_at(volume_xyz, steepest_3n + step * normal_3n) for step in steps])
    rising = np.maximum.accumulate((profile - profile[0]) / (profile[-1] - profile[0]))
    low, high = np.interp([0.1, 0.9], rising, steps)
    return float(high - low)


def _steepest_points(
    magnitude_xyz: Array, at_3n: NDArray[np.int64], normal_3n: Array
) -> NDArray[np.floating]:
    """Move points along their normals to where the edge is steepest, by at most half a voxel.

    Without it the profiles are averaged out of step, and every edge looks wider than it is.
    """
    before, here, after = (
        ndimage.map_coordinates(magnitude_xyz, at_3n + step * normal_3n, order=1, mode="nearest")
        for step in (-1, 0, 1)
    )
    curvature = before - 2 * here + after
    shift = np.divide(before - after, 2 * curvature, out=np.zeros_like(here), where=curvature < 0)
    return at_3n + np.clip(shift, -0.5, 0.5) * normal_3n


def _mean_at(volume_xyz: Array, points_3n: NDArray[np.floating]) -> float:
    return float(ndimage.map_coordinates(volume_xyz, points_3n, order=1, mode="nearest").mean())


def edge_slope(noisy_xyzv: Array, denoised_xyzv: Array, mask_xyz: Mask, gradients: Gradients) -> float:
    """Slope of the noisy volumes' spatial gradients against the denoised ones'.

    Volumes are taken as differences from their shell's mean, so it looks at what distinguishes directions, the
    first thing to be blurred. Where the denoised volume does not hold its own noise, the expected slope is 1
    for unblurred edges and above 1 for edges made too weak; own noise left in the result pulls the value
    of an untouched run to exactly 1. Good: 0.9 (the Rician floor flattens noisy edges) to 1.05.
    """
    product = square = 0.0
    inner_xyz = ndimage.binary_erosion(mask_xyz)
    for shell in np.unique(gradients.shell[gradients.dwi]):
        volumes = np.flatnonzero(gradients.shell == shell)
        if len(volumes) < 2:
            continue
        mean_noisy, mean_denoised = (_mean_volume(data, volumes) for data in (noisy_xyzv, denoised_xyzv))
        for volume in volumes:
            noisy = _slopes(noisy_xyzv[..., volume] - mean_noisy)
            denoised = _slopes(denoised_xyzv[..., volume] - mean_denoised)
            for n_xyz, d_xyz in zip(noisy, denoised, strict=True):
                product += float((n_xyz[inner_xyz] * d_xyz[inner_xyz]).sum(dtype=np.float64))
                square += float((d_xyz[inner_xyz] ** 2).sum(dtype=np.float64))
    return product / square if square > 0 else float("nan")


def no_reference_metrics(
    noisy_xyzv: Array,
    denoised_xyzv: Array,
    sigma_xyz: Array,
    mask_xyz: Mask,
    gradients: Gradients,
    *,
    tensors: tuple[TensorMaps, TensorMaps] | None = None,
) -> dict[str, float]:
    """Compute all measures of this file, and DTI's, as flat names and numbers.

    Names ending in ``_before`` and ``_after`` are of the noisy and the denoised run. What cannot be computed for
    a protocol (a spread of a single b=0 volume) is left out, so every value is finite.

    Parameters
    ----------
    noisy_xyzv, denoised_xyzv : (X, Y, Z, V) float32
        The run before and after.
    sigma_xyz : (X, Y, Z) float32
        Noise level of the run before; above 0 in the mask.
    mask_xyz : (X, Y, Z) bool
        Brain.
    gradients
        Protocol; V volumes.
    tensors
        Those of the run before and after, where they are known; else they are fitted.

    Returns
    -------
    dict of str to float
        Besides the names of :func:`residual_statistics`: ``sigma_mean``, ``outlier_volumes`` (how many), ``b0_snr``
        (mean noisy b=0 signal / mean sigma, in the mask), ``mean_signal_b1000_before`` ..., ``b0_repeat_spread_``,
        ``neighbouring_dwi_correlation_``, ``edge_width_`` (voxels), ``dti_kfold_error_`` (sigma), ``fa_mean_`` and
        ``md_mean_`` (mm²/s), each before and after, and ``edge_slope``.

    Raises
    ------
    BadDataError
        Arrays that do not fit each other, or a sigma of zero in the mask.
    """
    _check(noisy_xyzv, denoised_xyzv, sigma_xyz, mask_xyz, gradients)
    safe_sigma_xyz = np.where(mask_xyz, sigma_xyz, 1).astype(np.float32)
    found = residual_statistics(noisy_xyzv, denoised_xyzv, safe_sigma_xyz, mask_xyz, gradients)
    found["sigma_mean"] = float(sigma_xyz[mask_xyz].mean(dtype=np.float64))
    found["edge_slope"] = edge_slope(noisy_xyzv, denoised_xyzv, mask_xyz, gradients)
    for when, data_xyzv, tensor in zip(
        ("before", "after"), (noisy_xyzv, denoised_xyzv), tensors or (None, None), strict=True
    ):
        means = shell_means(data_xyzv, mask_xyz, gradients)
        values = {f"mean_signal_{name}": mean for name, mean in means.items()}
        values["b0_repeat_spread"] = repeat_spread(data_xyzv, mask_xyz, gradients)
        values |= neighbouring_dwi_correlation(data_xyzv, mask_xyz, gradients)
        values["edge_width"] = _largest_shell_edge_width(data_xyzv, noisy_xyzv, mask_xyz, gradients)
        values |= _tensor_measures(data_xyzv, noisy_xyzv, safe_sigma_xyz, mask_xyz, gradients, tensor)
        found |= {f"{name}_{when}": value for name, value in values.items()}
    found["outlier_volumes"] = _count_outliers(noisy_xyzv, denoised_xyzv, safe_sigma_xyz, mask_xyz, gradients)
    if "mean_signal_b0_before" in found:
        found["b0_snr"] = found["mean_signal_b0_before"] / found["sigma_mean"]
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _count_outliers(
    noisy_xyzv: Array, denoised_xyzv: Array, sigma_xyz: Array, mask_xyz: Mask, gradients: Gradients
) -> float:
    """Count the volumes that stand out of their shell: mean signal, spread of the residual, neighbours."""
    values_3v = np.empty((3, gradients.n_volumes))
    nearest = nearest_in_shell(gradients, 2)
    for v in range(gradients.n_volumes):
        noisy_n, denoised_n = noisy_xyzv[..., v][mask_xyz], denoised_xyzv[..., v][mask_xyz]
        # The better of two: a good volume may have a bad neighbour.
        alike = max(_correlation(noisy_n, noisy_xyzv[..., other][mask_xyz]) for other in nearest[v])
        values_3v[:, v] = noisy_n.mean(), ((noisy_n - denoised_n) / sigma_xyz[mask_xyz]).std(), alike
    return float(outlying_volumes(values_3v, gradients.shell).sum())


def _tensor_measures(
    data_xyzv: Array,
    noisy_xyzv: Array,
    sigma_xyz: Array,
    mask_xyz: Mask,
    gradients: Gradients,
    tensor: TensorMaps | None,
) -> dict[str, float]:
    """Mean FA and MD, and the error on held-out raw volumes; empty where no tensor can be fitted."""
    measures = {}
    try:
        tensor = tensor or fit_tensor(data_xyzv, gradients, mask_xyz)
        measures["fa_mean"] = float(tensor.fa_xyz[mask_xyz].mean(dtype=np.float64))
        measures["md_mean"] = float(tensor.md_xyz[mask_xyz].mean(dtype=np.float64))
        measures["dti_kfold_error"] = dti_kfold_error(
            noisy_xyzv, gradients, mask_xyz, sigma_xyz, fitted_xyzv=data_xyzv
        )
    except BadDataError:
        # Too few directions for a tensor, or for one that leaves some out.
        return measures
    return measures


def _largest_shell_edge_width(
    data_xyzv: Array, guide_xyzv: Array, mask_xyz: Mask, gradients: Gradients
) -> float:
    """Edge width in half of the largest diffusion-weighted shell, with edges found in the other half.

    Two halves, because noise that makes an edge steep in the guide must not be measured as its sharpness.
    """
    if not gradients.dwi.any():
        return float("nan")
    shell = int(np.argmax(np.bincount(gradients.shell[gradients.dwi])))
    volumes = np.flatnonzero(gradients.shell == shell)
    if len(volumes) < 2:
        return float("nan")
    guide_xyz = _mean_volume(guide_xyzv, volumes[1::2])
    return edge_width(_mean_volume(data_xyzv, volumes[::2]), guide_xyz, mask_xyz)


def _shell_edges(dwi_xyzv: Array, gradients: Gradients) -> dict[int, Array]:
    """Gradient magnitude of the mean volume of each diffusion-weighted shell."""
    edges = {}
    for shell in np.unique(gradients.shell[gradients.dwi]):
        mean_xyz = _mean_volume(dwi_xyzv, np.flatnonzero(gradients.shell == shell))
        edges[int(shell)] = np.linalg.norm(_slopes(mean_xyz), axis=0)
    return edges


def _slopes(volume_xyz: Array) -> Array:
    """Gradient (3, X, Y, Z) per voxel; zero along an axis of a single voxel."""
    slopes = np.zeros((3, *volume_xyz.shape), dtype=volume_xyz.dtype)
    for axis, n in enumerate(volume_xyz.shape):
        if n > 1:
            slopes[axis] = np.gradient(volume_xyz, axis=axis)
    return slopes


def _mean_volume(dwi_xyzv: Array, volumes: NDArray[np.int64]) -> Array:
    """Mean of some volumes, without a copy of them."""
    total_xyz = np.zeros(dwi_xyzv.shape[:3], dtype=np.float32)
    for volume in volumes:
        total_xyz += dwi_xyzv[..., volume]
    return total_xyz / np.float32(len(volumes))


def _lag_one_correlation(values_xyz: Array, mask_xyz: Mask, axis: int) -> float:
    """Correlation of voxels of the mask with their next neighbours along an axis."""
    first = [slice(None)] * 3
    second = [slice(None)] * 3
    first[axis], second[axis] = slice(None, -1), slice(1, None)
    both = mask_xyz[tuple(first)] & mask_xyz[tuple(second)]
    return _correlation(values_xyz[tuple(first)][both], values_xyz[tuple(second)][both])


def _correlation(a_n: NDArray[np.floating], b_n: NDArray[np.floating]) -> float:
    """Pearson's correlation; 0 where one of the two does not vary."""
    if a_n.size < 2:
        return 0.0
    a_n, b_n = a_n - a_n.mean(dtype=np.float64), b_n - b_n.mean(dtype=np.float64)
    norm = np.sqrt((a_n**2).sum(dtype=np.float64) * (b_n**2).sum(dtype=np.float64))
    return float((a_n * b_n).sum(dtype=np.float64) / norm) if norm > 0 else 0.0


def _check(
    noisy_xyzv: Array, denoised_xyzv: Array, sigma_xyz: Array, mask_xyz: Mask, gradients: Gradients
) -> None:
    shapes = (noisy_xyzv.shape, denoised_xyzv.shape, sigma_xyz.shape, mask_xyz.shape)
    grid = mask_xyz.shape
    if noisy_xyzv.shape != (*grid, gradients.n_volumes) or shapes[0] != shapes[1] or sigma_xyz.shape != grid:
        raise BadDataError(
            f"expected runs of {gradients.n_volumes} volumes, noise map and mask of one grid, found {shapes}"
        )
    if not mask_xyz.any() or not (sigma_xyz[mask_xyz] > 0).all():
        raise BadDataError("expected a mask with voxels and a noise level above 0 in all of them")
