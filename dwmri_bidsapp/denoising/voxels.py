"""Values of the voxels of a mask, in place of images that are mostly empty, and where they are kept.

The voxels are in the order of ``mask_xyz.nonzero()``: x changes slowest, so planes of x are stretches of the list.

Axes: ``x y z`` space, ``v`` volume, ``n`` voxel of the mask.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Box = tuple[slice, slice, slice]

# as many as large brains have tiles
CUTS_KEPT = 16

# of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NO_LIMIT, _LARGE = 2**31 - 1, 1 << 20


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
        index = torch.zeros(mask_xyz.numel(), dtype=torch.int32, device=mask_xyz.device)
        index[self.where_n] = torch.arange(len(self.where_n), dtype=torch.int32, device=mask_xyz.device)
        self.index_xyz = index.view(mask_xyz.shape)
        # every volume is predicted in the same few tiles; the patches of a training are all different
        self._cut = lru_cache(maxsize=CUTS_KEPT)(self._make_cut)

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
        return self._cut(*((axis.start, axis.stop) for axis in box))

    def _make_cut(self, *ends: tuple[int, int]) -> Cut:
        box = tuple(slice(*pair) for pair in ends)
        return Cut(self.index_xyz[box], self.mask_xyz[box], len(self))


class Cut:
    """The voxels of a mask that lie in a box.

    Parameters
    ----------
    index_xyz
        (X, Y, Z) of the box: number of each voxel in the list of all; anything outside the mask.
    mask_xyz
        (X, Y, Z) bool of the box.
    n_voxels
        Voxels of the whole mask.
    """

    def __init__(self, index_xyz: Tensor, mask_xyz: Tensor, n_voxels: int) -> None:
        where_m = mask_xyz.flatten().nonzero().flatten()
        self.index_m = index_xyz.flatten().index_select(0, where_m)
        # the list of all is in the order of the box then
        self.holds_all = len(where_m) == n_voxels
        # outside the mask, the row of zeros after all others
        self.row_xyz = torch.full_like(index_xyz, len(where_m), memory_format=torch.contiguous_format)
        self.row_xyz.view(-1)[where_m] = torch.arange(
            len(where_m), dtype=index_xyz.dtype, device=index_xyz.device
        )

    def values(self, values_n: Tensor) -> Tensor:
        """Values (M,) of the box's voxels, float32, out of the values (N,) of all."""
        return (values_n if self.holds_all else values_n.index_select(0, self.index_m)).float()

    def images(self, values_cm: Sequence[Tensor]) -> Tensor:
        """Images (X, Y, Z, C) of the box, zero outside the mask, of values (M,) of its voxels."""
        rows_mc = torch.empty((len(self.index_m) + 1, len(values_cm)), device=self.row_xyz.device)
        rows_mc[-1] = 0.0
        for channel, values_m in enumerate(values_cm):
            rows_mc[:-1, channel] = values_m
        # whole rows: a voxel's channels lie side by side, as convolutions like them
        return rows_mc.index_select(0, self.row_xyz.view(-1)).view(*self.row_xyz.shape, -1)

    def image(self, values_n: Tensor) -> Tensor:
        """Image (X, Y, Z) of the box, float32, zero outside the mask, of the values (N,) of all voxels."""
        return self.images([self.values(values_n)])[..., 0]


def batch(images_xyzc: Sequence[Tensor]) -> Tensor:
    """Inputs of a network (B, C, X, Y, Z) from images of :meth:`Cut.images`; a single one is not copied."""
    images_bxyzc = torch.stack(list(images_xyzc)) if len(images_xyzc) > 1 else images_xyzc[0][None]
    return images_bxyzc.permute(0, 4, 1, 2, 3)


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


@contextlib.contextmanager
def keeping_memory(*, large: bool = True) -> Iterator[None]:
    """Let the C library keep what is freed until :func:`give_back_memory`, for the next tensor of that size.

    It returns large pieces at once otherwise, and the system clears each page of a new one: a quarter of the time of
    a network on a whole brain. Where memory is short, large ones shall go back: what is kept may be cut up by small
    objects, by chance, so that the next tensor does not fit into it.
    """
    library = _c_library()
    if library is None:
        yield
        return
    for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        library.mallopt(parameter, _NO_LIMIT if large else _LARGE)
    try:
        yield
    finally:
        # the highest that it comes to by itself
        library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        library.mallopt(_M_TRIM_THRESHOLD, 64 << 20)
        give_back_memory()


def give_back_memory() -> None:
    """Return what was freed to the system, which the C library keeps for itself otherwise."""
    library = _c_library()
    if library is not None:
        library.malloc_trim(0)


@lru_cache(maxsize=1)
def _c_library() -> Any:
    """The C library, if it is glibc."""
    try:
        library = ctypes.CDLL(None)
        return library if library.malloc_trim and library.mallopt else None
    except (OSError, AttributeError):
        return None
