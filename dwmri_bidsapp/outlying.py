"""Volumes that are unlike the others of their shell: motion, dropout, spikes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LEAST_VOLUMES = 6
# Medians of few volumes are uncertain, and their distances have long tails: the limit is this share wider.
_FEW_VOLUMES = 12
_FLOOR = 0.01  # of the value itself: what is alike to 1% has no outliers


def outlying_volumes(
    values_mv: NDArray[np.floating], shell_v: NDArray[np.integer], limit: float = 5.0
) -> NDArray[np.bool_]:
    """Tell which volumes have a value far from the others of their shell.

    Parameters
    ----------
    values_mv : (M, V)
        Measures of each volume, such as its mean signal and its correlation with neighbours; finite.
    shell_v : (V,)
        Shell of each volume; shells of fewer than six volumes have no outliers.
    limit
        In robust standard deviations (1.4826 times the median absolute deviation); more in small shells.

    Returns
    -------
    (V,) bool
    """
    far_v = np.zeros(values_mv.shape[1], dtype=bool)
    for shell in np.unique(shell_v):
        members = np.flatnonzero(shell_v == shell)
        if len(members) < _LEAST_VOLUMES:
            continue
        shell_mv = values_mv[:, members]
        middle_m = np.median(shell_mv, axis=1, keepdims=True)
        distance_mv = np.abs(shell_mv - middle_m)
        spread_m = 1.4826 * np.median(distance_mv, axis=1, keepdims=True)
        widened = limit * (1 + _FEW_VOLUMES / len(members))
        far_v[members] = (distance_mv > widened * np.maximum(spread_m, _FLOOR * np.abs(middle_m))).any(axis=0)
    return far_v
