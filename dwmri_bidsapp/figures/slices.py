"""Which slices of a run are shown, and how they are laid side by side.

Axis letters: x, y, z voxel axes of the array; h, w rows and columns of a picture, c colours.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nb
import numpy as np
from numpy.typing import NDArray

PLANES = ("axial", "coronal", "sagittal")
_NORMAL = {"axial": 2, "coronal": 1, "sagittal": 0}
_MARGIN = 2  # voxels around the brain
_LEAST_AREA = 0.15  # of the largest slice


@dataclass(frozen=True, eq=False)
class SlicePlan:
    """The same slices for every picture of a run, so that pictures can be compared.

    Attributes
    ----------
    orientation : (3, 2) float
        From the array's axes to right-anterior-superior (nibabel's convention).
    zooms : (3,) float
        Voxel size along right, anterior and superior, in mm.
    box : three slices
        The brain and a margin, in right-anterior-superior order.
    indices : dict of str to (n,) int
        Slices of each plane.
    """

    orientation: NDArray[np.float64]
    zooms: NDArray[np.float64]
    box: tuple[slice, slice, slice]
    indices: dict[str, NDArray[np.int64]]

    @property
    def extent_mm(self) -> NDArray[np.float64]:
        """Size of the box along right, anterior and superior, in mm."""
        return np.array([part.stop - part.start for part in self.box]) * self.zooms

    @property
    def cell_mm(self) -> float:
        """Width that a slice of any plane gets, in mm."""
        return float(self.extent_mm[:2].max())

    @property
    def n_slices(self) -> int:
        """Number of slices of each plane."""
        return len(self.indices["axial"])

    def canonical(self, volume_xyz: NDArray) -> NDArray:
        """Return a view of the volume with axes right, anterior, superior; more axes may follow."""
        return nb.orientations.apply_orientation(volume_xyz, self.orientation)

    def strip(self, volume_xyz: NDArray, plane: str) -> NDArray:
        """Return the slices of one plane side by side, up on top: (h, w), or (h, w, c) for colours.

        Left is left, and in sagittal slices the front is on the right. Cells are filled up with
        NaN (colours with 0) to :attr:`cell_mm`.
        """
        view = self.canonical(volume_xyz)
        normal = _NORMAL[plane]
        across = 1 if plane == "sagittal" else 0
        width = round(self.cell_mm / self.zooms[across])
        cells = []
        for index in self.indices[plane]:
            place = [*self.box]
            place[normal] = slice(index, index + 1)
            cell_hw = np.swapaxes(np.squeeze(view[tuple(place)], axis=normal), 0, 1)[::-1]
            cells.append(_fill_up(cell_hw, width))
        return np.concatenate(cells, axis=1)

    def strips(self, volume_xyz: NDArray) -> dict[str, NDArray]:
        """Return the strip of each plane."""
        return {plane: self.strip(volume_xyz, plane) for plane in PLANES}


def plan_slices(mask_xyz: NDArray[np.bool_], affine: NDArray, n_slices: int = 7) -> SlicePlan:
    """Choose slices evenly through the brain, in three planes.

    Parameters
    ----------
    mask_xyz : (X, Y, Z) bool
        The brain; the whole image where it is empty.
    affine : (4, 4) array
        From voxels to mm; oblique ones are shown along their nearest axes.
    n_slices
        Slices of each plane.
    """
    orientation = nb.io_orientation(affine)
    sizes = nb.affines.voxel_sizes(affine)
    zooms = np.empty(3)
    zooms[orientation[:, 0].astype(int)] = sizes
    mask = nb.orientations.apply_orientation(np.asarray(mask_xyz, dtype=bool), orientation)
    if not mask.any():
        mask = np.ones_like(mask)
    areas = [mask.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
    box = tuple(_span(area > 0, _MARGIN) for area in areas)
    indices = {}
    for plane, axis in _NORMAL.items():
        # A mask may have crumbs far from the brain, and gaps: they belong in the box, not in a slice of their own.
        large = np.flatnonzero(areas[axis] > _LEAST_AREA * areas[axis].max())
        wanted = np.round(np.linspace(large[0], large[-1], n_slices + 2)[1:-1])
        indices[plane] = large[np.abs(large - wanted[:, None]).argmin(axis=1)]
    return SlicePlan(orientation, zooms, (box[0], box[1], box[2]), indices)


def _span(inside: NDArray[np.bool_], margin: int) -> slice:
    places = np.flatnonzero(inside)
    return slice(max(int(places[0]) - margin, 0), min(int(places[-1]) + 1 + margin, len(inside)))


def _fill_up(cell: NDArray, width: int) -> NDArray:
    missing = max(width - cell.shape[1], 0)
    pad = [(0, 0), (missing // 2, missing - missing // 2)] + [(0, 0)] * (cell.ndim - 2)
    if cell.ndim > 2:
        return np.pad(cell, pad)
    return np.pad(cell.astype(np.float32), pad, constant_values=np.nan)
