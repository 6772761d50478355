"""The noise level of a run, and what the Rician distribution does to magnitudes.

Axes: ``x y z`` space, ``v`` volume, ``w`` window.

References
----------
Gavish & Donoho 2014, The optimal hard threshold for singular values is 4/sqrt(3), doi:10.1109/TIT.2014.2323359
(noise level from the median eigenvalue); Koay & Basser 2006, Analytically exact correction scheme for signal
extraction from noisy magnitude MR signals, doi:10.1016/j.jmr.2006.01.016.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import integrate, ndimage, optimize, special

from ..errors import BadDataError

Floats = NDArray[np.floating]

# signal-to-noise ratio above which the Rician correction factor is 1 to four digits
HIGH_SNR = 30.0


def estimate_noise_level(dwi_xyzv: Floats, mask_xyz: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Noise standard deviation of each voxel, from the small eigenvalues of windows over the brain.

    In every window the covariance over volumes has a few eigenvalues of signal and a bulk of noise; the bulk's mean
    is the noise variance once the signal's share of the noise is accounted for. The spread of magnitudes at low
    signal is smaller than the noise of the two channels; Koay's factor corrects it.

    Parameters
    ----------
    dwi_xyzv
        (X, Y, Z, V) magnitudes.
    mask_xyz
        (X, Y, Z) the brain.

    Returns
    -------
    NDArray
        (X, Y, Z) float32 standard deviation of one (real or imaginary) channel, in signal units, positive everywhere.
    """
    n_volumes = dwi_xyzv.shape[3]
    edge = _window_edge(n_volumes)
    centres_w3, spread_w, moment_wv = _window_spread(dwi_xyzv, mask_xyz, edge)
    sigma_w = rician_sigma(spread_w, moment_wv)
    return _spread_to_voxels(centres_w3, sigma_w, mask_xyz, smoothing=edge)


def _window_edge(n_volumes: int) -> int:
    """Edge of a cube with some four times as many voxels as volumes, odd, from 7 to 13."""
    edge = int(np.ceil((4.0 * n_volumes) ** (1 / 3)))
    return int(np.clip(edge + (edge + 1) % 2, 7, 13))


