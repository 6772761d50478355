"""Denoise a run with another method too, measured like the application's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from .. import __version__
from ..interfaces import CollectMetrics, MeasureQuality, RunBaseline, TakeSeries
from ..options import DenoiseOptions
from .denoise import init_denoise_wf

TRAINED = ("denoiser",)
"""Methods that leave a course of a training."""

_SENTENCES = {
    "mppca": "Marchenko-Pastur PCA of *DIPY* [@veraart2016; @garyfallidis2014]",
    "patch2self": "Patch2Self as *DIPY* ships it [@fadnavis2020; @garyfallidis2014]",
    "denoiser": "DenoiserNet trained with the mean absolute error, in place of the network and the loss above",
}


def denoiser_options(method: DenoiseOptions) -> DenoiseOptions:
    """Return the options of the method ``denoiser``: everything alike but network, loss and weights."""
    return dataclasses.replace(method, init="random", model="denoiser", loss="l1")


def init_compare_wf(
    *,
    method: str,
    options: DenoiseOptions,
    given_file: Path | None,
    sources: dict[str, str],
    versions: dict[str, str],
    n_procs: int,
    mem_gb: float,
    denoise_settings: dict[str, Any],
    checkpoint_dir: Path,
    name: str,
) -> Workflow:
    """Run one other method on a run, and measure it.

    Parameters
    ----------
    method
        ``"mppca"``, ``"patch2self"``, ``"denoiser"``, or the name of derivatives made elsewhere.
    options
        How the application's own method denoises.
    given_file
        The series of derivatives made elsewhere.
    sources
        BIDS URIs of the files used.
    versions
        Versions of the program and its libraries.
    n_procs
        CPUs that nothing else may use while quality is measured.
    mem_gb
        Memory that is expected to be needed, in GB.
    denoise_settings
        Keywords of :func:`init_denoise_wf` that do not depend on the method.
    checkpoint_dir
        Where an interrupted training is continued from, with a TensorBoard log.
    name
        Unique name of this workflow.

    Inputs
    ------
    dwi_file, gradients_file, mask_file, sigma_file
        Series, checked gradient table (npz), brain mask, and the noise level that all methods are measured with.
    preparation_file
        Facts of the run (JSON).

    Outputs
    -------
    denoised_file
        Series of this method.
    timeseries_file
        Course of its training (TSV), for methods of :data:`TRAINED`.
    metrics_json, metrics_tsv
        Everything known about it, and the measures in one row.
    tensors_before, tensors_after
        Tensor maps (npz).
    """
    workflow = Workflow(name=name)
    text = _SENTENCES.get(method, f"the derivatives called *{method}*, made elsewhere")
    workflow.__desc__ = f"For comparison the run was also denoised by {text}. "
    fields = ["dwi_file", "gradients_file", "mask_file", "sigma_file", "preparation_file"]
    inputnode = pe.Node(niu.IdentityInterface(fields=fields), name="inputnode")
    outputs = [
        "denoised_file",
        "timeseries_file",
        "metrics_json",
        "metrics_tsv",
        "tensors_before",
        "tensors_after",
    ]
    outputnode = pe.Node(niu.IdentityInterface(fields=outputs), name="outputnode")
    measure = pe.Node(MeasureQuality(version=__version__), name="measure", n_procs=n_procs, mem_gb=mem_gb)
    collect = pe.Node(CollectMetrics(sources=sources, versions=versions), name="collect", mem_gb=0.2)

    if method == "denoiser":
        denoise = init_denoise_wf(
            method=denoiser_options(options),
            given_noise_map=True,
            checkpoint_dir=checkpoint_dir,
            name="denoise_wf",
            **denoise_settings,
        )
        denoise.__desc__ = ""
        inputs = [("dwi_file", "inputnode.dwi_file"), ("gradients_file", "inputnode.gradients_file"),
                  ("mask_file", "inputnode.mask_file"), ("sigma_file", "inputnode.noise_map")]  # fmt: skip
        made, prefix = denoise, "outputnode."
    else:
        dtype = denoise_settings["output_dtype"]
        if given_file is not None:
            interface = TakeSeries(given_file=str(given_file), output_dtype=dtype)
            inputs = [("dwi_file", "dwi_file")]
        else:
            interface = RunBaseline(
                method=method, version=versions.get("dipy", __version__), output_dtype=dtype
            )
            inputs = [(field, field) for field in ("dwi_file", "gradients_file", "mask_file")]
        made, prefix = pe.Node(interface, name="denoise", n_procs=n_procs, mem_gb=mem_gb), ""

    series = ["dwi_file", "gradients_file", "mask_file", "sigma_file"]
    workflow.connect([
        (inputnode, made, inputs),
        (inputnode, measure, [(field, field) for field in series]),
        (inputnode, collect, [("preparation_file", "preparation_file")]),
        (made, measure, [(f"{prefix}denoised_file", "denoised_file")]),
        (made, collect, [(f"{prefix}info_file", "info_file")]),
        (made, outputnode, [(f"{prefix}denoised_file", "denoised_file")]),
        (measure, collect, [("metrics_file", "metrics_file")]),
        (measure, outputnode, [("tensors_before", "tensors_before"), ("tensors_after", "tensors_after")]),
        (collect, outputnode, [("json_file", "metrics_json"), ("tsv_file", "metrics_tsv")]),
    ])  # fmt: skip
    if method in TRAINED:
        workflow.connect(made, f"{prefix}timeseries_file", outputnode, "timeseries_file")
    return workflow
