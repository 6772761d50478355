"""Values of the voxels of a mask, in place of images that are mostly empty, and where they are kept.

The voxels are in the order of ``mask_xyz.nonzero()``: x changes slowest, so planes of x are stretches of the list.

Axes: ``x y z`` space, ``v`` volume, ``n`` voxel of the mask.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Box = tuple[slice, slice, slice]


class Series(Protocol):
    """What gives and takes volumes by ``series[..., v]``: an array, or a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(X, Y, Z, V)."""

    def __getitem__(self, key: Any, /) -> Any:
        """Some volumes."""

    def __setitem__(self, key: Any, value: Any, /) -> None:
        """Replace some volumes."""


class Voxels:
    """The voxels of a mask, between lists of their values and images.

    Parameters
    ----------
    mask_xyz
        (X, Y, Z) bool.
    """

    def __init__(self, mask_xyz: Tensor) -> None:
        self.mask_xyz = mask_xyz
        self.where_n = mask_xyz.flatten().nonzero().flatten()
        index = torch.zeros(mask_xyz.numel(), dtype=torch.long, device=mask_xyz.device)
        index[self.where_n] = torch.arange(len(self.where_n), device=mask_xyz.device)
        self.index_xyz = index.view(mask_xyz.shape)

    def __len__(self) -> int:
        return len(self.where_n)

    def gather(self, image_xyz: Tensor) -> Tensor:
        """Values (N,) of an image."""
        return image_xyz.flatten().index_select(0, self.where_n)

    def scatter(self, values_n: Tensor) -> Tensor:
        """Image (X, Y, Z) of values, zero outside the mask."""
        image = torch.zeros(self.mask_xyz.numel(), dtype=values_n.dtype, device=values_n.device)
        return image.index_copy_(0, self.where_n, values_n).view(self.mask_xyz.shape)

    def cut(self, box: Box) -> Cut:
        """The voxels in a box."""
        return Cut(self.index_xyz[box], ~self.mask_xyz[box])


class Cut:
    """The voxels of a mask that lie in a box."""

    def __init__(self, index_xyz: Tensor, outside_xyz: Tensor) -> None:
        self.index, self.outside_xyz = index_xyz.flatten(), outside_xyz

    def image(self, values_n: Tensor) -> Tensor:
        """Image of the box, float32, zero outside the mask, of the values of all voxels."""
        image = values_n.index_select(0, self.index).view(self.outside_xyz.shape).float()
        return image.masked_fill_(self.outside_xyz, 0.0)


class Storage:
    """Where the values of a whole run are kept.

    Parameters
    ----------
    folder
        Keep them in files of this folder, which the system maps into memory and may drop from it at any time; in
        memory if not given.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def tensor(self, shape: Sequence[int], dtype: torch.dtype = torch.float16) -> Tensor:
        """A tensor of any content."""
        if self.folder is None:
            return torch.empty(tuple(shape), dtype=dtype)
        self.folder.mkdir(parents=True, exist_ok=True)
        path, size = self.folder / f"values-{os.getpid()}.bin", int(np.prod(shape))
        try:
            with path.open("wb") as stream:
                # a full disk is an error here, and would be the end of the process later
                os.posix_fallocate(stream.fileno(), 0, size * dtype.itemsize)
            return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(tuple(shape))
        finally:
            # nothing is left behind however this process ends: the mapping alone keeps the content
            path.unlink(missing_ok=True)


def signals_of(
    dwi_xyzv: Series, mask_xyz: NDArray[np.bool_], storage: Storage | None = None
) -> NDArray[np.float32]:
    """Values (V, N) of the voxels of a mask, float32, read volume by volume."""
    n_volumes = dwi_xyzv.shape[3]
    signal_vn = (
        (storage or Storage()).tensor((n_volumes, int(np.count_nonzero(mask_xyz))), torch.float32).numpy()
    )
    for volume in range(n_volumes):
        signal_vn[volume] = dwi_xyzv[..., volume][mask_xyz]
    return signal_vn


def give_back_memory() -> None:
    """Return what was freed to the system, which the C library keeps for itself otherwise."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library than glibc
        return None
