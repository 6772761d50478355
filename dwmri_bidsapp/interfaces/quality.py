"""Measure what denoising did, and collect all that is known about a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, Str, TraitedSpec, traits

from ..preparation import open_series, read_gradients, read_series
from .base import RunInterface, write_json, write_tsv


class _MeasureQualityInputSpec(BaseInterfaceInputSpec):
    dwi_file = File(exists=True, mandatory=True, desc="diffusion-weighted series, as acquired")
    denoised_file = File(exists=True, mandatory=True, desc="the same, denoised")
    sigma_file = File(exists=True, mandatory=True, desc="noise standard deviation, in signal units")
    gradients_file = File(exists=True, mandatory=True, desc="checked gradient table (npz)")
    mask_file = File(exists=True, mandatory=True, desc="brain mask")
    motion = traits.Bool(False, usedefault=True, desc="estimate the motion of the head, too")
    low_mem = traits.Bool(False, usedefault=True, nohash=True, desc="keep the series in files")
    version = Str(desc="version of the program: another one does it anew")


class _MeasureQualityOutputSpec(TraitedSpec):
    metrics_file = File(exists=True, desc="measures by name (JSON)")
    tensors_before = File(exists=True, desc="tensor maps of the series as acquired (npz)")
    tensors_after = File(exists=True, desc="tensor maps of the denoised series (npz)")
    confounds_file = File(exists=True, desc="motion of the head by volume (TSV)")


class MeasureQuality(RunInterface):
    """Measure without a reference: see :func:`dwmri_bidsapp.metrics.no_reference_metrics`."""

    input_spec = _MeasureQualityInputSpec
    output_spec = _MeasureQualityOutputSpec

    def _work(self, folder: Path) -> dict[str, Any]:
        from .. import metrics

        noisy_xyzv, denoised_xyzv = (
            read_series(open_series(path), path, folder if self.inputs.low_mem else None)
            for path in (Path(self.inputs.dwi_file), Path(self.inputs.denoised_file))
        )
        gradients = read_gradients(Path(self.inputs.gradients_file))
        mask_xyz = np.asanyarray(nb.load(self.inputs.mask_file).dataobj) > 0
        sigma_xyz = nb.load(self.inputs.sigma_file).get_fdata(dtype=np.float32)
        before, after = (metrics.fit_tensor(dwi, gradients, mask_xyz) for dwi in (noisy_xyzv, denoised_xyzv))
        measures = metrics.no_reference_metrics(
            noisy_xyzv, denoised_xyzv, sigma_xyz, mask_xyz, gradients, tensors=(before, after)
        )
        outputs = {}
        if self.inputs.motion:
            zooms = nb.load(self.inputs.mask_file).header.get_zooms()[:3]
            motion_v6 = metrics.estimate_motion(noisy_xyzv, gradients, mask_xyz, zooms)
            displacement_v = metrics.framewise_displacement(motion_v6)
            measures |= metrics.motion_measures(displacement_v)
            rows = [
                {"framewise_displacement": fd, **dict(zip(metrics.MOTION_COLUMNS, row, strict=True))}
                for fd, row in zip(displacement_v.tolist(), motion_v6.tolist(), strict=True)
            ]
            outputs["confounds_file"] = str(write_tsv(rows, folder / "confounds.tsv"))
        outputs["metrics_file"] = str(write_json(measures, folder / "metrics.json"))
        for name, maps in {"tensors_before": before, "tensors_after": after}.items():
            np.savez(folder / f"{name}.npz", **vars(maps))
            outputs[name] = str(folder / f"{name}.npz")
        return outputs


class _CollectMetricsInputSpec(BaseInterfaceInputSpec):
    metrics_file = File(exists=True, mandatory=True, desc="measures by name (JSON)")
    info_file = File(exists=True, mandatory=True, desc="how denoising went (JSON)")
    preparation_file = File(exists=True, mandatory=True, desc="facts and warnings (JSON)")
    sources = traits.Dict(Str, mandatory=True, desc="BIDS URIs of the files used")
    versions = traits.Dict(Str, mandatory=True, desc="versions of the program and its libraries")


class _CollectMetricsOutputSpec(TraitedSpec):
    json_file = File(exists=True, desc="everything known about the run")
    tsv_file = File(exists=True, desc="the measures in one row")


class CollectMetrics(RunInterface):
    """Join what the nodes of a run have written into what the reports read."""

    input_spec = _CollectMetricsInputSpec
    output_spec = _CollectMetricsOutputSpec

    def _work(self, folder: Path) -> dict[str, Any]:
        inputs = self.inputs
        files = {
            "metrics": inputs.metrics_file,
            "info": inputs.info_file,
            "preparation": inputs.preparation_file,
        }
        known = {name: json.loads(Path(path).read_text(encoding="utf-8")) for name, path in files.items()}
        everything = {**known, "sources": inputs.sources, "versions": inputs.versions}
        return {
            "json_file": str(write_json(everything, folder / "metrics.json")),
            "tsv_file": str(write_tsv([known["metrics"]], folder / "metrics.tsv")),
        }
