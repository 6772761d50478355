"""The process of one Python method: ``python -m dwmri_bidsapp.benchmark.worker METHOD FOLDER THREADS [OPTIONS]``.

Reads ``noisy.nii``, ``mask.nii``, ``bval`` and ``bvec`` in FOLDER, and writes ``METHOD.nii`` and, where the method has
them, ``METHOD_sigma.nii`` and ``METHOD_uncertainty.nii``. OPTIONS are fields of DenoiseOptions as JSON.
Imports are local: each method pays for its own libraries only.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

_MOST_VOLUMES_OF_SMALL_PATCH = 124


@dataclass(frozen=True, eq=False)
class Given:
    """What a method may look at: ``noisy.nii`` and the rest of a folder."""

    image: nib.Nifti1Image
    mask_xyz: NDArray[np.bool_]
    folder: Path
    threads: int

    @property
    def noisy_xyzv(self) -> Array:
        """The whole run in memory."""
        # unchanged: nibabel would keep a copy of the run otherwise
        return self.image.get_fdata(dtype=np.float32, caching="unchanged")


@dataclass(frozen=True, eq=False)
class Result:
    """What a method makes of it: the run, unless it wrote that already, and maps (X, Y, Z) or (X, Y, Z, V)."""

    dwi_xyzv: Array | None
    sigma_xyz: Array | None = None
    uncertainty: Array | None = None


def mppca(given: Given) -> Result:
    """DIPY's MP-PCA, as its documentation calls it."""
    from dipy.denoise.localpca import mppca as denoise

    radius = 2 if given.image.shape[3] <= _MOST_VOLUMES_OF_SMALL_PATCH else 3
    dwi_xyzv, sigma_xyz = denoise(
        given.noisy_xyzv, mask=given.mask_xyz, patch_radius=radius, return_sigma=True
    )
    return Result(dwi_xyzv, sigma_xyz)


def patch2self(given: Given) -> Result:
    """DIPY's Patch2Self, version 3; empty volumes keep DIPY 1.12.1 from mixing up the last ones."""
    from ..denoising.baselines import denoise_patch2self
    from ..gradients import load_gradients

    gradients = load_gradients(given.folder / "bval", given.folder / "bvec", given.image.shape[3])
    return Result(denoise_patch2self(given.noisy_xyzv, gradients, given.mask_xyz))


def least_squares(given: Given) -> Result:
    """Leave-one-out regression over the whole mask; a single b=0, which nothing predicts, is passed through."""
    from ..gradients import B0_THRESHOLD
    from .regression import leave_one_out

    dwi_xyzv = given.noisy_xyzv
    noisy_nv = dwi_xyzv[given.mask_xyz]
    predicted_nv = leave_one_out(noisy_nv)
    b0 = np.flatnonzero(np.loadtxt(given.folder / "bval") <= B0_THRESHOLD)
    if len(b0) == 1:
        predicted_nv[:, b0] = noisy_nv[:, b0]
    dwi_xyzv[given.mask_xyz] = predicted_nv
    return Result(dwi_xyzv)


def this_package(given: Given, options: dict[str, Any], name: str) -> Result:
    """Our own denoiser with some options; as in the application, the series stays in its file."""
    import torch

    from ..denoising import DenoiseOptions, denoise
    from ..gradients import load_gradients
    from ..preparation import open_series
    from ..series import copy_series

    torch.set_num_threads(given.threads)
    gradients = load_gradients(given.folder / "bval", given.folder / "bvec", given.image.shape[3])
    source = given.folder / "noisy.nii"
    series = copy_series(open_series(source), source, given.folder / f"{name}.nii")
    found = denoise(
        series, gradients, given.mask_xyz, DenoiseOptions(**options), device="cpu", overwrite=True
    )
    return Result(None, found.sigma_xyz, found.uncertainty_xyz)


PEERS = {"mppca": mppca, "patch2self": patch2self, "leave-one-out": least_squares}


def main(arguments: list[str]) -> None:
    """Run one method on the files of a folder."""
    name, folder, threads = arguments[0], Path(arguments[1]), int(arguments[2])
    image = nib.Nifti1Image.from_filename(folder / "noisy.nii")
    mask_xyz = np.asarray(nib.Nifti1Image.from_filename(folder / "mask.nii").dataobj) > 0
    given = Given(image, mask_xyz, folder, threads)
    result = PEERS[name](given) if name in PEERS else this_package(given, json.loads(arguments[3]), name)
    maps = {
        name: result.dwi_xyzv,
        f"{name}_sigma": result.sigma_xyz,
        f"{name}_uncertainty": result.uncertainty,
    }
    for stem, values in maps.items():
        if values is not None:
            nib.Nifti1Image(np.asarray(values, dtype=np.float32), image.affine).to_filename(
                folder / f"{stem}.nii"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
