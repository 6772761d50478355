"""Numbers of every volume that several charts show, gathered in one pass over the run.

Axis letters: x, y, z voxel axes; v volumes; n voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESIDUAL_EDGES = np.linspace(-5, 5, 81)
"""Bins of the residual's histogram, in noise standard deviations."""

_N_SAMPLES = 20_000
_N_CARPET = 600


@dataclass(frozen=True, eq=False)
class RunStatistics:
    """What the charts need of a run.

    Attributes
    ----------
    mean_before, mean_after : (V,) float
        Mean signal in the brain.
    residual_mean, residual_std : (V,) float
        Of (before - after) / σ in the brain.
    residual_counts : (V, B) int
        Its histogram over :data:`RESIDUAL_EDGES`.
    before, after : (n, V) float32
        Signal / σ of voxels sampled evenly, from the lowest slice to the highest.
    carpet : (n, V) float32
        (before - after) / σ of some of these.
    mean_residual : dict of int to (X, Y, Z) float32
        Sum of (before - after) / σ over the volumes of a shell, divided by √n: noise keeps a spread of 1.
    shell_mean, shell_std : dict of int to pair of (X, Y, Z) float32
        Mean and standard deviation over the volumes of a shell, before and after, in the whole image.
    """

    mean_before: NDArray[np.float64]
    mean_after: NDArray[np.float64]
    residual_mean: NDArray[np.float64]
    residual_std: NDArray[np.float64]
    residual_counts: NDArray[np.int64]
    before: NDArray[np.float32]
    after: NDArray[np.float32]
    mean_residual: dict[int, NDArray[np.float32]]
    shell_mean: dict[int, list[NDArray[np.float32]]]
    shell_std: dict[int, list[NDArray[np.float32]]]

    @property
    def carpet(self) -> NDArray[np.float32]:
        """See above."""
        rows = self.carpet_rows
        return self.before[rows] - self.after[rows]

    @property
    def carpet_rows(self) -> NDArray[np.int64]:
        """As many of the sampled voxels as a carpet can show."""
        n = len(self.before)
        return np.unique(np.linspace(0, n - 1, min(n, _N_CARPET)).round().astype(np.int64))


def run_statistics(
    noisy_xyzv: Any,
    denoised_xyzv: Any,
    sigma_xyz: NDArray,
    mask_xyz: NDArray[np.bool_],
    shell_v: NDArray[np.int64],
    shells: Sequence[int] = (),
    up_axis: int = 2,
    head_first: bool = False,
) -> RunStatistics:
    """Go once through the volumes of a run, in order: a compressed file is read from its start to its end.

    Parameters
    ----------
    noisy_xyzv, denoised_xyzv : (X, Y, Z, V) array
        Anything that can be sliced; one volume at a time is read.
    sigma_xyz : (X, Y, Z) array
        Noise standard deviation, in the unit of the signal.
    mask_xyz : (X, Y, Z) bool
        The brain.
    shell_v : (V,) int
        Shell of each volume.
    shells
        Those whose mean residual is wanted.
    up_axis
        The array's axis between feet and head: the carpet is sorted along it.
    head_first
        Whether that axis begins at the head.
    """
    n_volumes = noisy_xyzv.shape[3]
    sigma_n = safe_sigma(sigma_xyz)[mask_xyz]
    rows = _sample_rows(mask_xyz, up_axis, head_first)
    numbers = np.full((4, n_volumes), np.nan)
    samples = np.full((2, len(rows), n_volumes), np.nan, dtype=np.float32)
    counts = np.zeros((n_volumes, len(RESIDUAL_EDGES) - 1), dtype=np.int64)
    sums = {shell: np.zeros(sigma_n.shape, dtype=np.float32) for shell in shells}
    moments = {shell: [_Moments(mask_xyz.shape) for _ in range(2)] for shell in shells}
    for v in range(n_volumes):
        pair = read_volume(noisy_xyzv, v), read_volume(denoised_xyzv, v)
        before_n, after_n = (volume[mask_xyz] for volume in pair)
        for moment, volume in zip(moments.get(int(shell_v[v]), ()), pair, strict=False):
            moment.add(volume)
        residual_n = (before_n - after_n) / sigma_n
        if np.isfinite(residual_n).any():
            numbers[:, v] = before_n.mean(), after_n.mean(), np.nanmean(residual_n), np.nanstd(residual_n)
        counts[v] = np.histogram(residual_n[np.isfinite(residual_n)], RESIDUAL_EDGES)[0]
        samples[:, :, v] = before_n[rows] / sigma_n[rows], after_n[rows] / sigma_n[rows]
        if shell_v[v] in sums:
            sums[int(shell_v[v])] += residual_n
    means = {
        shell: _unmask(total / np.sqrt((shell_v == shell).sum()), mask_xyz) for shell, total in sums.items()
    }
    return RunStatistics(
        numbers[0], numbers[1], numbers[2], numbers[3], counts, samples[0], samples[1], means,
        shell_mean={shell: [moment.mean for moment in both] for shell, both in moments.items()},
        shell_std={shell: [moment.std() for moment in both] for shell, both in moments.items()},
    )  # fmt: skip


