"""From the frame of FSL's b-vectors to the axes of the world, and colours of directions.

FSL (and so BIDS) stores directions along the axes of the image, with x flipped where the affine has a
positive determinant. Red, green and blue mean left-right, front-back and up-down in the *world*.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fsl_to_world(vectors_n3: NDArray, affine: NDArray) -> NDArray:
    """Turn directions of the FSL frame into right-anterior-superior ones.

    Parameters
    ----------
    vectors_n3 : (..., 3) array
        Directions as a .bvec file has them, or eigenvectors of a tensor fitted with them.
    affine : (4, 4) array
        From voxels to mm. Voxel sizes do not matter; of a sheared one the nearest rotation is taken.

    Returns
    -------
    (..., 3) array
        Of the same lengths.
    """
    linear = np.asarray(affine, dtype=np.float64)[:3, :3]
    flip = np.diag([-1.0 if np.linalg.det(linear) > 0 else 1.0, 1.0, 1.0])
    U, _, Vt = np.linalg.svd(linear / np.linalg.norm(linear, axis=0))
    return np.asarray(vectors_n3) @ (U @ Vt @ flip).T


def colour_fa(fa_xyz: NDArray, direction_xyz3: NDArray, brightness: float = 1.25) -> NDArray[np.float32]:
    """Return red, green, blue in 0..1: the world direction, as bright as the anisotropy.

    Parameters
    ----------
    fa_xyz : (X, Y, Z) array
        Fractional anisotropy.
    direction_xyz3 : (X, Y, Z, 3) array
        Principal direction along the axes of the world; its sign does not matter.
    brightness
        Factor on the anisotropy, because an FA of 0.8 is as high as white matter gets.
    """
    fa = np.clip(np.nan_to_num(fa_xyz) * brightness, 0, 1)
    return (fa[..., None] * np.abs(np.nan_to_num(direction_xyz3))).clip(0, 1).astype(np.float32)
