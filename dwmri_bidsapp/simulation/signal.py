"""From an anatomy and a protocol to clean images.

White matter: for each fibre population water in axons (a thin cylinder, almost a stick) and around them
(a zeppelin), and a little free water. Grey matter: two isotropic pools and a weak radial one. CSF: free
water. Together the decay with b is far from one exponential. Diffusivities are in mm²/s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..gradients import Gradients
from .anatomy import Anatomy, brain_anatomy

Array = NDArray[np.float32]

WHITE_B0 = 1000.0
"""b=0 signal of white matter; the other tissues follow the contrast of T2."""

_B0_SIGNAL = {"white": WHITE_B0, "grey": 1.3 * WHITE_B0, "csf": 3.2 * WHITE_B0, "lesion": 1.8 * WHITE_B0}
_FREE_WATER = 3.0e-3
_FREE_WATER_SHARE = 0.04
_CHUNK = 8


@dataclass(frozen=True, eq=False)
class Phantom:
    """A simulated run without noise.

    Attributes
    ----------
    clean_xyzv : (X, Y, Z, V) float32
        Noise-free signal, 0 outside the mask; 1000 is the b=0 signal of white matter, but for the bias field.
    mask_xyz : (X, Y, Z) bool
        Brain.
    gradients : Gradients
        Protocol; V volumes.
    affine : (4, 4) float
        From voxels to mm (LAS, so that b-vectors are along the image axes).
    white_xyz, grey_xyz, csf_xyz, lesion_xyz : (X, Y, Z) float32
        Fractions of the voxel's volume.
    seed : int
        The anatomy's seed.
    """

    clean_xyzv: Array
    mask_xyz: NDArray[np.bool_]
    gradients: Gradients
    affine: NDArray[np.float64]
    white_xyz: Array
    grey_xyz: Array
    csf_xyz: Array
    lesion_xyz: Array
    seed: int

    @property
    def white_mask_xyz(self) -> NDArray[np.bool_]:
        """Voxels of almost pure white matter."""
        return self.white_xyz > 0.9


def simulate_phantom(
    *,
    gradients: Gradients,
    seed: int,
    shape: tuple[int, int, int] | None = None,
    voxel_size: float | None = None,
    bias_field: float = 0.15,
) -> Phantom:
    """Draw a brain and compute its clean signal; see :func:`brain_anatomy` for the parameters."""
    anatomy = brain_anatomy(seed=seed, shape=shape, voxel_size=voxel_size, bias_field=bias_field)
    return Phantom(
        clean_xyzv=clean_signal(anatomy, gradients),
        mask_xyz=anatomy.mask_xyz,
        gradients=gradients,
        affine=anatomy.affine,
        white_xyz=anatomy.to_volume(anatomy.white_n),
        grey_xyz=anatomy.to_volume(anatomy.grey_n),
        csf_xyz=anatomy.to_volume(anatomy.csf_n),
        lesion_xyz=anatomy.to_volume(anatomy.lesion_n),
        seed=seed,
    )


def clean_signal(anatomy: Anatomy, gradients: Gradients) -> Array:
    """Compute the noise-free signal of all volumes.

    Returns
    -------
    (X, Y, Z, V) float32
        Zero outside the mask.
    """
    clean_xyzv = np.zeros((*anatomy.mask_xyz.shape, gradients.n_volumes), dtype=np.float32)
    for start in range(0, gradients.n_volumes, _CHUNK):
        volumes = range(start, min(start + _CHUNK, gradients.n_volumes))
        columns = [_one_volume(anatomy, gradients.bvals[v], gradients.bvecs[v]) for v in volumes]
        # Writing several volumes at once is several times faster: the volume axis is the last one.
        clean_xyzv[anatomy.mask_xyz, start : start + len(columns)] = np.stack(columns, axis=1)
    return clean_xyzv


def _one_volume(anatomy: Anatomy, b: float, direction: NDArray[np.float64]) -> Array:
    """Signal of one volume in the mask, (N,)."""
    b_n = np.float32(b) * anatomy.diffusivity_n
    g = direction.astype(np.float32)
    free_n = np.exp(-b_n * np.float32(_FREE_WATER))
    fibres_n = _fibres(anatomy, b_n, g)
    white_n = (1 - _FREE_WATER_SHARE) * fibres_n + _FREE_WATER_SHARE * free_n
    across_n = (anatomy.radial_n3 @ g) ** 2
    grey_n = (
        0.45 * np.exp(-b_n * np.float32(1.1e-3))
        + 0.25 * np.exp(-b_n * np.float32(0.35e-3))
        + 0.30 * _cylinder(b_n, across_n, 1.1e-3, 0.65e-3)
    )
    lesion_n = 0.3 * fibres_n + 0.7 * np.exp(-b_n * np.float32(1.4e-3))
    total_n = (
        _B0_SIGNAL["white"] * anatomy.white_n * white_n
        + _B0_SIGNAL["grey"] * anatomy.grey_n * grey_n
        + _B0_SIGNAL["csf"] * anatomy.csf_n * free_n
        + _B0_SIGNAL["lesion"] * anatomy.lesion_n * lesion_n
    )
    return (total_n * anatomy.brightness_n).astype(np.float32)


def _fibres(anatomy: Anatomy, b_n: Array, g: Array) -> Array:
    """Attenuation of the fibre populations, (N,)."""
    total_n = np.zeros_like(b_n)
    for k in range(anatomy.fractions_nk.shape[1]):
        along_n = (anatomy.directions_nk3[:, k] @ g) ** 2
        # Axons are not quite parallel, hence not quite sticks.
        axons_n = _cylinder(b_n, along_n, 1.9e-3, 0.2e-3)
        around_n = _cylinder(b_n, along_n, 1.6e-3, 0.8e-3)
        mixed_n = anatomy.axonal_n * axons_n + (1 - anatomy.axonal_n) * around_n
        total_n += anatomy.fractions_nk[:, k] * mixed_n
    return total_n


def _cylinder(b_n: Array, cos2_n: Array, along: float, across: float) -> Array:
    """Attenuation of an axially symmetric Gaussian pool; ``cos2_n`` = (axis . gradient)²."""
    return np.exp(-b_n * (np.float32(across) + np.float32(along - across) * cos2_n))
