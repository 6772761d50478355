"""A second family of anatomies, made of random geometry alone: nothing in it comes from a brain.

It is the family that weights may be trained on, so it varies from seed to seed more than brains do; the
brains of :mod:`.anatomy` are kept for judging. A random smooth head holds folded ribbons, sheets, blobs, cavities and
vessels (painted one over the other on a grid twice as fine, so that voxels on borders hold two tissues), and bundles
of fibres that cross, bend and fan. How sharp, how many, how wide, how smooth: all of it is drawn per seed.

Axis letters: x, y, z the fine or the image's grid; K fibre populations; T tissues (white, grey, CSF).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .anatomy import Anatomy, slope_of_white_matter, tube_share
from .fields import distance_to_zero_curves, grid_field, slopes, unit
from .microstructure import draw_microstructure

Array = NDArray[np.float32]
Axes = tuple[Array, Array, Array]

_WHITE, _GREY, _CSF = np.eye(3, dtype=np.float32)
_SUBSAMPLES = 2
_POPULATIONS = 4


@dataclass(frozen=True)
class _Grid:
    """Positions in mm along each axis, the middle of the image being 0."""

    axes: Axes
    voxel_mm: float

    @property
    def shape(self) -> tuple[int, int, int]:
        x, y, z = (len(axis) for axis in self.axes)
        return x, y, z

    @property
    def half_mm(self) -> NDArray[np.float64]:
        return np.array(self.shape) * self.voxel_mm / 2

    def points(self) -> Array:
        """Centres of the voxels, (X, Y, Z, 3)."""
        return np.stack(np.meshgrid(*self.axes, indexing="ij"), axis=-1)

    def field(self, scale_mm: float, rng: np.random.Generator) -> Array:
        """A smooth random field of unit variance, (X, Y, Z)."""
        return grid_field(self.axes, scale_mm, rng)

    def vector_field(self, scale_mm: float, rng: np.random.Generator) -> Array:
        """Three smooth random fields, (X, Y, Z, 3)."""
        return np.stack([self.field(scale_mm, rng) for _ in range(3)], axis=-1)


def geometric_anatomy(
    *,
    seed: int,
    shape: tuple[int, int, int] | None = None,
    voxel_size: float | None = None,
    bias_field: float | None = None,
) -> Anatomy:
    """Draw a head full of random geometry.

    Parameters
    ----------
    seed
        Which one; a grid of another extent gets another head.
    shape
        Voxels along each axis (64 x 72 x 56 if not given).
    voxel_size
        Edge of the cubic voxels in mm (2 if not given).
    bias_field
        Standard deviation of the smooth bias field; drawn between 0 and 0.3 if not given.

    Raises
    ------
    UsageError
        A grid without voxels.
    """
    shape = (64, 72, 56) if shape is None else shape
    voxel_mm = 2.0 if voxel_size is None else voxel_size
    if min(shape) < 2 or voxel_mm <= 0:
        raise UsageError(
            f"expected a grid of at least 2 voxels along each axis, found {shape} of {voxel_mm} mm"
        )
    streams = iter(np.random.default_rng(np.random.SeedSequence([seed, 3])).spawn(6))
    fine, grid = _make_grid(shape, voxel_mm, _SUBSAMPLES), _make_grid(shape, voxel_mm, 1)
    tissue_xyzt = _paint_tissues(fine, next(streams))
    share_xyzt = tissue_xyzt.reshape(
        shape[0], _SUBSAMPLES, shape[1], _SUBSAMPLES, shape[2], _SUBSAMPLES, 3
    ).mean(axis=(1, 3, 5))
    mask_xyz = share_xyzt.sum(axis=-1) > 0.5
    white_n, grey_n, csf_n = share_xyzt[mask_xyz].T
    directions_xyzk3, fractions_xyzk = _draw_bundles(grid, next(streams))
    texture = _draw_texture(grid, next(streams), bias_field)
    affine = np.diag([-voxel_mm, voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Anatomy(
        mask_xyz=mask_xyz,
        affine=affine,
        white_n=white_n,
        grey_n=grey_n,
        csf_n=csf_n,
        lesion_n=np.zeros_like(white_n),
        directions_nk3=directions_xyzk3[mask_xyz],
        fractions_nk=fractions_xyzk[mask_xyz],
        radial_n3=slope_of_white_matter(share_xyzt[..., 0])[mask_xyz.ravel()],
        **{name: values_xyz[mask_xyz] for name, values_xyz in texture.items()},
        microstructure=draw_microstructure(next(streams)),
    )


def _make_grid(shape: tuple[int, int, int], voxel_mm: float, parts: int) -> _Grid:
    """Return the image's grid, each voxel cut into ``parts`` along each axis."""
    step = voxel_mm / parts
    x, y, z = ((np.arange(n * parts) - (n * parts - 1) / 2).astype(np.float32) * step for n in shape)
    return _Grid((x, y, z), step)


