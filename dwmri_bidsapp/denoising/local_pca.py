"""Overcomplete local PCA: the estimate that looks at the measured value itself.

Overlapping windows; in each, the components of the covariance over volumes that stand out of the noise are kept. A
voxel's estimate is the mean over all windows that hold it. Its errors come from the voxel's own noise, those of the
blind network from the noise of other volumes: they differ, so the mean of both is better than either.

Axes: ``w`` window, ``s`` voxel (sample) of a window, ``v`` volume, ``n`` voxel of the mask.

References
----------
Manjon et al. 2013, Diffusion weighted image denoising using overcomplete local PCA, doi:10.1371/journal.pone.0073021;
Gavish & Donoho 2017, Optimal shrinkage of singular values, doi:10.1109/TIT.2017.2653801 (edge of the bulk).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .windows import bulk_edge, cut_windows, eigh, window_moments

SMALLEST_EDGE = 5
WINDOWS_AT_ONCE = 256


def window_edge(n_volumes: int) -> int:
    """Edge of the smallest odd cube that holds at least as many voxels as there are volumes, from 5 up."""
    edge = SMALLEST_EDGE
    while edge**3 < n_volumes:
        edge += 2
    return edge


def overcomplete_local_pca(
    snr_vxyz: Tensor, mask_xyz: Tensor, *, device: str | torch.device = "cpu"
) -> Tensor:
    """Denoise all volumes together by local PCA with known noise.

    Parameters
    ----------
    snr_vxyz
        (V, X, Y, Z) data in units of the noise standard deviation.
    mask_xyz
        (X, Y, Z) bool; only voxels inside are used and estimated.
    device
        Where the eigendecompositions run.

    Returns
    -------
    Tensor
        (V, N) float16 estimates of the voxels of the mask, in the order of ``mask_xyz.nonzero()``.
    """
    n_volumes = snr_vxyz.shape[0]
    edge = window_edge(n_volumes)
    data_nv = torch.stack([volume[mask_xyz] for volume in snr_vxyz], dim=1).to(device)
    total_nv = torch.zeros(data_nv.shape, device=device)
    weight_n = torch.zeros(len(data_nv), device=device)
    windows_ws = cut_windows(mask_xyz, edge, edge // 2)
    for index_ws in windows_ws.to(device).split(WINDOWS_AT_ONCE):
        inside_ws = index_ws >= 0
        estimate_wsv, rank_w = _project(data_nv, index_ws)
        # simple windows are the better witnesses (Manjon 2013, eq. 6)
        weight_w = 1.0 / (1.0 + rank_w)
        index = index_ws[inside_ws]
        total_nv.index_add_(0, index, (estimate_wsv * weight_w[:, None, None])[inside_ws])
        weight_n.index_add_(0, index, weight_w[:, None].expand_as(index_ws)[inside_ws])
    return (total_nv.div_(weight_n[:, None])).half().T.contiguous().cpu()


def _project(data_nv: Tensor, index_ws: Tensor) -> tuple[Tensor, Tensor]:
    """Samples projected on the components above the bulk of the noise, and the number of these."""
    centred_wsv, mean_wv, cov_wvv, count_w = window_moments(data_nv, index_ws)
    values_wv, vectors_wvv = eigh(cov_wvv)
    signal_wv = (values_wv > bulk_edge(data_nv.shape[1] / count_w)[:, None]).float()
    projected = (centred_wsv @ (vectors_wvv * signal_wv[:, None, :])) @ vectors_wvv.mT
    return mean_wv[:, None] + projected, signal_wv.sum(dim=1)
