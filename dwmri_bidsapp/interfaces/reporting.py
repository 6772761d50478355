"""Draw the figures of a run, and write its participant's report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    OutputMultiObject,
    Str,
    TraitedSpec,
    isdefined,
    traits,
)
from numpy.typing import NDArray

from ..metrics import TensorMaps
from ..preparation import read_gradients
from .base import RunInterface, read_tsv


class _DrawFiguresInputSpec(BaseInterfaceInputSpec):
    dwi_file = File(exists=True, mandatory=True, desc="diffusion-weighted series, as acquired")
    denoised_file = File(exists=True, mandatory=True, desc="the same, denoised")
    sigma_file = File(exists=True, mandatory=True, desc="noise standard deviation, in signal units")
    uncertainty_file = File(exists=True, mandatory=True, desc="error that is left, in signal units")
    mask_file = File(exists=True, mandatory=True, desc="brain mask")
    gradients_file = File(exists=True, mandatory=True, desc="checked gradient table (npz)")
    timeseries_file = File(exists=True, mandatory=True, desc="course of the training (TSV)")
    tensors_before = File(exists=True, mandatory=True, desc="tensor maps before (npz)")
    tensors_after = File(exists=True, mandatory=True, desc="tensor maps after (npz)")
    confounds_file = File(exists=True, desc="motion of the head by volume (TSV)")
    prefix = Str(mandatory=True, desc="entities of the run, such as sub-01_run-1")
    version = Str(desc="version of the program: another one does it anew")


class FiguresOutputSpec(TraitedSpec):
    out_files = OutputMultiObject(File(exists=True), desc="the pictures")
    names = traits.List(Str, desc="what each picture shows: its desc entity")


class DrawFigures(RunInterface):
    """Draw the figures of a run: see :func:`dwmri_bidsapp.figures.make_run_figures`."""

    input_spec = _DrawFiguresInputSpec
    output_spec = FiguresOutputSpec

    def _work(self, folder: Path) -> dict[str, Any]:
        from ..figures import make_run_figures

        inputs = self.inputs
        # Kept open: volumes are read one by one, in rising order.
        noisy, denoised = (
            nb.load(path, keep_file_open=True) for path in (inputs.dwi_file, inputs.denoised_file)
        )
        sigma_xyz, uncertainty_xyz, mask_xyz = (
            nb.load(path).get_fdata(dtype=np.float32)
            for path in (inputs.sigma_file, inputs.uncertainty_file, inputs.mask_file)
        )
        figures = make_run_figures(
            noisy.dataobj,
            denoised.dataobj,
            sigma_xyz,
            mask_xyz > 0,
            read_gradients(Path(inputs.gradients_file)),
            noisy.affine,
            history=read_tsv(Path(inputs.timeseries_file)),
            displacement_v=_displacement(inputs.confounds_file) if isdefined(inputs.confounds_file) else None,
            tensors_before=read_tensors(inputs.tensors_before),
            tensors_after=read_tensors(inputs.tensors_after),
            uncertainty_xyz=uncertainty_xyz,
            out_dir=folder,
            prefix=inputs.prefix,
        )
        return {"out_files": [str(path) for path in figures.values()], "names": list(figures)}


def _displacement(confounds_file: str) -> NDArray[np.float64]:
    return np.array([row["framewise_displacement"] for row in read_tsv(Path(confounds_file))])


class _WriteReportInputSpec(BaseInterfaceInputSpec):
    in_files = InputMultiObject(File(exists=True), mandatory=True, desc="results that must have been written")
    out_dir = Str(mandatory=True, desc="root of the derivatives")
    subject = Str(mandatory=True, desc="label of the participant, without sub-")
    run = Str(mandatory=True, desc="label of the run that was finished, such as sub-01_run-1")


class _WriteReportOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the report")


class WriteReport(RunInterface):
    """Write a participant's report: see :func:`dwmri_bidsapp.reports.write_subject_report`.

    Figures of the run that were not made this time are removed first: an earlier call may have found other shells,
    or compared other methods.
    """

    input_spec = _WriteReportInputSpec
    output_spec = _WriteReportOutputSpec
    # The other runs of the participant change it too.
    _always_run = True

    def _work(self, folder: Path) -> dict[str, Any]:
        from ..reports import write_subject_report

        out_dir, subject = Path(self.inputs.out_dir), self.inputs.subject
        made = {Path(file).name for file in self.inputs.in_files}
        for figure in (out_dir / f"sub-{subject}" / "figures").glob(f"{self.inputs.run}_desc-*"):
            if figure.name not in made:
                figure.unlink(missing_ok=True)
        return {"out_file": str(write_subject_report(out_dir, subject, finished=self.inputs.run))}


def read_tensors(path: str) -> TensorMaps:
    """Read tensor maps that the quality node wrote."""
    with np.load(path) as maps:
        return TensorMaps(**maps)