class _Canvas:
    """Shares of the tissues on the fine grid; what is painted later covers what was there."""

    def __init__(self, grid: _Grid, rng: np.random.Generator) -> None:
        self.grid, self.rng = grid, rng
        # some borders are as sharp as the grid allows, some spread over a voxel of the image
        self.softness_mm = grid.voxel_mm * rng.choice([0.5, 1.0, 2.0], p=[0.4, 0.4, 0.2])
        self.share_xyzt = np.zeros((*grid.shape, 3), dtype=np.float32)

    def paint(self, depth_xyz: Array, tissue_t: Array, box: tuple[Any, ...] = (...,)) -> None:
        """Cover where ``depth_xyz``, in mm from the border inwards, is above 0."""
        cover_xyz = np.clip(depth_xyz / self.softness_mm + 0.5, 0, 1)[..., None]
        self.share_xyzt[box] += cover_xyz * (tissue_t - self.share_xyzt[box])

    def depth(self, level_xyz: Array) -> Array:
        """Distance in mm, to first order, from where a field is 0."""
        slope_xyz = np.linalg.norm(slopes(level_xyz, self.grid.voxel_mm), axis=0)
        # where a field is flat it is nowhere near zero, or near it everywhere: no border then
        return level_xyz / np.maximum(slope_xyz, 0.2 * slope_xyz.mean())


def _paint_tissues(grid: _Grid, rng: np.random.Generator) -> Array:
    """Volume shares of white matter, grey matter and CSF on the fine grid, (X, Y, Z, 3)."""
    canvas = _Canvas(grid, rng)
    head_xyz = _paint_cortex(canvas)
    for _ in range(rng.integers(0, 3)):
        _paint_sulci(canvas, head_xyz)
    for _ in range(rng.integers(0, 5)):
        _paint_ribbon(canvas)
    for tissue_t, most, radii_mm in (
        (_GREY, 8, (5, 14)),
        (_CSF, 3, (4, 16)),
        (_GREY, 12, (1.5, 5)),
        (_WHITE, 12, (1.5, 5)),
        (_CSF, 6, (1.0, 3.5)),
    ):
        for _ in range(rng.integers(0, most + 1)):
            _paint_blob(canvas, tissue_t, rng.uniform(*radii_mm))
    for _ in range(rng.integers(0, 4)):
        _paint_vessels(canvas)
    outside_xyz = np.clip(head_xyz / canvas.softness_mm + 0.5, 0, 1)
    return (canvas.share_xyzt * outside_xyz[..., None]).astype(np.float32)


def _paint_cortex(canvas: _Canvas) -> Array:
    """Fill a closed head with CSF, a folded ribbon of grey matter, and white matter; return its depth in mm."""
    grid, rng = canvas.grid, canvas.rng
    radius_mm = grid.half_mm * rng.uniform(0.8, 1.25, 3)
    centre_mm = 0.15 * grid.half_mm * rng.uniform(-1, 1, 3)
    scaled = [(axis - c) / r for axis, c, r in zip(grid.axes, centre_mm, radius_mm, strict=True)]
    power = rng.uniform(1.8, 3.0)
    x, y, z = (np.abs(axis).astype(np.float32) ** np.float32(power) for axis in scaled)
    radial_xyz = (x[:, None, None] + y[:, None] + z) ** np.float32(1 / power)
    bumps_xyz = grid.field(rng.uniform(25, 60), rng)
    head_xyz = (1 - radial_xyz + 0.06 * bumps_xyz) * np.float32(radius_mm.mean())
    folds_xyz = grid.field(rng.uniform(6, 14), rng)
    folded_xyz = head_xyz + np.float32(rng.uniform(1, 6)) * folds_xyz
    folded_xyz += np.float32(rng.uniform(0, 1.5)) * grid.field(rng.uniform(3, 6), rng)
    csf_mm, cortex_mm = rng.uniform(-2, 4), rng.uniform(1.5, 5)
    canvas.paint(head_xyz, _CSF)
    canvas.paint(np.minimum(canvas.depth(folded_xyz - np.float32(csf_mm)), head_xyz), _GREY)
    canvas.paint(np.minimum(canvas.depth(folded_xyz - np.float32(csf_mm + cortex_mm)), head_xyz), _WHITE)
    return head_xyz


