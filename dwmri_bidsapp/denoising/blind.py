"""Blind local PCA: predict every volume at every voxel from the other volumes.

The brain is cut into small blocks. The mean and the covariance over volumes of the blocks *around* a block, without
the block itself, give one linear predictor of each volume from all the others. Neither the voxel's own value in the
predicted volume nor, through the covariance, any value of its block is used, so its noise cannot come back.

Where a block begins is arbitrary, and costs: the windows around a voxel at its edge lie to one side. So a run may be
predicted on two grids of blocks, shifted against each other, and both predictions averaged.

Axes: ``x y z`` space, ``v`` volume, ``b`` block, ``s`` voxel (sample) of a block, ``i j k`` grid of blocks, ``n``
voxel of the mask.

References
----------
Gavish & Donoho 2017, Optimal shrinkage of singular values, doi:10.1109/TIT.2017.2653801;
Donoho, Gavish & Johnstone 2018, Optimal shrinkage of eigenvalues in the spiked covariance model,
doi:10.1214/17-AOS1601.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .windows import debias_eigenvalues, eigh

# below this number of samples a window says less than the covariance of the whole brain does
PRIOR_SAMPLES = 8.0
# covariances that are held at once, in values: more rows of blocks at once repeat less work, and take more memory
VALUES_AT_ONCE = 700_000
BLOCKS_AT_ONCE = 128


@dataclass(frozen=True)
class BlindBase:
    """The blind prediction in SNR units.

    Parameters
    ----------
    base_vn
        (V, N) predicted volumes, float16, in the order of ``mask_xyz.nonzero()``.
    precisions_vijk
        For each grid, and each of its blocks, the diagonal of the precision matrix: the reciprocal of the expected
        squared difference between a measured value and its blind prediction (noise variance is 1). The first block of
        a grid begins as many voxels before the mask as :func:`grid_starts` says.
    block
        Edge of a block in voxels.
    """

    base_vn: Tensor
    precisions_vijk: Sequence[Tensor]
    block: int

    def expected_error(self, volume: int, shape: tuple[int, int, int]) -> Tensor:
        """Variance of the error of one volume's blind prediction, per voxel, in units of the noise variance.

        The mean over the grids; that of their average is less, by a factor that blending finds out.

        Parameters
        ----------
        volume
            Index of the volume.
        shape
            Spatial shape (X, Y, Z) of the result.

        Returns
        -------
        Tensor
            (X, Y, Z), float32, at least 0.
        """
        grids, starts = [], grid_starts(len(self.precisions_vijk), self.block)
        for precision_vijk, start in zip(self.precisions_vijk, starts, strict=True):
            excess = (1.0 / precision_vijk[volume].clamp(1e-6, 1.0)) - 1.0
            for axis, n in enumerate(shape):
                excess = excess.repeat_interleave(self.block, dim=axis).narrow(axis, start, n)
            grids.append(excess)
        return torch.stack(grids).mean(dim=0)


def grid_starts(grids: int, block: int) -> list[int]:
    """How many voxels before the first one each grid of blocks begins, in each direction."""
    return [grid * block // grids for grid in range(grids)]


def blind_local_pca(
    snr_vn: Tensor,
    mask_xyz: Tensor,
    *,
    block: int = 3,
    grids: int = 1,
    out_vn: Tensor | None = None,
) -> BlindBase:
    """Predict all volumes from each other, block by block.

    Parameters
    ----------
    snr_vn
        (V, N) data of the voxels of the mask, in units of the noise standard deviation.
    mask_xyz
        (X, Y, Z) bool with N voxels; only voxels inside are used and predicted.
    block
        Edge of a block in voxels.
    grids
        Number of grids of blocks whose predictions are averaged.
    out_vn
        (V, N) float16 tensor for the prediction, made if not given.

    Returns
    -------
    BlindBase
        Predictions and their precision.
    """
    base_vn = torch.empty(snr_vn.shape, dtype=torch.float16) if out_vn is None else out_vn
    precisions = []
    for done, start in enumerate(grid_starts(grids, block)):
        shifted_xyz = torch.nn.functional.pad(mask_xyz, (start, 0) * 3)
        # the average of those before and this one
        precisions.append(_predict_on_grid(snr_vn, shifted_xyz, block, base_vn, 1 / (done + 1)))
    return BlindBase(base_vn, precisions, block)


def _predict_on_grid(snr_vn: Tensor, mask_xyz: Tensor, block: int, base_vn: Tensor, share: float) -> Tensor:
    """Move the base towards the prediction by a share, all the way for 1; the precision (V, I, J, K) of the blocks."""
    n_volumes = snr_vn.shape[0]
    grid = tuple(-(-n // block) for n in mask_xyz.shape)
    precision = torch.ones((n_volumes, *grid))
    prior = _whole_brain_moments(snr_vn, mask_xyz, block)
    end_x = torch.cat([torch.zeros(1, dtype=torch.long), mask_xyz.sum(dim=(1, 2)).cumsum(dim=0)]).tolist()
    for rows in _strips(grid, n_volumes):
        # with a row of blocks on either side, whose samples count
        near = slice(max(0, rows.start - 1), min(grid[0], rows.stop + 1))
        seen, kept = (slice(r.start * block, min(r.stop * block, mask_xyz.shape[0])) for r in (near, rows))
        mask = mask_xyz[seen]
        strip = torch.zeros((n_volumes, *mask.shape), dtype=snr_vn.dtype)
        inside = mask.flatten().nonzero().flatten()
        strip.flatten(1).index_copy_(1, inside, snr_vn[:, end_x[seen.start] : end_x[seen.stop]])
        _predict_strip(strip, mask, near, rows, block, prior, precision)
        inner = strip[:, kept.start - seen.start : kept.stop - seen.start].flatten(1)
        where = mask_xyz[kept].flatten().nonzero().flatten()
        predicted = base_vn[:, end_x[kept.start] : end_x[kept.stop]]
        if share < 1.0:
            predicted.lerp_(inner.index_select(1, where), share)
        else:
            predicted.copy_(inner.index_select(1, where))
    return precision


def _strips(grid: tuple[int, ...], n_volumes: int) -> Iterator[slice]:
    """Rows of blocks, along the first axis, that are predicted together."""
    at_once = max(2, VALUES_AT_ONCE // (grid[1] * n_volumes**2))
    n_strips = -(-grid[0] // at_once)
    for i in range(n_strips):
        yield slice(grid[0] * i // n_strips, grid[0] * (i + 1) // n_strips)


def _predict_strip(
    strip_vxyz: Tensor,
    mask_xyz: Tensor,
    near: slice,
    rows: slice,
    block: int,
    prior: tuple[Tensor, Tensor],
    precision_vijk: Tensor,
) -> None:
    """Replace the data of the rows ``near`` by the prediction of ``rows``, and write the precision of these."""
    for k, layer in enumerate(_window_moments(strip_vxyz, mask_xyz, block)):
        used = layer.used_ij.clone()
        used[: rows.start - near.start] = used[rows.stop - near.start :] = False
        samples = torch.zeros_like(layer.samples_ijsv)
        for where_b in used.nonzero().split(BLOCKS_AT_ONCE):
            at = where_b[:, 0], where_b[:, 1]
            # the prior of a block comes from blocks of the other colour, never from the block itself
            other_b = 1 - _colour(where_b, near.start + k)
            mean_bv, cov_bvv, count_b = _mean_and_covariance(layer, at, *prior, other_b)
            precision_bvv = _precision(cov_bvv, count_b)
            diagonal_bv = precision_bvv.diagonal(dim1=1, dim2=2).clone()
            # a zero diagonal keeps the own value out to the bit
            weights_bvv = precision_bvv.div_(-diagonal_bv[:, :, None])
            weights_bvv.diagonal(dim1=1, dim2=2).zero_()
            centred_bsv = layer.samples_ijsv[at] - mean_bv[:, None, :]
            samples[at] = mean_bv[:, None, :] + centred_bsv @ weights_bvv.mT
            precision_vijk[:, near, :, k].permute(1, 2, 0)[at] = diagonal_bv
        # the data of this layer were read already, for the windows of the one before
        _write_layer(strip_vxyz, samples, k, block)


@dataclass(frozen=True)
class _Layer:
    """One layer of blocks with the sums of the window around each, the block itself left out."""

    samples_ijsv: Tensor
    used_ij: Tensor
    count_ij: Tensor
    sum_ijv: Tensor
    product_ijvv: Tensor


def _layer_samples(snr_vxyz: Tensor, mask_xyz: Tensor, block: int, k: int) -> tuple[Tensor, Tensor]:
    """Samples (I, J, S, V) and their mask (I, J, S, 1) of the k-th layer of blocks; zero outside the mask."""
    _, size_x, size_y, size_z = snr_vxyz.shape
    z_slice = slice(k * block, min((k + 1) * block, size_z))
    pad = (0, block - (z_slice.stop - z_slice.start), 0, -size_y % block, 0, -size_x % block)
    inside = torch.nn.functional.pad(mask_xyz[:, :, z_slice].float(), pad)
    data = torch.nn.functional.pad(snr_vxyz[:, :, :, z_slice].float(), pad) * inside
    n_i, n_j = inside.shape[0] // block, inside.shape[1] // block
    data = data.reshape(-1, n_i, block, n_j, block, block).permute(1, 3, 2, 4, 5, 0)
    inside = inside.reshape(n_i, block, n_j, block, block).permute(0, 2, 1, 3, 4)
    return data.reshape(n_i, n_j, block**3, -1), inside.reshape(n_i, n_j, block**3, 1)


def _window_moments(snr_vxyz: Tensor, mask_xyz: Tensor, block: int) -> Iterator[_Layer]:
    """Yield layer after layer; only three layers of products are held at a time."""
    n_layers = -(-snr_vxyz.shape[3] // block)
    cache: dict[int, tuple[Tensor, ...]] = {}
    for k in range(n_layers):
        near = [m for m in (k - 1, k, k + 1) if 0 <= m < n_layers]
        for m in near:
            if m not in cache:
                samples, inside = _layer_samples(snr_vxyz, mask_xyz, block, m)
                sums = (inside.sum(dim=(2, 3)), samples.sum(dim=2), samples.mT @ samples)
                cache[m] = (samples, *sums, *(_box_sum(t) for t in sums))
        cache.pop(k - 2, None)
        samples, *own = cache[k][:4]
        count, total, product = (
            sum((cache[m][part + 4] for m in near if m != k), start=_ring_sum(own[part])) for part in range(3)
        )
        yield _Layer(samples, own[0] > 0, count, total, product)


def _add_neighbours(total: Tensor, t: Tensor, axis: int) -> Tensor:
    """Add to a total, in place, what lies one step before and behind along an axis."""
    n = t.shape[axis]
    if n > 1:
        total.narrow(axis, 1, n - 1).add_(t.narrow(axis, 0, n - 1))
        total.narrow(axis, 0, n - 1).add_(t.narrow(axis, 1, n - 1))
    return total


def _box_sum(t: Tensor) -> Tensor:
    """Sum over the 3 by 3 neighbours along the first two axes."""
    for axis in (0, 1):
        t = _add_neighbours(t.clone(), t, axis)
    return t


def _ring_sum(t: Tensor) -> Tensor:
    """The same sum without the middle, which is never added: subtracting it would leave its rounding errors."""
    beside = _add_neighbours(torch.zeros_like(t), t, 0)
    return _add_neighbours(beside.clone(), t + beside, 1)


def _colour(where_b: Tensor, k: int) -> Tensor:
    """Colour, 0 or 1, of the blocks (B, 2) of a layer: neighbours by a face differ, as on a chessboard."""
    return (where_b.sum(dim=1) + k) % 2


def _whole_brain_moments(snr_vn: Tensor, mask_xyz: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Mean (2, V) and covariance (2, V, V) over at most some 20,000 voxels of the blocks of each colour."""
    n_volumes = snr_vn.shape[0]
    means, covs = torch.zeros(2, n_volumes), torch.eye(n_volumes).repeat(2, 1, 1)
    colours = (mask_xyz.nonzero() // block).sum(dim=1) % 2
    for colour in (0, 1):
        where = (colours == colour).nonzero().flatten()
        if not len(where):
            continue
        where = where[:: max(1, len(where) // 20_000)]
        samples_sv = snr_vn[:, where].T.double()
        means[colour] = samples_sv.mean(dim=0)
        centred = samples_sv.sub_(samples_sv.mean(dim=0))
        covs[colour] = centred.T @ centred / max(1, len(where) - 1)
    return means, covs


def _mean_and_covariance(
    layer: _Layer, at: tuple[Tensor, ...], prior_mean_cv: Tensor, prior_cov_cvv: Tensor, colour_b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of the windows of some blocks; a few prior samples of the whole brain fill thin windows."""
    count_b = layer.count_ij[at]
    mean = layer.sum_ijv[at] / count_b.clamp(min=1.0)[:, None]
    cov = layer.product_ijvv[at] / count_b.clamp(min=1.0)[:, None, None] - mean[:, :, None] * mean[:, None, :]
    thin = count_b < 4 * PRIOR_SAMPLES
    share = (PRIOR_SAMPLES / (count_b[thin] + PRIOR_SAMPLES))[:, None]
    offset = mean[thin] - prior_mean_cv[colour_b[thin]]
    between = offset[:, :, None] * offset[:, None, :] * (1 - share)[:, :, None]
    cov[thin] += share[:, :, None] * (prior_cov_cvv[colour_b[thin]] + between - cov[thin])
    mean[thin] -= share * offset
    return mean, cov, count_b + PRIOR_SAMPLES * thin


def _precision(cov_bvv: Tensor, count_b: Tensor) -> Tensor:
    """Inverse of the covariance with debiased signal eigenvalues and noise eigenvalues of 1."""
    values_bv, vectors_bvv = eigh(cov_bvv)
    values_bv = debias_eigenvalues(values_bv, (cov_bvv.shape[1] / count_b.clamp(min=2.0))[:, None])
    return (vectors_bvv / values_bv[:, None, :]) @ vectors_bvv.mT


def _write_layer(base_vxyz: Tensor, samples_ijsv: Tensor, k: int, block: int) -> None:
    """Put the samples of one layer of blocks back where they came from."""
    n_i, n_j, _, n_v = samples_ijsv.shape
    _, size_x, size_y, size_z = base_vxyz.shape
    volume = samples_ijsv.reshape(n_i, n_j, block, block, block, n_v).permute(5, 0, 2, 1, 3, 4)
    volume = volume.reshape(n_v, n_i * block, n_j * block, block)
    stop = min((k + 1) * block, size_z)
    base_vxyz[:, :, :, k * block : stop] = volume[:, :size_x, :size_y, : stop - k * block].half()


def bounding_box(mask_xyz: NDArray[np.bool_], margin: int = 0) -> tuple[slice, slice, slice]:
    """Smallest box around a mask, grown by a margin of voxels and cut at the grid."""
    slices = []
    for axis in range(3):
        line = np.flatnonzero(mask_xyz.any(axis=tuple(a for a in range(3) if a != axis)))
        slices.append(slice(max(0, line[0] - margin), min(mask_xyz.shape[axis], line[-1] + 1 + margin)))
    return slices[0], slices[1], slices[2]
