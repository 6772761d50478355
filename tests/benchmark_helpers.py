"""A small case of the benchmark, and its run in files as a scanner would leave them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nb
import numpy as np

from dwmri_bidsapp.benchmark.cases import Case, Run

SMALL = Case(shape=(16, 18, 12), voxel_size=3.0)


def write_acquired(run: Run, folder: Path) -> Path:
    """Write the clean series of a run, with a value below zero, as interpolation makes them."""
    signal_xyzv = run.clean_xyzv.copy()
    signal_xyzv[0, 0, 0, 0] = -5.0
    file = folder / "sub-7_dwi.nii.gz"
    nb.Nifti1Image(signal_xyzv, run.affine).to_filename(file)
    np.savetxt(folder / "sub-7_dwi.bval", run.gradients.bvals[None], fmt="%g")
    np.savetxt(folder / "sub-7_dwi.bvec", run.gradients.bvecs.T)
    return file