def _paint_sulci(canvas: _Canvas, head_xyz: Array) -> None:
    """Curved sheets that reach inwards from the surface: fluid between two ribbons of grey matter."""
    grid, rng = canvas.grid, canvas.rng
    distance_xyz = np.abs(canvas.depth(grid.field(rng.uniform(8, 20), rng)))
    reach_mm = rng.uniform(5, 25) + 3 * grid.field(rng.uniform(10, 20), rng)
    territory_xyz = np.minimum(reach_mm.astype(np.float32) - head_xyz, head_xyz)
    half_mm, cortex_mm = rng.uniform(0, 1.2), rng.uniform(1.5, 4)
    canvas.paint(np.minimum(np.float32(half_mm + cortex_mm) - distance_xyz, territory_xyz), _GREY)
    canvas.paint(np.minimum(np.float32(half_mm) - distance_xyz, territory_xyz - np.float32(cortex_mm)), _CSF)


def _paint_ribbon(canvas: _Canvas) -> None:
    """A curved layer of one tissue in part of the head: a thin sheet of one to some voxels."""
    grid, rng = canvas.grid, canvas.rng
    distance_xyz = np.abs(canvas.depth(grid.field(rng.uniform(10, 35), rng)))
    territory_xyz = canvas.depth(grid.field(rng.uniform(20, 50), rng) - np.float32(rng.uniform(0.2, 1.2)))
    half_mm = rng.uniform(0.5, 2.5)
    tissue_t = (_GREY, _CSF, _WHITE)[rng.choice(3, p=[0.55, 0.15, 0.3])]
    canvas.paint(np.minimum(np.float32(half_mm) - distance_xyz, territory_xyz), tissue_t)


def _paint_blob(canvas: _Canvas, tissue_t: Array, radius_mm: float) -> None:
    """An ellipsoid anywhere, of the tissue or of a mixture with white matter."""
    grid, rng = canvas.grid, canvas.rng
    centre_mm = rng.uniform(-0.8, 0.8, 3) * grid.half_mm
    radii_mm = radius_mm * rng.uniform(0.6, 1.6, 3)
    purity = rng.choice([1.0, rng.uniform(0.4, 1.0)])
    reach = [
        np.abs(a - c) <= r + 2 * grid.voxel_mm for a, c, r in zip(grid.axes, centre_mm, radii_mm, strict=True)
    ]
    if not all(near.any() for near in reach):
        return
    box = tuple(slice(int(np.argmax(near)), int(np.argmax(near) + near.sum())) for near in reach)
    x, y, z = (
        ((axis[part] - c) / r) ** 2
        for axis, part, c, r in zip(grid.axes, box, centre_mm, radii_mm, strict=True)
    )
    radial_xyz = np.sqrt(x[:, None, None] + y[:, None] + z).astype(np.float32)
    mixture_t = np.float32(purity) * tissue_t + np.float32(1 - purity) * _WHITE
    canvas.paint((1 - radial_xyz) * np.float32(radii_mm.min()), mixture_t, box)


def _paint_vessels(canvas: _Canvas) -> None:
    """Tubes of 0.5 to 1.5 mm radius, of fluid or without any signal."""
    grid, rng = canvas.grid, canvas.rng
    scale_mm = rng.uniform(15, 35)
    distance_xyz, _ = distance_to_zero_curves(
        grid.field(scale_mm, rng), grid.field(scale_mm, rng), grid.voxel_mm
    )
    tissue_t = _CSF if rng.random() < 0.6 else np.zeros(3, dtype=np.float32)
    canvas.paint(np.float32(rng.uniform(0.5, 1.5)) - distance_xyz, tissue_t)


def _draw_bundles(grid: _Grid, rng: np.random.Generator) -> tuple[Array, Array]:
    """Directions (X, Y, Z, K, 3) and shares (X, Y, Z, K) of the fibre populations.

    The first two populations fill territories with sharp borders, and cross where these overlap; the last two
    hold tubes and sheets, the later over the earlier.
    """
    directions = np.zeros((*grid.shape, _POPULATIONS, 3), dtype=np.float32)
    shares = np.zeros((*grid.shape, _POPULATIONS), dtype=np.float32)
    for k in range(2):
        directions[..., k, :] = _flow(grid, rng)
        level_xyz = grid.field(rng.uniform(10, 40), rng) + np.float32(rng.uniform(-0.5, 1.5))
        present_xyz = (level_xyz > 0) if k else np.ones(grid.shape, dtype=bool)
        shares[..., k] = present_xyz * np.exp(0.6 * grid.field(rng.uniform(12, 40), rng))
    shares /= shares.sum(axis=-1, keepdims=True)
    for i in range(rng.integers(2, 15)):
        if rng.random() < 0.75:
            inside_xyz, direction_xyz3 = _tube(grid, rng)
        else:
            inside_xyz, direction_xyz3 = _sheet(grid, rng)
        _lay(directions, shares, 2 + i % 2, inside_xyz * np.float32(rng.uniform(0.4, 1.0)), direction_xyz3)
    return directions, shares


