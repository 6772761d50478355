"""From an anatomy and a protocol to clean images.

White matter: for each fibre population water in axons (a thin cylinder, almost a stick) and around them
(a zeppelin), and a little free water. Grey matter: two isotropic pools and a weak radial one. CSF: free
water. Together the decay with b is far from one exponential. The constants are the anatomy's :class:`Microstructure`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..gradients import Gradients
from .anatomy import Anatomy, brain_anatomy
from .geometry import geometric_anatomy
from .microstructure import WHITE_B0
from .motion import move_volumes

Array = NDArray[np.float32]

Family = Literal["brain", "geometric"]
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
    bias_field: float | None = None,
    family: Family = "brain",
    lesions: bool = True,
    motion: float = 0.0,
) -> Phantom:
    """Draw an anatomy and compute its clean signal.

    Parameters
    ----------
    gradients
        Protocol; V volumes.
    seed, shape, voxel_size, bias_field
        As for :func:`brain_anatomy` and :func:`geometric_anatomy`; what is not given is chosen there.
    family
        ``"brain"`` or ``"geometric"``: which of the two draws the anatomy.
    lesions
        Whether a brain has lesions; the geometric family has none.
    motion
        Misalignment of the volumes in mm, as for :func:`move_volumes`; tissues and mask stay where they are.

    Raises
    ------
    UsageError
        An unknown family, or a grid without voxels.
    """
    if family == "brain":
        bias = 0.15 if bias_field is None else bias_field
        anatomy = brain_anatomy(
            seed=seed, shape=shape, voxel_size=voxel_size, bias_field=bias, lesions=lesions
        )
    elif family == "geometric":
        anatomy = geometric_anatomy(seed=seed, shape=shape, voxel_size=voxel_size, bias_field=bias_field)
    else:
        raise UsageError(f"expected a family of {get_args(Family)}, found {family!r}")
    clean_xyzv = clean_signal(anatomy, gradients)
    if motion:
        voxel_mm, rng = float(anatomy.affine[1, 1]), np.random.default_rng([seed, 5])
        clean_xyzv = move_volumes(clean_xyzv, gradients, voxel_mm, motion, rng)
    return Phantom(
        clean_xyzv=clean_xyzv,
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
    water = anatomy.microstructure
    free_n = np.exp(-b_n * np.float32(water.free))
    fibres_n = _fibres(anatomy, b_n, g)
    white_n = (1 - water.free_share) * fibres_n + water.free_share * free_n
    across_n = (anatomy.radial_n3 @ g) ** 2
    fast, slow, radial = water.grey_shares
    grey_n = (
        fast * np.exp(-b_n * np.float32(water.grey_fast))
        + slow * np.exp(-b_n * np.float32(water.grey_slow))
        + radial * _cylinder(b_n, across_n, water.grey_along, water.grey_across)
    )
    lesion_n = water.lesion_fibres * fibres_n + (1 - water.lesion_fibres) * np.exp(
        -b_n * np.float32(water.lesion_free)
    )
    total_n = (
        WHITE_B0 * anatomy.white_n * white_n
        + water.grey_b0 * anatomy.grey_n * grey_n
        + water.csf_b0 * anatomy.csf_n * free_n
        + water.lesion_b0 * anatomy.lesion_n * lesion_n
    )
    return (total_n * anatomy.brightness_n).astype(np.float32)


def _fibres(anatomy: Anatomy, b_n: Array, g: Array) -> Array:
    """Attenuation of the fibre populations, (N,)."""
    water, spread = anatomy.microstructure, anatomy.dispersion_n
    total_n = np.zeros_like(b_n)
    for k in range(anatomy.fractions_nk.shape[1]):
        along_n = (anatomy.directions_nk3[:, k] @ g) ** 2
        axons_n = _cylinder(b_n, along_n, water.axonal_along, water.axonal_across, spread)
        around_n = _cylinder(b_n, along_n, water.around_along, water.around_across, spread)
        mixed_n = anatomy.axonal_n * axons_n + (1 - anatomy.axonal_n) * around_n
        total_n += anatomy.fractions_nk[:, k] * mixed_n
    return total_n


def _cylinder(b_n: Array, cos2_n: Array, along: float, across: float, spread_n: Array | float = 0.0) -> Array:
    """Attenuation of an axially symmetric Gaussian pool; ``cos2_n`` = (axis . gradient)².

    Fibres that spread out are one mean tensor, as the extra-axonal water of NODDI is (Zhang 2012,
    doi:10.1016/j.neuroimage.2012.03.072, where tau = 1 - ``spread_n``).
    """
    difference = np.float32(along - across)
    across_n = np.float32(across) + difference * spread_n / 2
    return np.exp(-b_n * (across_n + difference * (1 - np.float32(1.5) * spread_n) * cos2_n))
