"""What stands in each voxel: tissues, fibres and their properties, drawn from a seed.

This is the family of brains, which weights are judged on and never trained on (that is :mod:`.geometry`). They
come from the MNI152 (ICBM 2009a) tissue maps that nilearn carries in its package. These are
averages of 152 people, and therefore blurred: a random smooth deformation and a random sharpening make one
person's anatomy out of them, the same one on every grid.

Frames: template points are in mm, RAS. The image is stored LAS (the first axis runs to the left),
where FSL's b-vectors are along the image axes without a flip; fibre directions are along the image axes.

Axis letters: N voxels of the mask, K fibre populations, T tissues, M points.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import UsageError
from .fields import SmoothField, SmoothVectorField, distance_to_curves, unit
from .microstructure import Microstructure

Array = NDArray[np.float32]

_BRAIN_CENTRE_MM = np.array([0.0, -16.5, 5.0])
_BRAIN_EXTENT_MM = np.array([151.0, 187.0, 158.0])
_SHARPNESS = 3.0
_FOLD_STRENGTH = 1.2
_LESIONS = 6


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Contents of the voxels of a mask.

    Attributes
    ----------
    mask_xyz : (X, Y, Z) bool
        Voxels with tissue; N of them.
    affine : (4, 4) float
        From voxels to mm.
    white_n, grey_n, csf_n, lesion_n : (N,) float32
        Fractions of the voxel's volume.
    directions_nk3 : (N, K, 3) float32
        Unit directions of the fibre populations along the image axes.
    fractions_nk : (N, K) float32
        Shares of the populations in the white matter, summing to 1.
    radial_n3 : (N, 3) float32
        Unit direction across the cortex.
    axonal_n : (N,) float32
        Share of the white matter's water inside axons.
    diffusivity_n : (N,) float32
        Factor on all diffusivities, about 1.
    brightness_n : (N,) float32
        Factor on all signals, about 1: bias field and texture.
    dispersion_n : (N,) or (1,) float32
        How far the fibres of a population spread around their direction: 1 - mean squared cosine, 0 to 2/3.
    microstructure : Microstructure
        Constants of the signal model.
    """

    mask_xyz: NDArray[np.bool_]
    affine: NDArray[np.float64]
    white_n: Array
    grey_n: Array
    csf_n: Array
    lesion_n: Array
    directions_nk3: Array
    fractions_nk: Array
    radial_n3: Array
    axonal_n: Array
    diffusivity_n: Array
    brightness_n: Array
    dispersion_n: Array = field(default_factory=lambda: np.zeros(1, dtype=np.float32))
    microstructure: Microstructure = field(default_factory=Microstructure)

    def to_volume(self, values_n: Array) -> Array:
        """Put values of the mask's voxels into a volume of zeros, (N,) to (X, Y, Z)."""
        volume_xyz = np.zeros(self.mask_xyz.shape, dtype=np.float32)
        volume_xyz[self.mask_xyz] = values_n
        return volume_xyz


def brain_anatomy(
    *,
    seed: int,
    voxel_size: float | None = None,
    shape: tuple[int, int, int] | None = None,
    bias_field: float = 0.15,
    lesions: bool = True,
) -> Anatomy:
    """Draw one person's brain.

    Parameters
    ----------
    seed
        The person; the same on every grid.
    voxel_size
        Edge of the cubic voxels in mm (2 if ``shape`` is not given either).
    shape
        Voxels along each axis. Without it: the whole brain. With it but without ``voxel_size``: the whole
        brain in that many voxels. With both: a box of that size around the middle of the brain.
    bias_field
        Standard deviation of the smooth bias field; 0 for none.
    lesions
        Put lesions into the white matter; everything else stays as it is without them.

    Raises
    ------
    UsageError
        A grid without voxels.
    """
    shape, affine = _choose_grid(shape, voxel_size)
    streams = iter(np.random.default_rng(np.random.SeedSequence([seed, 1])).spawn(8))
    grid_m3 = _grid_points(shape, affine)
    points_m3 = _deform(grid_m3, next(streams))
    tissues_mt = _sample_tissues(points_m3, float(affine[1, 1]), next(streams))
    mask_m = tissues_mt.sum(axis=1) > 0.5
    if not mask_m.any():
        raise UsageError(f"expected brain in the grid of {shape} voxels, found none", "choose more voxels")
    points_n3 = points_m3[mask_m]
    tissues_nt = tissues_mt[mask_m]
    vessel_n = _draw_vessels(points_n3, float(affine[1, 1]), next(streams))
    white_n, grey_n, csf_n = (tissues_nt * (1 - vessel_n)[:, None]).T
    lesion_rng = next(streams)
    lesion_n = np.zeros_like(white_n)
    if lesions:
        lesion_n = white_n * _draw_lesions(points_n3, float(affine[1, 1]), lesion_rng)
    directions_nk3, fractions_nk = _draw_fibres(points_n3, next(streams))
    directions_nk3[..., 0] *= -1  # from RAS to the image axes
    rng = next(streams)
    return Anatomy(
        mask_xyz=mask_m.reshape(shape),
        affine=affine,
        white_n=white_n - lesion_n,
        grey_n=grey_n,
        csf_n=csf_n + vessel_n * tissues_nt.sum(axis=1),
        lesion_n=lesion_n,
        directions_nk3=directions_nk3,
        fractions_nk=fractions_nk,
        radial_n3=slope_of_white_matter(tissues_mt[:, 0].reshape(shape))[mask_m],
        axonal_n=np.clip(0.55 + 0.08 * SmoothField(20, rng)(points_n3), 0.3, 0.75),
        diffusivity_n=np.clip(1 + 0.05 * SmoothField(12, rng)(points_n3), 0.8, 1.2),
        brightness_n=np.exp(
            bias_field * SmoothField(60, rng)(points_n3) + 0.04 * SmoothField(8, rng)(points_n3)
        ),
    )