def _lay(directions: Array, shares: Array, k: int, inside_xyz: Array, direction_xyz3: Array) -> None:
    """Give a bundle its share of the voxels; of two bundles in one population the larger share keeps its way."""
    shares *= 1 - inside_xyz[..., None]
    stronger_xyz = inside_xyz > shares[..., k]
    directions[..., k, :][stronger_xyz] = direction_xyz3[stronger_xyz]
    shares[..., k] += inside_xyz


def _flow(grid: _Grid, rng: np.random.Generator) -> Array:
    """A field of directions through the whole head: parallel, fanning out or turning, and bent, (X, Y, Z, 3)."""
    axis = unit(rng.standard_normal((1, 3)).astype(np.float32))[0]
    kind = rng.choice(["parallel", "fan", "turn"])
    if kind == "parallel":
        base_xyz3 = np.broadcast_to(axis, (*grid.shape, 3))
    else:
        apex_mm = (rng.standard_normal(3) * grid.half_mm).astype(np.float32)
        base_xyz3 = grid.points() - apex_mm
        base_xyz3 = base_xyz3 if kind == "fan" else np.cross(base_xyz3, axis)
    bent_xyz3 = np.float32(rng.uniform(0.1, 1.2)) * grid.vector_field(rng.uniform(12, 70), rng)
    return _unit_field(_unit_field(base_xyz3) + bent_xyz3)


def _tube(grid: _Grid, rng: np.random.Generator) -> tuple[Array, Array]:
    """Share and direction of bundles around random curves, 1.5 to 12 mm in radius."""
    radius_mm = float(np.exp(rng.uniform(np.log(1.5), np.log(12))))
    scale_mm = rng.uniform(18, 30) + 2 * radius_mm
    distance_xyz, tangent_xyz3 = distance_to_zero_curves(
        grid.field(scale_mm, rng), grid.field(scale_mm, rng), grid.voxel_mm
    )
    return tube_share(distance_xyz, radius_mm, grid.voxel_mm), tangent_xyz3


def _sheet(grid: _Grid, rng: np.random.Generator) -> tuple[Array, Array]:
    """Share and direction of a curved layer of fibres, 1.5 to 8 mm thick."""
    level_xyz = grid.field(rng.uniform(20, 60), rng)
    slope_xyz3 = np.moveaxis(slopes(level_xyz, grid.voxel_mm), 0, -1)
    steep_xyz = np.linalg.norm(slope_xyz3, axis=-1)
    distance_xyz = np.abs(level_xyz) / np.maximum(steep_xyz, 0.2 * steep_xyz.mean())
    inside_xyz = np.clip((np.float32(rng.uniform(0.75, 4)) - distance_xyz) / grid.voxel_mm + 0.5, 0, 1)
    within = np.cross(slope_xyz3, unit(rng.standard_normal((1, 3)).astype(np.float32))[0])
    return inside_xyz.astype(np.float32), _unit_field(within)


def _unit_field(vectors_xyz3: NDArray[np.floating]) -> Array:
    return unit(vectors_xyz3.reshape(-1, 3)).reshape(vectors_xyz3.shape)


def _draw_texture(grid: _Grid, rng: np.random.Generator, bias_field: float | None) -> dict[str, Array]:
    """What varies within tissues at 2 to 10 mm and from voxel to voxel, (X, Y, Z) each."""

    def fine(strength: float) -> Array:
        smooth_xyz = rng.uniform(0, strength) * grid.field(rng.uniform(2, 10), rng)
        white_xyz = rng.uniform(0, 0.4 * strength) * rng.standard_normal(grid.shape, dtype=np.float32)
        return (smooth_xyz + white_xyz).astype(np.float32)

    bias = rng.uniform(0, 0.3) if bias_field is None else bias_field
    bias_xyz = np.float32(bias) * grid.field(rng.uniform(40, 80), rng)
    coarse_xyz = np.float32(rng.uniform(0, 0.1)) * grid.field(rng.uniform(15, 30), rng)
    axonal = rng.uniform(0.4, 0.65)
    return {
        "brightness_n": np.exp(bias_xyz + np.clip(fine(0.15), -0.5, 0.5)),
        "diffusivity_n": np.exp(np.clip(coarse_xyz + fine(0.15), -0.4, 0.4)),
        "axonal_n": np.clip(axonal + fine(0.12), 0.15, 0.85),
        "dispersion_n": np.clip(rng.uniform(0, 0.25) + fine(0.12), 0, 0.6),
    }
