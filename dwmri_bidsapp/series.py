"""A series in an uncompressed NIfTI file, of which a volume at a time is in memory.

Axes: ``x y z`` space, ``v`` volume.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
from numpy.typing import NDArray

from .preparation import read_parts


class StoredSeries:
    """Volumes of a file, read by ``series[..., v]`` and written by ``series[..., v] = values``.

    Reading and writing, other than mapping the file, keeps what was read out of this process's memory.

    Parameters
    ----------
    path
        The file.
    shape
        (X, Y, Z, V).
    dtype
        Of the values in the file.
    offset
        Bytes before the first value.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> None:
        self.path, self.shape, self.stored_dtype, self.offset = path, shape, dtype, offset
        self.size = int(np.prod(shape[:3]))

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        """A volume (X, Y, Z) as float32."""
        values = np.fromfile(self.path, self.stored_dtype, self.size, offset=self._place(key))
        return values.astype(np.float32, copy=False).reshape(self.shape[:3], order="F")

    def __setitem__(self, key: Any, value_xyz: NDArray[Any]) -> None:
        """Replace a volume."""
        with self.path.open("r+b") as stream:
            stream.seek(self._place(key))
            stream.write(np.asarray(value_xyz, self.stored_dtype).tobytes(order="F"))

    def _place(self, key: Any) -> int:
        ellipsis, volume = key
        if ellipsis is not Ellipsis:
            raise IndexError(f"expected [..., volume], found {key}")
        return self.offset + int(volume) * self.size * self.stored_dtype.itemsize


def copy_series(image: nb.Nifti1Image, source: Path, path: Path, dtype: str = "float32") -> StoredSeries:
    """Copy a series, compressed or not, into a file that is read and written volume by volume.

    Parameters
    ----------
    image
        The series, from :func:`.preparation.open_series`.
    source
        Its file, for messages.
    path
        File to write; one that exists is replaced, not changed, because the results may be links to it.
    dtype
        Data type of the file. The values are those of float32 in any case.

    Returns
    -------
    StoredSeries
        The copy, with affine, orientation codes and units of the image.
    """
    header = image.header.copy()
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0
    header["magic"] = header.single_magic
    offset = int(header.single_vox_offset + header.extensions.get_sizeondisk())
    header.set_data_offset(offset)
    path.unlink(missing_ok=True)
    stored = StoredSeries(path, image.shape, header.get_data_dtype(), offset)
    with path.open("wb") as stream:
        header.write_to(stream)
        stream.write(b"\0" * (offset - stream.tell()))
        for _, part_xyzv in read_parts(image, source):
            stream.write(np.asarray(part_xyzv, stored.stored_dtype).tobytes(order="F"))
    return stored