def _window_spread(dwi_xyzv: Floats, mask_xyz: NDArray[np.bool_], edge: int) -> tuple[Floats, Floats, Floats]:
    """Centre, noise spread and mean square per volume of every window that lies well inside the mask."""
    step = max(2, edge // 2)
    n_volumes = dwi_xyzv.shape[3]
    enough = max(2 * n_volumes, edge**3 // 3)
    centres, spreads, moments = [], [], []
    for corner in np.ndindex(*(max(1, -(-(n - edge // 2) // step)) for n in mask_xyz.shape)):
        window = tuple(slice(c * step, c * step + edge) for c in corner)
        inside = mask_xyz[window]
        if np.count_nonzero(inside) < min(enough, np.count_nonzero(mask_xyz)):
            continue
        samples_sv = np.asarray(dwi_xyzv[window][inside], dtype=np.float64)
        centres.append([s.start + edge / 2 - 0.5 for s in window])
        spreads.append(np.sqrt(noise_variance(samples_sv)))
        moments.append((samples_sv**2).mean(axis=0))
    if not centres:
        samples_sv = np.asarray(dwi_xyzv[mask_xyz], dtype=np.float64)
        centres.append([n / 2 - 0.5 for n in mask_xyz.shape])
        spreads.append(np.sqrt(noise_variance(samples_sv)))
        moments.append((samples_sv**2).mean(axis=0))
    return np.array(centres), np.array(spreads), np.array(moments)


def noise_variance(samples_sv: Floats) -> float:
    """Variance of white noise in samples of a low-rank signal.

    Parameters
    ----------
    samples_sv
        (S, V) samples by variables.

    Returns
    -------
    float
        Noise variance, in squared units of the samples.
    """
    n_samples, n_variables = samples_sv.shape
    centred = samples_sv - samples_sv.mean(axis=0)
    n_samples -= 1
    gram = centred.T @ centred if n_variables <= n_samples else centred @ centred.T
    values = np.maximum(np.linalg.eigvalsh(gram) / max(1, n_samples), 0.0)
    ratio = n_variables / max(1, n_samples)
    if ratio > 1.0:
        return float(np.median(values) / (ratio * _marchenko_pastur_median(1.0 / ratio)))
    variance = float(np.median(values)) / _marchenko_pastur_median(ratio)
    for _ in range(10):
        rank = int(np.count_nonzero(values > variance * (1 + np.sqrt(ratio)) ** 2))
        rank = min(rank, n_variables // 2)
        noise = values[: n_variables - rank]
        # signal directions take up rank/n of the noise of the others
        variance = float(noise.mean() / (1.0 - rank / n_samples))
    return variance


@lru_cache(maxsize=256)
def _marchenko_pastur_median(ratio: float) -> float:
    """Median of the Marchenko-Pastur law with unit variance, ratio in (0, 1]."""
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2

    def density(x: float) -> float:
        return float(np.sqrt(max((high - x) * (x - low), 0.0)) / (2 * np.pi * ratio * x))

    def excess(x: float) -> float:
        return integrate.quad(density, low, x)[0] - 0.5

    return float(optimize.brentq(excess, low + 1e-9, high - 1e-9))


def rician_variance_factor(snr: Floats) -> Floats:
    """Variance of a Rician magnitude in units of the channel's noise variance.

    Parameters
    ----------
    snr
        True signal over the channel's standard deviation, any shape.

    Returns
    -------
    NDArray
        Between 2 - pi/2 (no signal) and 1 (eq. 18 of Koay & Basser 2006).
    """
    theta = np.minimum(np.abs(snr), HIGH_SNR)
    return 2.0 + theta**2 - rician_mean(theta) ** 2


def rician_mean(snr: Floats) -> Floats:
    """Mean of a Rician magnitude, for a signal given in units of the channel's standard deviation."""
    theta = np.asarray(snr, dtype=np.float64)
    quarter = theta**2 / 4.0
    # i0e and i1e carry exp(-quarter) themselves
    bessel = (1.0 + 2.0 * quarter) * special.i0e(quarter) + 2.0 * quarter * special.i1e(quarter)
    return np.sqrt(np.pi / 2.0) * bessel


def rician_sigma(spread_w: Floats, mean_square_wv: Floats) -> Floats:
    """Channel noise from the spread of magnitudes and their mean squares (fixed point of Koay & Basser).

    Parameters
    ----------
    spread_w
        (W,) standard deviation of the noise of the magnitudes, averaged over volumes.
    mean_square_wv
        (W, V) mean of the squared magnitudes.

    Returns
    -------
    NDArray
        (W,) standard deviation of the noise of one channel.
    """
    sigma = np.array(spread_w, dtype=np.float64)
    for _ in range(20):
        square = np.maximum(sigma[:, None] ** 2, np.finfo(np.float32).tiny)
        snr = np.sqrt(np.maximum(mean_square_wv / square - 2.0, 0.0))
        sigma = spread_w / np.sqrt(rician_variance_factor(snr).mean(axis=1))
    return sigma


def correct_rician_bias(magnitude: Floats, sigma: Floats) -> NDArray[np.float32]:
    """Signal whose expected Rician magnitude is the given one.

    Parameters
    ----------
    magnitude
        Denoised magnitudes, any shape.
    sigma
        Channel noise, broadcastable to ``magnitude``, same units.

    Returns
    -------
    NDArray
        float32; 0 where the magnitude lies below the noise floor, the magnitude itself where it lies far above.
    """
    grid = np.concatenate([np.linspace(0, 6, 3001), np.linspace(6.01, HIGH_SNR, 1200)])
    expected = rician_mean(grid)
    scaled = np.asarray(magnitude, dtype=np.float32) / np.maximum(sigma, np.finfo(np.float32).tiny)
    corrected = np.interp(scaled, expected, grid, left=0.0).astype(np.float32)
    # beyond the table the bias is 1/(2 snr)
    far = scaled > expected[-1]
    corrected = np.where(far, scaled - 0.5 / np.maximum(scaled, 1.0), corrected)
    return (corrected * sigma).astype(np.float32)


def _spread_to_voxels(
    centres_w3: Floats, sigma_w: Floats, mask_xyz: NDArray[np.bool_], smoothing: float
) -> NDArray[np.float32]:
    """Smooth map through the windows' values; far from any window their nearest values."""
    if len(centres_w3) == 1:
        return np.full(mask_xyz.shape, sigma_w[0], dtype=np.float32)
    cell = max(2, int(smoothing) // 2)
    grid = tuple(-(-n // cell) for n in mask_xyz.shape)
    weight, total = np.zeros(grid), np.zeros(grid)
    index = tuple(np.clip((centres_w3 / cell).astype(int), 0, np.array(grid) - 1).T)
    np.add.at(weight, index, 1.0)
    np.add.at(total, index, np.log(np.maximum(sigma_w, np.finfo(float).tiny)))
    smooth_w, smooth_t = (
        ndimage.gaussian_filter(a, 1.5, mode="constant", truncate=6.0) for a in (weight, total)
    )
    known = smooth_w > 1e-4 * smooth_w.max()
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    values = (smooth_t / np.maximum(smooth_w, 1e-12))[tuple(nearest)]
    where = np.meshgrid(*((np.arange(n) - (cell - 1) / 2) / cell for n in mask_xyz.shape), indexing="ij")
    return np.exp(ndimage.map_coordinates(values, where, order=1, mode="nearest")).astype(np.float32)


def check_noise_map(sigma_xyz: Floats, mask_xyz: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A noise map of the user, checked.

    Raises
    ------
    BadDataError
        The shape is another than the run's, or values in the brain are not positive numbers.
    """
    if sigma_xyz.shape != mask_xyz.shape:
        raise BadDataError(
            f"the noise map has shape {sigma_xyz.shape}, expected the run's {mask_xyz.shape}",
            "resample it to the grid of the run, or leave it out to have it estimated",
        )
    inside = sigma_xyz[mask_xyz]
    bad = int(np.count_nonzero(~np.isfinite(inside) | (inside <= 0)))
    if bad:
        raise BadDataError(
            f"the noise map has {bad} values in the brain that are not positive numbers",
            "mend it, or leave it out to have it estimated",
        )
    sigma = np.where(np.isfinite(sigma_xyz) & (sigma_xyz > 0), sigma_xyz, np.median(inside))
    return sigma.astype(np.float32)


def rician_variance_table(device: str | torch.device = "cpu") -> torch.Tensor:
    """:func:`rician_variance_factor` at 0, 0.05, 0.1, … up to 30, for quick look-up."""
    return torch.as_tensor(
        rician_variance_factor(np.arange(0, 601) * 0.05), dtype=torch.float32, device=device
    )