@functools.lru_cache(maxsize=1)
def _load_template() -> Array:
    """Load (white matter, grey matter, brain) at 1 mm, (3, X, Y, Z); reads package files only."""
    # Imported here because it takes 1.5 s, which users who simulate nothing should not pay.
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    white, grey, t1 = (
        load(resolution=1).get_fdata(dtype=np.float32)
        for load in (load_mni152_wm_template, load_mni152_gm_template, load_mni152_template)
    )
    return np.stack([white, grey, (t1 > 0.2).astype(np.float32)])


_TEMPLATE_ORIGIN_MM = np.array([-98.0, -134.0, -72.0])


def _choose_grid(
    shape: tuple[int, int, int] | None, voxel_size: float | None
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Return the grid and its affine (LAS) around the middle of the brain."""
    if voxel_size is not None and not voxel_size > 0:
        raise UsageError(f"expected a grid of voxels above 0 mm, found {voxel_size:g} mm")
    if shape is None:
        voxel_size = 2.0 if voxel_size is None else voxel_size
        x, y, z = np.ceil(_BRAIN_EXTENT_MM / voxel_size).astype(int).tolist()
        shape = (x, y, z)
    elif voxel_size is None:
        voxel_size = float((_BRAIN_EXTENT_MM / shape).max())
    if min(shape) < 1:
        raise UsageError(f"expected a grid with voxels, found {shape} of {voxel_size} mm")
    affine = np.diag([-voxel_size, voxel_size, voxel_size, 1.0])
    affine[:3, 3] = _BRAIN_CENTRE_MM - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return shape, affine


def _grid_points(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> Array:
    """Centres of the voxels in mm, (M, 3)."""
    index_3m = np.indices(shape, dtype=np.float32).reshape(3, -1)
    return (index_3m.T @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)


def _deform(points_m3: Array, rng: np.random.Generator) -> Array:
    """Map the person's space to the template's: size, tilt, and two scales of bending."""
    turn = np.eye(3) + np.cross(np.eye(3), rng.normal(0, 0.03, 3))
    scale = rng.uniform(1.02, 1.10, 3)  # above 1 the brain gets smaller, and stays in the field of view
    centred = (points_m3 - _BRAIN_CENTRE_MM) @ (turn * scale)
    warped = centred + _BRAIN_CENTRE_MM
    warped += 3.0 * SmoothVectorField(50, rng)(points_m3) + 1.5 * SmoothVectorField(20, rng)(points_m3)
    return warped.astype(np.float32)


def _sample_tissues(points_m3: Array, voxel_mm: float, rng: np.random.Generator) -> Array:
    """Volume fractions of white matter, grey matter and CSF, (M, 3); less than 1 at the brain's edge."""
    folds = [SmoothField(scale, rng) for scale in (7, 7)]
    offsets = voxel_mm * (np.indices((2, 2, 2)).reshape(3, -1).T / 2 - 0.25)
    total_mt = np.zeros((len(points_m3), 3), dtype=np.float32)
    for offset in offsets.astype(np.float32):
        total_mt += _sharp_tissues(points_m3 + offset, folds)
    return total_mt / np.float32(len(offsets))


def _sharp_tissues(points_m3: Array, folds: list[SmoothField]) -> Array:
    """Tissue shares at points: the template's probabilities, pushed to one side by the folds."""
    at = (points_m3 - _TEMPLATE_ORIGIN_MM.astype(np.float32)).T
    white, grey, brain = (
        ndimage.map_coordinates(volume, at, order=1, output=np.float32) for volume in _load_template()
    )
    shares_mt = np.zeros((len(points_m3), 3), dtype=np.float32)
    inside = brain > 0.5
    probability = np.stack([white, grey, 1 - white - grey], axis=1)[inside]
    score = _SHARPNESS * np.log(np.clip(probability, 1e-3, 1))
    for tissue, fold in enumerate(folds):
        score[:, tissue] += _FOLD_STRENGTH * fold(points_m3[inside])
    score = np.exp(score - score.max(axis=1, keepdims=True))
    shares_mt[inside] = score / score.sum(axis=1, keepdims=True)
    return shares_mt


def _draw_vessels(points_n3: Array, voxel_mm: float, rng: np.random.Generator) -> Array:
    """Fraction of thin tubes of fluid, 1 mm in radius."""
    distance, _ = distance_to_curves(SmoothField(24, rng), SmoothField(24, rng), points_n3)
    return tube_share(distance, 1.0, voxel_mm)


def tube_share(distance: Array, radius_mm: float, voxel_mm: float) -> Array:
    """Share of a voxel that a tube takes, from the distance to its axis (an approximation)."""
    filled = np.clip((radius_mm - distance) / voxel_mm + 0.5, 0, 1)
    most = min(1.0, np.pi * radius_mm**2 / voxel_mm**2)
    return (most * filled).astype(np.float32)


def _draw_lesions(points_n3: Array, voxel_mm: float, rng: np.random.Generator) -> Array:
    """Share of the white matter that is lesioned: a few balls of 2.5 to 6 mm radius."""
    white = _load_template()[0]
    candidates = np.argwhere(white > 0.9)
    centres = candidates[rng.integers(len(candidates), size=_LESIONS)] + _TEMPLATE_ORIGIN_MM
    radii = rng.uniform(2.5, 6.0, size=_LESIONS)
    shape_noise = 0.25 * SmoothField(5, rng)(points_n3)
    lesion_n = np.zeros(len(points_n3), dtype=np.float32)
    for centre, radius in zip(centres, radii, strict=True):
        distance = np.linalg.norm(points_n3 - centre.astype(np.float32), axis=1)
        inside = np.clip((radius * (1 + shape_noise) - distance) / voxel_mm + 0.5, 0, 1)
        lesion_n = np.maximum(lesion_n, inside)
    return lesion_n


def _draw_fibres(points_n3: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Directions (RAS) and shares of three fibre systems and of thin tracts, (N, 3, 3) and (N, 3).

    Each system has a territory with a sharp border; where territories overlap, fibres cross.
    """
    directions_nk3 = np.stack(
        [_commissural(points_n3), _projection(points_n3), _association(points_n3)], axis=1
    )
    for k in range(3):
        directions_nk3[:, k] = unit(directions_nk3[:, k] + 0.3 * SmoothVectorField(25, rng)(points_n3))
    score_nk = _territory_priors(points_n3)
    score_nk += 0.8 * np.stack([SmoothField(14, rng)(points_n3) for _ in range(3)], axis=1)
    present_nk = (score_nk > 0) | (score_nk == score_nk.max(axis=1, keepdims=True))
    share_nk = np.stack([np.exp(0.5 * SmoothField(20, rng)(points_n3)) for _ in range(3)], axis=1)
    fractions_nk = np.where(present_nk, share_nk, 0)
    fractions_nk /= fractions_nk.sum(axis=1, keepdims=True)
    for radius_mm in (1.5, 2.5):
        distance, tangent = distance_to_curves(SmoothField(18, rng), SmoothField(18, rng), points_n3)
        thin = distance < radius_mm
        directions_nk3[thin, 2] = tangent[thin]
        fractions_nk[thin] = 0.2 * fractions_nk[thin] + np.array([0, 0, 0.8], dtype=np.float32)
    return directions_nk3, fractions_nk


def _commissural(points_n3: Array) -> Array:
    """Left-right through the midline, bending up to the crown and out to both poles."""
    x, y, _ = points_n3.T
    to_the_poles = 1.2 * np.clip((y + 10) / 50, -1.2, 1.2) * np.tanh(x / 15)
    return unit(np.stack([np.ones_like(x), to_the_poles, 0.024 * x], axis=1))


def _projection(points_n3: Array) -> Array:
    """A fan that rises from the brain stem to the whole cortex."""
    return unit(points_n3 - np.array([0, -25, -70], dtype=np.float32))


def _association(points_n3: Array) -> Array:
    """Front-back arches around the insula."""
    x, y, z = points_n3.T
    return unit(np.stack([0.15 * np.abs(x), -(z - 2), y + 15], axis=1))


def _territory_priors(points_n3: Array) -> Array:
    """Where each system is likely (above 0), (N, 3)."""
    x, _, z = np.abs(points_n3[:, 0]), points_n3[:, 1], points_n3[:, 2]
    commissural = 1.2 - np.abs(z - 18 - 0.012 * x**2) / 14 - x / 60
    projection = 1.1 - np.abs(x - 22) / 16
    association = 1.1 - np.abs(x - 36) / 14
    return np.stack([commissural, projection, association], axis=1)


def slope_of_white_matter(white_xyz: Array) -> Array:
    """Unit direction of the steepest change of white matter, (M, 3): across the cortex."""
    slopes = [ndimage.gaussian_filter1d(white_xyz, 1.0, axis=axis, order=1) for axis in range(3)]
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        for other in others:
            slopes[axis] = ndimage.gaussian_filter1d(slopes[axis], 1.0, axis=other)
    return unit(np.stack(slopes, axis=-1).reshape(-1, 3))
