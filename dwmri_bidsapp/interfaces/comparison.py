"""Run other denoisers beside, and draw all of them side by side."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    Str,
    TraitedSpec,
    traits,
)

from ..errors import BadDataError
from ..preparation import open_series, read_gradients, read_series
from .base import RunInterface, read_tsv, save_image, write_json
from .reporting import FiguresOutputSpec, read_tensors


class _RunBaselineInputSpec(BaseInterfaceInputSpec):
    dwi_file = File(exists=True, mandatory=True, desc="diffusion-weighted series, as acquired")
    gradients_file = File(exists=True, mandatory=True, desc="checked gradient table (npz)")
    mask_file = File(exists=True, mandatory=True, desc="brain mask")
    method = Str(mandatory=True, desc="a key of BASELINES")
    version = Str(desc="version of DIPY: another one denoises anew")
    output_dtype = Str("float32", usedefault=True, desc="data type of the denoised series")


class _OtherMethodOutputSpec(TraitedSpec):
    denoised_file = File(exists=True, desc="series of this method")
    info_file = File(exists=True, desc="how it went (JSON)")


class RunBaseline(RunInterface):
    """Denoise with a method of others: see :mod:`dwmri_bidsapp.denoising.baselines`."""

    input_spec = _RunBaselineInputSpec
    output_spec = _OtherMethodOutputSpec

    def _work(self, folder: Path) -> dict[str, Any]:
        from ..denoising.baselines import BASELINES

        inputs = self.inputs
        start = time.perf_counter()
        image = open_series(Path(inputs.dwi_file))
        denoised_xyzv = BASELINES[inputs.method](
            read_series(image, Path(inputs.dwi_file)),
            read_gradients(Path(inputs.gradients_file)),
            np.asanyarray(nb.load(inputs.mask_file).dataobj) > 0,
        )
        denoised_file = save_image(denoised_xyzv, image, folder / "denoised.nii", inputs.output_dtype)
        info = {
            "method": f"{inputs.method} of DIPY {inputs.version}",
            "device": "cpu",
            "seconds": {"denoising": round(time.perf_counter() - start, 3)},
        }
        return {
            "denoised_file": str(denoised_file),
            "info_file": str(write_json(info, folder / "info.json")),
        }


class _TakeSeriesInputSpec(BaseInterfaceInputSpec):
    dwi_file = File(exists=True, mandatory=True, desc="diffusion-weighted series, as acquired")
    given_file = File(mandatory=True, desc="the same series, denoised elsewhere")
    output_dtype = Str("float32", usedefault=True, desc="data type of the denoised series")


class TakeSeries(RunInterface):
    """Take a series that was denoised elsewhere, if it lies on the grid of the run."""

    input_spec = _TakeSeriesInputSpec
    output_spec = _OtherMethodOutputSpec

    def _work(self, folder: Path) -> dict[str, Any]:
        given_file = Path(self.inputs.given_file)
        image, given = open_series(Path(self.inputs.dwi_file)), open_series(given_file)
        if given.shape != image.shape or not np.allclose(given.affine, image.affine, atol=1e-3):
            raise BadDataError(
                f"{given_file}: expected the grid of {self.inputs.dwi_file}, {image.shape}, found {given.shape}"
                f"{' with another affine' if given.shape == image.shape else ''}",
                "compare what was denoised without moving or resampling it",
            )
        given_xyzv = read_series(given, given_file)
        if not np.isfinite(given_xyzv).all():
            raise BadDataError(f"{given_file}: expected finite values, found NaN or infinity")
        denoised_file = save_image(given_xyzv, image, folder / "denoised.nii", self.inputs.output_dtype)
        info = {"method": f"denoised elsewhere: {given_file.name}"}
        return {
            "denoised_file": str(denoised_file),
            "info_file": str(write_json(info, folder / "info.json")),
        }


class _DrawMethodsInputSpec(BaseInterfaceInputSpec):
    dwi_file = File(exists=True, mandatory=True, desc="diffusion-weighted series, as acquired")
    sigma_file = File(exists=True, mandatory=True, desc="noise standard deviation, in signal units")
    mask_file = File(exists=True, mandatory=True, desc="brain mask")
    gradients_file = File(exists=True, mandatory=True, desc="checked gradient table (npz)")
    methods = traits.List(Str, mandatory=True, desc="names, the application's own first")
    series = InputMultiObject(File(exists=True), mandatory=True, desc="the denoised series of each method")
    tensors_before = File(exists=True, mandatory=True, desc="tensor maps before (npz)")
    tensors_after = InputMultiObject(File(exists=True), mandatory=True, desc="tensor maps of each method")
    trained = traits.List(Str, desc="the methods that were trained")
    timeseries = InputMultiObject(File(exists=True), desc="courses of their training (TSV)")
    prefix = Str(mandatory=True, desc="entities of the run, such as sub-01_run-1")
    version = Str(desc="version of the program: another one does it anew")


class DrawMethods(RunInterface):
    """Draw all methods side by side: see :func:`dwmri_bidsapp.figures.make_method_figures`."""

    input_spec = _DrawMethodsInputSpec
    output_spec = FiguresOutputSpec

    def _work(self, folder: Path) -> dict[str, Any]:
        from ..figures import make_method_figures

        inputs = self.inputs
        # Kept open: volumes are read one by one, in rising order.
        acquired = nb.load(inputs.dwi_file, keep_file_open=True)
        series = {
            name: nb.load(path, keep_file_open=True).dataobj
            for name, path in zip(inputs.methods, inputs.series, strict=True)
        }
        tensors = {
            name: read_tensors(path) for name, path in zip(inputs.methods, inputs.tensors_after, strict=True)
        }
        histories = {
            name: read_tsv(Path(path)) for name, path in zip(inputs.trained, inputs.timeseries, strict=True)
        }
        figures = make_method_figures(
            acquired.dataobj,
            series,
            nb.load(inputs.sigma_file).get_fdata(dtype=np.float32),
            np.asanyarray(nb.load(inputs.mask_file).dataobj) > 0,
            read_gradients(Path(inputs.gradients_file)),
            acquired.affine,
            tensors={"acquired": read_tensors(inputs.tensors_before), **tensors},
            histories=histories,
            out_dir=folder,
            prefix=inputs.prefix,
        )
        return {"out_files": [str(path) for path in figures.values()], "names": list(figures)}