class _Moments:
    """Mean and spread of volumes that come one by one (Welford 1962, doi:10.1080/00401706.1962.10490022)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.n = 0
        self.mean = np.zeros(shape, dtype=np.float32)
        self._squares = np.zeros(shape, dtype=np.float32)

    def add(self, volume_xyz: NDArray[np.float32]) -> None:
        self.n += 1
        from_mean = volume_xyz - self.mean
        self.mean += from_mean / np.float32(self.n)
        self._squares += from_mean * (volume_xyz - self.mean)

    def std(self) -> NDArray[np.float32]:
        return np.sqrt(self._squares / np.float32(max(self.n - 1, 1)))


def read_volume(series_xyzv: Any, v: int) -> NDArray[np.float32]:
    """Read one volume of an array or of a file."""
    return np.asarray(series_xyzv[..., v], dtype=np.float32)


def safe_sigma(sigma_xyz: NDArray) -> NDArray[np.float32]:
    """Return the noise level with NaN where it is not positive, so that nothing divides by zero."""
    sigma = np.array(sigma_xyz, dtype=np.float32)
    sigma[~(sigma > 0)] = np.nan
    return sigma


def representative_volumes(residual_std_v: NDArray, shell_v: NDArray) -> dict[int, int]:
    """Return, for each shell, the volume whose residual is the most ordinary.

    The median rather than the first one, so that neither an artefact nor luck is shown.
    """
    chosen = {}
    for shell in np.unique(shell_v):
        members = np.flatnonzero(shell_v == shell)
        spread = np.nan_to_num(residual_std_v[members])
        chosen[int(shell)] = int(members[np.argsort(spread, kind="stable")[len(members) // 2]])
    return chosen


def shells_to_show(shells: list[int], at_most: int = 5) -> list[int]:
    """Return at most so many shells, evenly, with the first and the last one."""
    if len(shells) <= at_most:
        return shells
    return [shells[i] for i in np.unique(np.linspace(0, len(shells) - 1, at_most).round().astype(int))]


def _unmask(values_n: NDArray, mask_xyz: NDArray[np.bool_]) -> NDArray[np.float32]:
    volume = np.full(mask_xyz.shape, np.nan, dtype=np.float32)
    volume[mask_xyz] = values_n
    return volume


def _sample_rows(mask_xyz: NDArray[np.bool_], up_axis: int, head_first: bool) -> NDArray[np.int64]:
    """Rows of the masked array, sorted from the lowest slice up."""
    height_n = np.nonzero(mask_xyz)[up_axis] * (-1 if head_first else 1)
    n = len(height_n)
    rng = np.random.default_rng(0)
    rows = rng.choice(n, size=min(n, _N_SAMPLES), replace=False) if n else np.zeros(0, dtype=np.int64)
    return rows[np.argsort(height_n[rows], kind="stable")]
