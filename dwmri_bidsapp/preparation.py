"""What is checked and measured before a run is denoised: image, gradient table, brain mask.

Nothing is repaired. What cannot be denoised is an error; what is odd is a warning for the report.
The b-vectors stay in the frame of their file (see :mod:`.gradients`).

Axis letters: x, y, z voxels, v volumes.
"""

from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from .brain_mask import brain_mask
from .errors import BadDataError, InputOutputError
from .gradients import B0_THRESHOLD, Gradients, check_protocol, count_directions, load_gradients
from .images import IMAGE_ERRORS

CHUNK_BYTES = 64 * 2**20
"""Largest part of a series that is read at once, as float32."""


@dataclass(frozen=True, eq=False)
class Preparation:
    """What is known about a run before it is denoised.

    Attributes
    ----------
    gradients
        The checked gradient table.
    mask_xyz : (X, Y, Z) bool
        The voxels to denoise.
    report
        JSON-able facts: ``shape``, ``voxel_size_mm``, ``shells``, ``mask_source``,
        ``mask_voxels``, counts of aphysical values, ``warnings``, ...
    """

    gradients: Gradients
    mask_xyz: NDArray[np.bool_]
    report: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Survey:
    """What one pass over all values of a series found.

    Attributes
    ----------
    mean_b0_xyz : (X, Y, Z) float32
        Mean of the b=0 volumes, in signal units.
    highest_dwi_xyz : (X, Y, Z) float32
        Maximum over the diffusion-weighted volumes, in signal units.
    n_negative
        Number of values below zero.
    empty_volumes
        Volumes (from 0) with one and the same value everywhere.
    """

    mean_b0_xyz: NDArray[np.float32]
    highest_dwi_xyz: NDArray[np.float32]
    n_negative: int
    empty_volumes: tuple[int, ...]


def prepare_run(
    dwi_file: Path,
    bval_file: Path,
    bvec_file: Path,
    *,
    mask_file: Path | None = None,
    noise_map_file: Path | None = None,
    b0_threshold: float = B0_THRESHOLD,
) -> Preparation:
    """Check all files of a run and find its brain, reading the series once and in parts.

    Parameters
    ----------
    dwi_file
        Diffusion-weighted series, 4D NIfTI.
    bval_file, bvec_file
        Its gradient table; b-values in s/mm².
    mask_file
        Brain mask on the same grid; made from the mean b=0 volume where there is none.
    noise_map_file
        Noise standard deviation on the same grid, in signal units; only checked here.
    b0_threshold
        b-values up to this are b=0 (s/mm²).

    Raises
    ------
    BadDataError
        A file is missing, damaged, or does not fit the others.
    InputOutputError
        There is no permission to read a file.
    """
    image = open_series(dwi_file)
    gradients = load_gradients(bval_file, bvec_file, image.shape[3], b0_threshold)
    try:
        warnings = check_protocol(gradients)
    except BadDataError as error:
        raise BadDataError(f"{bval_file}: {error.message}", error.hint) from error
    survey = survey_series(image, gradients, dwi_file)
    if noise_map_file is not None:
        load_noise_map(noise_map_file, image)
    if mask_file is None:
        mask_xyz, mask_source, mask_warnings = brain_mask(survey.mean_b0_xyz)
    else:
        mask_xyz, mask_source, mask_warnings = load_mask(mask_file, image), str(mask_file), []
    report = _describe(image, gradients, survey, mask_xyz)
    report["b0_threshold"] = b0_threshold
    report["mask_source"] = mask_source
    report["warnings"] = [*warnings, *_odd_values(survey), *mask_warnings]
    return Preparation(gradients, mask_xyz, report)


def open_series(dwi_file: Path) -> nb.Nifti1Image:
    """Open a diffusion-weighted series without reading its values, and check its header.

    Raises
    ------
    BadDataError
        Not a readable NIfTI file, not four-dimensional, a single volume, or not real numbers.
    InputOutputError
        There is no permission to read it.
    """
    image = _open_image(dwi_file)
    if len(image.shape) != 4:
        raise BadDataError(
            f"{dwi_file}: expected a 4D series (x, y, z, volume), found {len(image.shape)}D of shape {image.shape}",
            "leave this file out (--bids-filter-file), or join the volumes into one file",
        )
    if image.shape[3] < 2:
        raise BadDataError(f"{dwi_file}: expected a series of volumes, found a single one", "leave it out")
    return image


