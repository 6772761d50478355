"""Check a run and find its brain."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, Str, TraitedSpec, isdefined, traits

from .. import preparation
from .base import RunInterface, save_image, write_json


class _PrepareRunInputSpec(BaseInterfaceInputSpec):
    dwi_file = File(exists=True, mandatory=True, desc="diffusion-weighted series")
    bval_file = File(exists=True, mandatory=True, desc="b-values, in s/mm²")
    bvec_file = File(exists=True, mandatory=True, desc="directions, in the frame of FSL")
    mask_file = File(exists=True, desc="brain mask, made where not given")
    noise_map = File(exists=True, desc="noise standard deviation in signal units; only checked")
    b0_threshold = traits.Float(50.0, usedefault=True, desc="b-values up to this are b=0, in s/mm²")
    version = Str(desc="version of the program: another one does it anew")


class _PrepareRunOutputSpec(TraitedSpec):
    gradients_file = File(exists=True, desc="checked gradient table (npz)")
    mask_file = File(exists=True, desc="brain mask, uint8")
    preparation_file = File(exists=True, desc="facts and warnings (JSON)")
    bval_file = File(exists=True, desc="copy of the b-values, byte for byte")
    bvec_file = File(exists=True, desc="copy of the directions, byte for byte")


class PrepareRun(RunInterface):
    """Check image and gradient table, find the brain: see :func:`dwmri_bidsapp.preparation.prepare_run`."""

    input_spec = _PrepareRunInputSpec
    output_spec = _PrepareRunOutputSpec

    def _work(self, folder: Path) -> dict[str, Any]:
        inputs = self.inputs
        dwi_file = Path(inputs.dwi_file)
        prepared = preparation.prepare_run(
            dwi_file,
            Path(inputs.bval_file),
            Path(inputs.bvec_file),
            mask_file=Path(inputs.mask_file) if isdefined(inputs.mask_file) else None,
            noise_map_file=Path(inputs.noise_map) if isdefined(inputs.noise_map) else None,
            b0_threshold=inputs.b0_threshold,
        )
        preparation.save_gradients(prepared.gradients, folder / "gradients.npz")
        image = preparation.open_series(dwi_file)
        mask_file = save_image(prepared.mask_xyz.astype(np.uint8), image, folder / "mask.nii.gz", "uint8")
        return {
            "gradients_file": str(folder / "gradients.npz"),
            "mask_file": str(mask_file),
            "preparation_file": str(write_json(prepared.report, folder / "preparation.json")),
            # Copies, because the sink would make hard links into the dataset.
            "bval_file": shutil.copyfile(inputs.bval_file, folder / "dwi.bval"),
            "bvec_file": shutil.copyfile(inputs.bvec_file, folder / "dwi.bvec"),
        }
