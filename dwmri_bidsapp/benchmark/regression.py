"""Leave-one-out regression: each volume from all the others, by least squares over the whole mask.

What Patch2Self is built on (Fadnavis 2020, arXiv:2011.01355), without sketching: exact, and all volumes from one matrix
of inner products.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Array = NDArray[np.float32]

_CHUNK = 50_000


def leave_one_out(samples_nv: NDArray[np.floating]) -> Array:
    """Predict each column from all other columns and a constant.

    With the inverse P of the Gram matrix, the residual of column v is (X P)_v / P_vv: one inverse serves
    all columns, and none takes part in its own prediction's fit.

    Parameters
    ----------
    samples_nv : (N, V)
        N voxels, V volumes; N must be above V.

    Returns
    -------
    (N, V) float32
    """
    n_voxels, n_volumes = samples_nv.shape
    scale_v = np.sqrt(np.mean(np.square(samples_nv, dtype=np.float64), axis=0))
    scale_v = np.append(np.where(scale_v > 0, scale_v, 1), 1.0)
    gram = np.zeros((n_volumes + 1, n_volumes + 1))
    for design in _chunks(samples_nv, scale_v):
        gram += design.T @ design
    precision = linalg.pinvh(gram)
    weights = precision[:, :n_volumes] / np.diag(precision)[:n_volumes]
    predicted_nv = np.empty(samples_nv.shape, dtype=np.float32)
    for start, design in zip(range(0, n_voxels, _CHUNK), _chunks(samples_nv, scale_v), strict=True):
        residual = design @ weights
        predicted_nv[start : start + _CHUNK] = (design[:, :n_volumes] - residual) * scale_v[:n_volumes]
    return predicted_nv


def _chunks(samples_nv: NDArray[np.floating], scale_v: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Some voxels at a time, scaled, with a column of ones."""
    return [
        np.append(part, np.ones((len(part), 1)), axis=1) / scale_v
        for part in (samples_nv[i : i + _CHUNK] for i in range(0, len(samples_nv), _CHUNK))
    ]
