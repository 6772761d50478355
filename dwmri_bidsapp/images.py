"""What an image raises that cannot be read."""

from __future__ import annotations

import zlib

import nibabel as nb

IMAGE_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    zlib.error,
    nb.filebasedimages.ImageFileError,
    nb.spatialimages.HeaderDataError,
)
"""No file, a damaged one, no image, or a header of values that do not exist."""