def survey_series(image: nb.Nifti1Image, gradients: Gradients, dwi_file: Path) -> Survey:
    """Read all values of a series once, in parts.

    Raises
    ------
    BadDataError
        Values that are not finite, a damaged file, or no signal at b=0.
    """
    sum_b0_xyz = np.zeros(image.shape[:3], np.float32)
    highest_dwi_xyz = np.full(image.shape[:3], -np.inf, np.float32)
    n_negative = 0
    n_not_finite_v = np.zeros(image.shape[3], np.int64)
    empty_volumes: list[int] = []
    for start, chunk_xyzv in read_parts(image, dwi_file):
        volumes = np.arange(start, start + chunk_xyzv.shape[3])
        n_not_finite_v[volumes] = (~np.isfinite(chunk_xyzv)).sum(axis=(0, 1, 2))
        n_negative += int((chunk_xyzv < 0).sum())
        flat_v = chunk_xyzv.min(axis=(0, 1, 2)) == chunk_xyzv.max(axis=(0, 1, 2))
        empty_volumes += volumes[flat_v].tolist()
        b0_v = gradients.b0[volumes]
        sum_b0_xyz += chunk_xyzv[..., b0_v].sum(axis=3)
        if not b0_v.all():
            np.maximum(highest_dwi_xyz, chunk_xyzv[..., ~b0_v].max(axis=3), out=highest_dwi_xyz)
    _refuse_not_finite(n_not_finite_v, dwi_file)
    mean_b0_xyz = np.divide(sum_b0_xyz, gradients.b0.sum(), dtype=np.float32)
    if not mean_b0_xyz.any():
        raise BadDataError(f"{dwi_file}: expected signal in the b=0 volumes, found zeros only")
    return Survey(mean_b0_xyz, highest_dwi_xyz, n_negative, tuple(empty_volumes))


def read_series(
    image: nb.Nifti1Image, dwi_file: Path, scratch_dir: Path | None = None
) -> NDArray[np.float32]:
    """Read a series as float32 without ever holding a second copy of it.

    Parameters
    ----------
    image, dwi_file
        The opened series, and its file, for messages.
    scratch_dir
        Map a file of this folder instead of taking memory. It is removed at once: nothing is left behind.

    Returns
    -------
    (X, Y, Z, V) float32 array
        In the order of the file: each volume contiguous.
    """
    if scratch_dir is None:
        dwi_xyzv = np.empty(image.shape, np.float32, order="F")
    else:
        with tempfile.NamedTemporaryFile(dir=scratch_dir, suffix=".bin") as stream:
            os.posix_fallocate(stream.fileno(), 0, 4 * int(np.prod(image.shape)))
            dwi_xyzv = np.memmap(stream.name, np.float32, "r+", shape=image.shape, order="F")
    for start, chunk_xyzv in read_parts(image, dwi_file):
        dwi_xyzv[..., start : start + chunk_xyzv.shape[3]] = chunk_xyzv
    return dwi_xyzv


def load_mask(mask_file: Path, like: nb.Nifti1Image) -> NDArray[np.bool_]:
    """Read a brain mask and check that it lies on the grid of ``like``.

    Raises
    ------
    BadDataError
        Another grid, or nothing in the mask.
    """
    mask_xyz = np.nan_to_num(_load_map(mask_file, like)) > 0.5
    if not mask_xyz.any():
        raise BadDataError(f"{mask_file}: expected a brain mask, found no voxel above 0.5")
    return mask_xyz


def load_noise_map(noise_map_file: Path, like: nb.Nifti1Image) -> NDArray[np.float32]:
    """Read a map of the noise standard deviation and check that it lies on the grid of ``like``.

    Raises
    ------
    BadDataError
        Another grid, values that are not finite or negative, or zeros only.
    """
    sigma_xyz = _load_map(noise_map_file, like)
    n_bad = int((~(sigma_xyz >= 0) | ~np.isfinite(sigma_xyz)).sum())
    if n_bad or not sigma_xyz.any():
        found = f"{n_bad} voxels that are negative or not finite" if n_bad else "zeros only"
        raise BadDataError(
            f"{noise_map_file}: expected the noise standard deviation in signal units, found {found}",
            "leave out --noise-map to have it estimated",
        )
    return sigma_xyz


def save_gradients(gradients: Gradients, path: Path) -> None:
    """Write a checked gradient table for :func:`read_gradients` (NumPy's npz)."""
    np.savez(path, **asdict(gradients))


def read_gradients(path: Path) -> Gradients:
    """Read what :func:`save_gradients` wrote."""
    with np.load(path) as arrays:
        return Gradients(
            **{name: arrays[name] for name in ("bvals", "bvecs", "shell", "shell_bvals")},
            warnings=tuple(arrays["warnings"].tolist()),
        )


