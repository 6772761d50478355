"""Mean kurtosis with DIPY, for protocols of two shells and more.

Axis letters: ``dwi_xyzv`` is (X, Y, Z, V).
"""

from __future__ import annotations

import numpy as np
from dipy.reconst.dki import DiffusionKurtosisModel
from numpy.typing import NDArray

from ..errors import BadDataError
from ..gradients import Gradients, count_directions
from .tensor import dipy_table, signal_floor

Array = NDArray[np.float32]

_MIN_SHELLS = 2
# 15 unknowns of the kurtosis tensor, which follow from different directions, and 6 of the diffusion tensor
_MIN_DIRECTIONS = 15
_MIN_VOLUMES = 21
_LARGEST = 3.0


def has_kurtosis(gradients: Gradients) -> bool:
    """Whether a protocol has what a kurtosis tensor needs: b=0, and 21 volumes of 15 directions on two more shells."""
    shells = np.unique(gradients.shell[gradients.dwi])
    return bool(
        gradients.b0.any()
        and len(shells) >= _MIN_SHELLS
        and gradients.dwi.sum() >= _MIN_VOLUMES
        and count_directions(gradients) >= _MIN_DIRECTIONS
    )


def mean_kurtosis(dwi_xyzv: Array, gradients: Gradients, mask_xyz: NDArray[np.bool_]) -> Array:
    """Fit the kurtosis tensor by weighted least squares (Jensen 2005, doi:10.1002/mrm.20508).

    Parameters
    ----------
    dwi_xyzv : (X, Y, Z, V) float32
        Signal.
    gradients
        Protocol; V volumes.
    mask_xyz : (X, Y, Z) bool
        Where to fit.

    Returns
    -------
    (X, Y, Z) float32
        Between 0 and 3, as free water and noise otherwise give anything; 0 outside the mask.

    Raises
    ------
    BadDataError
        A protocol of one shell, or an empty mask.
    """
    if not has_kurtosis(gradients) or not mask_xyz.any():
        raise BadDataError(
            f"expected b=0, {_MIN_VOLUMES} volumes of {_MIN_DIRECTIONS} directions on two more shells, and a mask with "
            "voxels for a kurtosis"
        )
    signal_nv = dwi_xyzv[mask_xyz]
    floor = signal_floor(signal_nv, gradients.b0)
    fit = DiffusionKurtosisModel(dipy_table(gradients), fit_method="WLS").fit(np.maximum(signal_nv, floor))
    kurtosis_xyz = np.zeros(mask_xyz.shape, dtype=np.float32)
    kurtosis_xyz[mask_xyz] = np.clip(
        np.nan_to_num(fit.mk(min_kurtosis=0, max_kurtosis=_LARGEST)), 0, _LARGEST
    )
    return kurtosis_xyz
