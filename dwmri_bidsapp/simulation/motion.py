"""Volumes out of line: what is left of head motion and eddy currents after, or without, correction."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import UsageError
from ..gradients import Gradients

Array = NDArray[np.float32]

_DEGREES_PER_MM = 0.5
_HEAD_RADIUS_MM = 80.0
_PHASE_AXIS = 1


def move_volumes(
    clean_xyzv: Array, gradients: Gradients, voxel_mm: float, motion_mm: float, rng: np.random.Generator
) -> Array:
    """Shift, turn and distort each volume a little.

    Parameters
    ----------
    clean_xyzv : (X, Y, Z, V) float32
        Volumes without noise.
    gradients
        Protocol; the eddy-like distortion follows the direction and the b-value.
    voxel_mm
        Edge of the voxels.
    motion_mm
        Standard deviation of the shift along each axis; turns have half a degree per mm, and eddy-like stretch and
        shear along the second axis move the border of a head by as much at the highest b-value. 0 changes nothing.
    rng
        Source of the motion.

    Returns
    -------
    (X, Y, Z, V) float32
        The first volume stays where it is; nothing is below 0.

    Raises
    ------
    UsageError
        A negative motion.
    """
    if motion_mm < 0:
        raise UsageError(f"expected a motion of 0 mm or more, found {motion_mm:g}")
    moved_xyzv = clean_xyzv.copy()
    if motion_mm == 0:
        return moved_xyzv
    eddy_33 = rng.normal(0, motion_mm / _HEAD_RADIUS_MM, (3, 3))
    middle = (np.array(clean_xyzv.shape[:3]) - 1) / 2
    for volume in range(1, gradients.n_volumes):
        turn = np.deg2rad(rng.normal(0, _DEGREES_PER_MM * motion_mm, 3))
        matrix = np.eye(3) + np.cross(np.eye(3), turn)
        strength = gradients.bvals[volume] / max(gradients.bvals.max(), 1.0)
        matrix[_PHASE_AXIS] += strength * (eddy_33 @ gradients.bvecs[volume])
        shift = rng.normal(0, motion_mm / voxel_mm, 3)
        moved_xyzv[..., volume] = ndimage.affine_transform(
            clean_xyzv[..., volume], matrix, middle - matrix @ middle + shift, order=3, mode="constant"
        )
    # cubic interpolation overshoots at the brain's edge, and magnitudes are not negative
    return np.maximum(moved_xyzv, 0, out=moved_xyzv)
