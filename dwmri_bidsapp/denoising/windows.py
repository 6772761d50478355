"""Windows over the brain: which voxels lie in each, and their moments.

Axes: ``x y z`` space, ``w`` window, ``s`` voxel (sample) of a window, ``v`` volume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# windows with less than this share of their voxels in the mask are left out where others hold the same voxels
LEAST_SHARE = 0.2


def cut_windows(mask_xyz: Tensor, edge: int, step: int, *, staggered: bool = False) -> Tensor:
    """Cubes that cover the mask, overlapping where ``step`` is less than ``edge``.

    Parameters
    ----------
    mask_xyz
        (X, Y, Z) bool.
    edge, step
        Voxels along an edge of a cube, and from cube to cube. The first cubes start ``step`` voxels before the grid and
        the last reach over its end, so that every voxel lies in several.
    staggered
        Take every second cube along each axis, shifted by one from row to row like the fields of a chessboard, and
        others only where these miss a voxel.

    Returns
    -------
    Tensor
        (W, edge³) index of each voxel among those of the mask, in the order of ``mask_xyz.nonzero()``; -1 outside the
        mask. No window is empty, every voxel of the mask lies in one, and slivers that only repeat others are left out.
    """
    index = torch.full(mask_xyz.shape, -1, dtype=torch.int32)
    index[mask_xyz.cpu()] = torch.arange(int(mask_xyz.sum()), dtype=torch.int32)
    pad: list[int] = []
    for n in reversed(mask_xyz.shape):
        pad += [step, edge + step - n % step]
    padded = F.pad(index, pad, value=-1)

    def layers() -> Iterator[Tensor]:
        """The windows of one x after the other: most are empty, and all of them together large."""
        for layer in padded.unfold(0, edge, step):
            yield layer.unfold(0, edge, step).unfold(1, edge, step).reshape(-1, edge**3)

    rows, columns = ((n - edge) // step + 1 for n in padded.shape[1:])
    field_w = (torch.arange(rows)[:, None] + torch.arange(columns)).flatten() % 2
    alone = torch.ones(int(mask_xyz.sum()) + 1, dtype=torch.bool)
    full_lw = []
    for number, windows in enumerate(layers()):
        full_w = (windows >= 0).sum(dim=1) >= LEAST_SHARE * edge**3
        full_lw.append(full_w & (field_w == number % 2) if staggered else full_w)
        alone[windows[full_lw[-1]].flatten()] = False
    alone[-1] = False  # where the index -1 points
    return torch.cat([w[full_w | alone[w].any(dim=1)] for w, full_w in zip(layers(), full_lw, strict=True)])


def slabs(values_vn: Tensor, windows_ws: Tensor, values_at_once: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Some windows after the other, with the voxels that they hold: a small part of a run at a time.

    Parameters
    ----------
    values_vn
        (V, N) values of the mask's voxels, in whatever memory.
    windows_ws
        (W, S) from :func:`cut_windows`.
    values_at_once
        About how many values all the windows of one part hold.

    Yields
    ------
    first : int
        Voxels before this one are in no later window.
    rows_nv : Tensor
        (N', V) values of the voxels from ``first`` on that have come up so far.
    part_ws : Tensor
        (W', S) windows with indices into ``rows_nv``; -1 outside the mask.
    """
    at_once = min(max(8, values_at_once // (len(values_vn) * windows_ws.shape[1])), 256)
    beyond = values_vn.shape[1]
    least_w = windows_ws.masked_fill(windows_ws < 0, beyond).amin(dim=1).flip(0).cummin(dim=0).values.flip(0)
    first = last = 0
    rows_nv = values_vn.new_empty((0, len(values_vn)))
    for start in range(0, len(windows_ws), at_once):
        part_ws = windows_ws[start : start + at_once]
        new_first, new_last = int(least_w[start]), max(last, int(part_ws.max()) + 1)
        rows_nv = torch.cat([rows_nv[new_first - first :], values_vn[:, max(last, new_first) : new_last].T])
        first, last = new_first, new_last
        yield first, rows_nv, torch.where(part_ws >= 0, part_ws.long() - first, -1)


def window_moments(data_nv: Tensor, index_ws: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gather some windows, and their means and covariances over volumes.

    Parameters
    ----------
    data_nv
        (N, V) values of the mask's voxels.
    index_ws
        (W, S) from :func:`cut_windows`.

    Returns
    -------
    centred_wsv : Tensor
        (W, S, V) samples less their mean; zero outside the mask.
    mean_wv, cov_wvv : Tensor
        Mean and covariance of each window.
    count_w : Tensor
        Samples less one (the mean takes one), at least 1: what the covariance was divided by.
    """
    inside_ws1 = (index_ws >= 0)[:, :, None]
    samples_wsv = data_nv[index_ws.clamp(min=0)].float() * inside_ws1
    count_w = inside_ws1.sum(dim=(1, 2)).float()
    mean_wv = samples_wsv.sum(dim=1) / count_w[:, None]
    centred_wsv = (samples_wsv - mean_wv[:, None]) * inside_ws1
    free_w = (count_w - 1).clamp(min=1)
    return centred_wsv, mean_wv, centred_wsv.mT @ centred_wsv / free_w[:, None, None], free_w


def eigh(matrices_bvv: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (B, V), smallest first, and eigenvectors (B, V, V) of symmetric matrices."""
    found = _in_shares(torch.linalg.eigh, matrices_bvv)
    return torch.cat([values for values, _ in found]), torch.cat([vectors for _, vectors in found])


def eigvalsh(matrices_bvv: Tensor) -> Tensor:
    """Eigenvalues (B, V), smallest first, of symmetric matrices."""
    return torch.cat(_in_shares(torch.linalg.eigvalsh, matrices_bvv))


def _in_shares(function: Callable[[Tensor], Any], matrices_bvv: Tensor) -> list[Any]:
    """Results for a share of the batch per thread: LAPACK takes one small matrix after the other on one thread."""
    parts = matrices_bvv.chunk(torch.get_num_threads())
    if len(parts) == 1:
        return [function(matrices_bvv)]
    return list(_threads(len(parts)).map(function, parts))


@lru_cache(maxsize=1)
def _threads(n: int) -> ThreadPoolExecutor:
    """Threads that stay, and start none of their own: LAPACK would set up a team in each of them."""
    return ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,))


def debias_eigenvalues(values: Tensor, ratio: Tensor) -> Tensor:
    """Population eigenvalues of the spiked covariance model with unit noise, from sample eigenvalues.

    Parameters
    ----------
    values
        Sample eigenvalues, any shape.
    ratio
        Number of variables over number of samples, broadcastable to ``values``.

    Returns
    -------
    Tensor
        Eigenvalues, 1 where the sample value lies in the bulk of the noise (eq. 1.10 of Donoho 2018,
        doi:10.1214/17-AOS1601).
    """
    shifted = values + 1.0 - ratio
    root = (shifted**2 - 4.0 * values).clamp(min=0.0).sqrt()
    return torch.where(values > bulk_edge(ratio), (shifted + root) / 2.0, torch.ones_like(values)).clamp(
        min=1.0
    )


def bulk_edge(ratio: Tensor) -> Tensor:
    """Largest sample eigenvalue of unit noise alone, for a ratio of variables to samples (Marchenko & Pastur)."""
    return (1.0 + ratio.sqrt()).square()
