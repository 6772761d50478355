"""Blind local PCA: predict every volume at every voxel from the other volumes.

The brain is cut into small blocks. The mean and the covariance over volumes of the blocks *around* a block, without
the block itself, give one linear predictor of each volume from all the others. Neither the voxel's own value in the
predicted volume nor, through the covariance, any value of its block is used, so its noise cannot come back.

Axes: ``x y z`` space, ``v`` volume, ``b`` block, ``s`` voxel (sample) of a block, ``i j k`` grid of blocks.

References
----------
Gavish & Donoho 2017, Optimal shrinkage of singular values, doi:10.1109/TIT.2017.2653801;
Donoho, Gavish & Johnstone 2018, Optimal shrinkage of eigenvalues in the spiked covariance model,
doi:10.1214/17-AOS1601.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .windows import debias_eigenvalues, eigh

# below this number of samples a window says less than the covariance of the whole brain does
PRIOR_SAMPLES = 8.0


@dataclass(frozen=True)
class BlindBase:
    """The blind prediction in SNR units.

    Parameters
    ----------
    base_vxyz
        Predicted volumes, float16, zero outside the mask.
    precision_vijk
        For each block the diagonal of the precision matrix: the reciprocal of the expected squared
        difference between a measured value and its blind prediction (noise variance is 1).
    block
        Edge of a block in voxels.
    """

    base_vxyz: Tensor
    precision_vijk: Tensor
    block: int

    def expected_error(self, volume: int, shape: tuple[int, int, int]) -> Tensor:
        """Variance of the error of one volume's blind prediction, per voxel, in units of the noise variance.

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
        excess = (1.0 / self.precision_vijk[volume].clamp(1e-6, 1.0)) - 1.0
        for axis in range(3):
            excess = excess.repeat_interleave(self.block, dim=axis)
        return excess[: shape[0], : shape[1], : shape[2]]


def blind_local_pca(
    snr_vxyz: Tensor, mask_xyz: Tensor, *, block: int = 3, device: str | torch.device = "cpu"
) -> BlindBase:
    """Predict all volumes from each other, block by block.

    Parameters
    ----------
    snr_vxyz
        (V, X, Y, Z) data in units of the noise standard deviation.
    mask_xyz
        (X, Y, Z) bool; only voxels inside are used and predicted.
    block
        Edge of a block in voxels.
    device
        Where the eigendecompositions run.

    Returns
    -------
    BlindBase
        Predictions and their precision.
    """
    n_volumes = snr_vxyz.shape[0]
    shape = tuple(snr_vxyz.shape[1:])
    grid = tuple(-(-n // block) for n in shape)
    base = torch.zeros(snr_vxyz.shape, dtype=torch.float16)
    precision = torch.ones((n_volumes, *grid))
    prior_mean_cv, prior_cov_cvv = (t.to(device) for t in _whole_brain_moments(snr_vxyz, mask_xyz, block))

    for k, layer in enumerate(_window_moments(snr_vxyz, mask_xyz, block, device)):
        used = layer.used_ij
        if not bool(used.any()):
            continue
        # the prior of a block comes from blocks of the other colour, never from the block itself
        other_b = 1 - _colour(used.nonzero(), k)
        mean_bv, cov_bvv, count_b = _mean_and_covariance(layer, used, prior_mean_cv, prior_cov_cvv, other_b)
        precision_bvv = _precision(cov_bvv, count_b)
        diagonal_bv = precision_bvv.diagonal(dim1=1, dim2=2).clone()
        # a zero diagonal keeps the own value out to the bit
        weights_bvv = precision_bvv / -diagonal_bv[:, :, None]
        weights_bvv.diagonal(dim1=1, dim2=2).zero_()
        centred_bsv = layer.samples_ijsv[used] - mean_bv[:, None, :]
        predicted_bsv = mean_bv[:, None, :] + centred_bsv @ weights_bvv.mT
        samples = torch.zeros_like(layer.samples_ijsv)
        samples[used] = predicted_bsv
        _write_layer(base, samples.cpu(), k, block)
        precision[:, :, :, k].permute(1, 2, 0)[used.cpu()] = diagonal_bv.cpu()
    base *= mask_xyz
    return BlindBase(base, precision, block)


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


def _window_moments(
    snr_vxyz: Tensor, mask_xyz: Tensor, block: int, device: str | torch.device
) -> Iterator[_Layer]:
    """Yield layer after layer; only three layers of products are held at a time."""
    n_layers = -(-snr_vxyz.shape[3] // block)
    cache: dict[int, tuple[Tensor, ...]] = {}
    for k in range(n_layers):
        near = [m for m in (k - 1, k, k + 1) if 0 <= m < n_layers]
        for m in near:
            if m not in cache:
                samples, inside = (t.to(device) for t in _layer_samples(snr_vxyz, mask_xyz, block, m))
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


def _whole_brain_moments(snr_vxyz: Tensor, mask_xyz: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Mean (2, V) and covariance (2, V, V) over at most some 20,000 voxels of the blocks of each colour."""
    n_volumes = snr_vxyz.shape[0]
    means, covs = torch.zeros(2, n_volumes), torch.eye(n_volumes).repeat(2, 1, 1)
    everywhere = mask_xyz.nonzero()
    colours = (everywhere // block).sum(dim=1) % 2
    for colour in (0, 1):
        where = everywhere[colours == colour]
        if not len(where):
            continue
        where = where[:: max(1, len(where) // 20_000)]
        samples_sv = snr_vxyz[:, where[:, 0], where[:, 1], where[:, 2]].T.double()
        means[colour] = samples_sv.mean(dim=0)
        centred = samples_sv - samples_sv.mean(dim=0)
        covs[colour] = centred.T @ centred / max(1, len(where) - 1)
    return means, covs


def _mean_and_covariance(
    layer: _Layer, used: Tensor, prior_mean_cv: Tensor, prior_cov_cvv: Tensor, colour_b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of the used blocks' windows; a few prior samples of the whole brain fill thin windows."""
    count_b = layer.count_ij[used]
    mean = layer.sum_ijv[used] / count_b.clamp(min=1.0)[:, None]
    cov = (
        layer.product_ijvv[used] / count_b.clamp(min=1.0)[:, None, None] - mean[:, :, None] * mean[:, None, :]
    )
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
