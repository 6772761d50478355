"""Noise of magnitude images.

``sigma`` is always the standard deviation of the real (or imaginary) channel of the reconstructed image, in
the units of the signal, whatever the kind: equal sigma means equal signal-to-noise ratio.
b0 SNR, everywhere in this project: mean clean b=0 signal in white matter / mean sigma in the brain.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, special

from ..errors import UsageError
from .signal import Phantom

Array = NDArray[np.float32]
NoiseKind = Literal["rician", "chi", "zero-filled"]

N_COILS = 4
"""Channels of ``"chi"`` where not given."""

_ACQUIRED_SHARE = 38 / 48
_PARTIAL_FOURIER = 0.75
_HIGHEST_SNR = 40.0


def b0_signal(phantom: Phantom) -> float:
    """Mean clean b=0 signal in white matter: divide it by the b0 SNR to get sigma.

    In a phantom without pure white matter the voxels with most of it stand in, or all where there is none.

    Raises
    ------
    UsageError
        The protocol has no b=0.
    """
    if not phantom.gradients.b0.any():
        raise UsageError(
            "expected b=0 volumes for a b=0 signal-to-noise ratio, found none", "add one to the protocol"
        )
    clean_xyz = phantom.clean_xyzv[..., phantom.gradients.b0].mean(axis=-1)
    white = phantom.white_mask_xyz
    if not white.any():
        white = phantom.mask_xyz & (phantom.white_xyz >= 0.5 * phantom.white_xyz.max())
    return float(clean_xyz[white].mean())


def draw_sigma_map(
    mask_xyz: NDArray[np.bool_], sigma: float, rng: np.random.Generator, *, spread: float = 0.5
) -> Array:
    """Draw a smooth noise map as of parallel imaging: higher deep in the head, uneven elsewhere.

    Parameters
    ----------
    mask_xyz : (X, Y, Z) bool
        Brain.
    sigma
        Mean over the mask.
    rng
        Source of the unevenness.
    spread
        About (highest - lowest) / mean; 0 for a constant map.

    Returns
    -------
    (X, Y, Z) float32
    """
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in mask_xyz.shape]
    radius2_xyz = sum(a**2 for a in np.meshgrid(*axes, indexing="ij")) / 3
    lattice = rng.standard_normal((4, 4, 4)).astype(np.float32)
    at = np.stack(np.meshgrid(*[(a + 1) * 1.5 for a in axes], indexing="ij"))
    uneven_xyz = ndimage.map_coordinates(lattice, at, order=3, mode="nearest", output=np.float32)
    map_xyz = np.clip(1 + spread * (0.5 - radius2_xyz + 0.2 * uneven_xyz), 0.2, None)
    return (map_xyz * (sigma / map_xyz[mask_xyz].mean())).astype(np.float32)


def add_noise(
    clean_xyzv: Array,
    *,
    sigma: float | Array,
    rng: np.random.Generator,
    kind: NoiseKind = "rician",
    n_coils: int = N_COILS,
) -> tuple[Array, Array]:
    """Add noise as of a magnitude reconstruction.

    Parameters
    ----------
    clean_xyzv : (X, Y, Z, V) float32
        What the scanner would have reconstructed without noise.
    sigma
        Standard deviation of one channel after reconstruction, a number or a map (X, Y, Z).
    rng
        Source of the noise.
    kind
        ``"rician"``: magnitude of one complex channel, independent voxels. ``"chi"``: root of the sum of
        squares of ``n_coils`` channels. ``"zero-filled"``: Rician, but only 38/48 of k-space in both axes of
        the slice, and of the second axis only 75% (partial Fourier), was measured and the rest filled with
        zeros, so that neighbouring voxels share their noise.
    n_coils
        Channels of ``"chi"``.

    Returns
    -------
    noisy_xyzv : (X, Y, Z, V) float32
    sigma_xyz : (X, Y, Z) float32
        ``sigma`` as a map.

    Raises
    ------
    UsageError
        An unknown kind, or a sigma that is negative or of another grid.
    """
    grid = clean_xyzv.shape[:3]
    if kind not in get_args(NoiseKind) or n_coils < 1:
        raise UsageError(f"expected noise of kind {get_args(NoiseKind)}, found {kind!r} with {n_coils} coils")
    if (
        np.ndim(sigma) not in (0, 3)
        or (np.ndim(sigma) == 3 and np.shape(sigma) != grid)
        or not np.min(sigma) >= 0
    ):
        raise UsageError(f"expected sigma >= 0, a number or a map {grid}, found {np.shape(sigma)}")
    sigma_xyz = np.broadcast_to(np.asarray(sigma, dtype=np.float32), grid).copy()
    noisy_xyzv = np.empty_like(clean_xyzv, dtype=np.float32)
    # Volume by volume, so that the noise never takes the memory of the whole run.
    for volume in range(clean_xyzv.shape[3]):
        channels = _draw_channels(grid, kind, n_coils, rng)
        squared_xyz = (clean_xyzv[..., volume] + sigma_xyz * next(channels)) ** 2
        for channel_xyz in channels:
            squared_xyz += (sigma_xyz * channel_xyz) ** 2
        noisy_xyzv[..., volume] = np.sqrt(squared_xyz)
    return noisy_xyzv, sigma_xyz


def expected_magnitude(
    clean: Array, sigma: float | Array, kind: NoiseKind = "rician", n_coils: int = N_COILS
) -> Array:
    """Mean of the noisy magnitude over all noise: what averaging without end would show.

    Parameters
    ----------
    clean
        Signal without noise, any shape.
    sigma
        Standard deviation of one channel, broadcastable to ``clean``, in its units.
    kind, n_coils
        As for :func:`add_noise`; one voxel of zero-filled noise is Rician.

    Returns
    -------
    NDArray
        float32; above the clean signal, and next to it where that is far above sigma (Constantinides 1997,
        doi:10.1002/mrm.1910380524).
    """
    snr, excess = _excess_table(n_coils if kind == "chi" else 1)
    sigma = np.maximum(np.asarray(sigma, dtype=np.float32), np.finfo(np.float32).tiny)
    at = clean / sigma
    # far above the noise the excess falls as 1 / SNR
    far = np.maximum(at / np.float32(_HIGHEST_SNR), 1)
    return (clean + sigma * np.interp(at, snr, excess) / far).astype(np.float32)


def invert_expected_magnitude(
    magnitude: Array, sigma: float | Array, kind: NoiseKind = "rician", n_coils: int = N_COILS
) -> Array:
    """The signal whose :func:`expected_magnitude` is the given one; 0 below the noise floor.

    Parameters
    ----------
    magnitude
        Denoised magnitudes, any shape.
    sigma, kind, n_coils
        As for :func:`expected_magnitude`.
    """
    snr, excess = _excess_table(n_coils if kind == "chi" else 1)
    sigma = np.asarray(sigma, dtype=np.float32)
    at = magnitude / np.where(sigma > 0, sigma, 1)
    near = np.interp(at, snr + excess, snr)
    far = at - excess[-1] * _HIGHEST_SNR / np.maximum(at, 1)
    inverse = sigma * np.where(at > snr[-1] + excess[-1], far, near)
    return np.where(sigma > 0, inverse, magnitude).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _excess_table(n_coils: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """SNR, and by how much the mean magnitude is above it, in units of sigma."""
    snr = np.concatenate([np.linspace(0, 6, 3001), np.linspace(6.01, _HIGHEST_SNR, 2000)])
    factor = np.sqrt(2) * np.exp(special.gammaln(n_coils + 0.5) - special.gammaln(n_coils))
    return snr, factor * special.hyp1f1(-0.5, n_coils, -(snr**2) / 2) - snr


def _draw_channels(
    grid: tuple[int, ...], kind: NoiseKind, n_coils: int, rng: np.random.Generator
) -> Iterator[Array]:
    """Yield noise of unit variance: the channel in phase with the signal first, then the others."""
    if kind == "zero-filled":
        noise_xyz = _zero_filled_noise(grid, rng)
        yield noise_xyz.real
        yield noise_xyz.imag
        return
    for _ in range(2 * n_coils if kind == "chi" else 2):
        yield rng.standard_normal(grid, dtype=np.float32)


def _zero_filled_noise(grid: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.complex64]:
    """Complex noise of unit variance per channel that fills only the measured part of k-space."""
    measured_x = np.abs(fft.fftfreq(grid[0])) <= 0.5 * _ACQUIRED_SHARE
    frequency_y = fft.fftfreq(grid[1])
    lowest_y = -0.5 * _ACQUIRED_SHARE * (2 * _PARTIAL_FOURIER - 1)
    measured_y = (frequency_y >= lowest_y) & (frequency_y <= 0.5 * _ACQUIRED_SHARE)
    measured_xy = measured_x[:, None] & measured_y
    noise_xyz = rng.standard_normal(grid, dtype=np.float32) + 1j * rng.standard_normal(grid, dtype=np.float32)
    filtered_xyz = fft.ifft2(fft.fft2(noise_xyz, axes=(0, 1)) * measured_xy[..., None], axes=(0, 1))
    return filtered_xyz / np.sqrt(np.float32(measured_xy.mean()))