def _open_image(path: Path) -> nb.Nifti1Image:
    hint = "copy or convert it again, or leave it out"
    try:
        if path.suffix == ".gz":
            _check_gzip(path)
        # Kept open, because a compressed file that is opened anew is read from its start.
        image = nb.load(path, keep_file_open=True)
    except PermissionError as error:
        raise InputOutputError(f"{path}: no permission to read it", "ask its owner, or chmod it") from error
    except IMAGE_ERRORS as error:
        raise BadDataError(f"{path}: expected a readable NIfTI file, found: {error}", hint) from error
    if not isinstance(image, nb.Nifti1Image):
        raise BadDataError(f"{path}: expected NIfTI, found {type(image).__name__}", "convert it to .nii.gz")
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise BadDataError(f"{path}: expected real numbers, found {dtype}", "give the magnitude image")
    return image


def _check_gzip(path: Path) -> None:
    """Read a compressed file to its end: only there can its checksum tell that it is damaged."""
    with gzip.open(path) as stream:
        while stream.read(2**20):
            pass


def _load_map(path: Path, like: nb.Nifti1Image) -> NDArray[np.float32]:
    image = _open_image(path)
    if image.shape != like.shape[:3]:
        raise BadDataError(
            f"{path}: expected shape {like.shape[:3]}, as the DWI has, found {image.shape}",
            "resample it to the grid of the DWI",
        )
    index_corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape])).reshape(3, -1).T
    found, expected = (apply_affine(affine, index_corners) for affine in (image.affine, like.affine))
    offset = float(np.linalg.norm(found - expected, axis=1).max())
    if offset > 0.5 * min(like.header.get_zooms()[:3]):
        raise BadDataError(
            f"{path}: expected the position of the DWI, found a corner {offset:.1f} mm away from it",
            "resample it to the grid of the DWI",
        )
    try:
        return image.get_fdata(dtype=np.float32)
    except IMAGE_ERRORS as error:
        raise BadDataError(
            f"{path}: expected values of shape {image.shape}, found a file that ends or breaks ({error})",
            "copy or convert it again",
        ) from error


def read_parts(image: nb.Nifti1Image, path: Path) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the first volume and the values of one part of a series after the other."""
    step = max(1, CHUNK_BYTES // (4 * int(np.prod(image.shape[:3]))))
    for start in range(0, image.shape[3], step):
        try:
            yield start, np.asanyarray(image.dataobj[..., start : start + step], dtype=np.float32)
        except IMAGE_ERRORS as error:
            raise BadDataError(
                f"{path}: expected {image.shape[3]} volumes, found a file that ends or breaks after {start} ({error})",
                "copy or convert it again, or leave it out",
            ) from error


def _refuse_not_finite(n_not_finite_v: NDArray[np.int64], path: Path) -> None:
    volumes = np.flatnonzero(n_not_finite_v)
    if volumes.size:
        raise BadDataError(
            f"{path}: expected finite values, found {n_not_finite_v.sum()} NaN or infinite ones in "
            f"{volumes.size} of {n_not_finite_v.size} volumes (first: volume {volumes[0]}, counted from 0)",
            "replace them, for example with fslmaths -nan or mrcalc -finite, or leave this run out",
        )


def _describe(
    image: nb.Nifti1Image, gradients: Gradients, survey: Survey, mask_xyz: NDArray[np.bool_]
) -> dict[str, Any]:
    """Return the facts of the report, JSON-able."""
    above_b0_xyz = (survey.highest_dwi_xyz > survey.mean_b0_xyz) & mask_xyz
    shells = [
        {"b_value": float(b), "n_volumes": int((gradients.shell == s).sum())}
        for s, b in enumerate(gradients.shell_bvals)
    ]
    return {
        "shape": [int(n) for n in image.shape],
        "voxel_size_mm": [float(round(float(z), 4)) for z in image.header.get_zooms()[:3]],
        "orientation": "".join(nb.aff2axcodes(image.affine)),
        "data_type": str(image.get_data_dtype()),
        "n_b0": int(gradients.b0.sum()),
        "n_directions": count_directions(gradients),
        "shells": [shell for shell in shells if shell["n_volumes"]],
        "mask_voxels": int(mask_xyz.sum()),
        "mask_fraction": float(mask_xyz.mean()),
        "negative_values": survey.n_negative,
        "dwi_above_b0_voxels": int(above_b0_xyz.sum()),
        "empty_volumes": list(survey.empty_volumes),
    }


def _odd_values(survey: Survey) -> list[str]:
    warnings = []
    if survey.n_negative:
        warnings.append(
            f"{survey.n_negative} negative values in the input: kept as they are, nothing is clipped"
        )
    if survey.empty_volumes:
        names = ", ".join(map(str, survey.empty_volumes[:8]))
        warnings.append(f"{len(survey.empty_volumes)} empty volumes (one value everywhere; from 0): {names}")
    return warnings
