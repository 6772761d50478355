"""Denoise a run: the one node that owns the accelerator."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from .. import __version__
from ..interfaces import DenoiseRun
from ..options import PARTS, DenoiseOptions

_MODELS = {"multiscale": "MultiScaleDetailNet", "denoiser": "DenoiserNet"}


def init_denoise_wf(
    *,
    method: DenoiseOptions,
    given_noise_map: bool,
    output_dtype: str,
    gpu_ids: tuple[int, ...],
    omp_nthreads: int,
    n_procs: int,
    mem_gb: float,
    lock_dir: Path,
    checkpoint_dir: Path,
    low_mem: bool = False,
    name: str = "denoise_wf",
) -> Workflow:
    """Train on one run alone, and predict all its volumes.

    Parameters
    ----------
    method
        How to denoise.
    given_noise_map
        Whether the noise map will be set; it is estimated otherwise.
    output_dtype
        Data type of the denoised series.
    gpu_ids
        CUDA devices to choose from; none for the CPU.
    omp_nthreads
        CPU threads.
    n_procs
        CPUs that nothing else may use meanwhile.
    mem_gb
        Memory that is expected to be needed, in GB.
    lock_dir
        Where all runs of the call keep the locks of the CUDA devices.
    checkpoint_dir
        Where an interrupted training is continued from.
    low_mem
        Keep the values of the run in files of the work folder.
    name
        Unique name of this workflow.

    Inputs
    ------
    dwi_file, gradients_file, mask_file
        Series, checked gradient table (npz) and brain mask.
    noise_map
        Noise standard deviation in signal units, if given.

    Outputs
    -------
    denoised_file
        Denoised series with the header of the input.
    sigma_file, uncertainty_file
        Noise, and error that is left, as standard deviations in signal units.
    timeseries_file
        Course of the training (TSV).
    info_file
        How it went (JSON).
    """
    workflow = Workflow(name=name)
    workflow.__desc__ = _describe(method.settled(), given_noise_map)
    inputs = ["dwi_file", "gradients_file", "mask_file", "noise_map"]
    outputs = ["denoised_file", "sigma_file", "uncertainty_file", "timeseries_file", "info_file"]
    inputnode = pe.Node(niu.IdentityInterface(fields=inputs), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=outputs), name="outputnode")
    denoise = pe.Node(
        DenoiseRun(
            options=dataclasses.asdict(method),
            version=__version__,
            output_dtype=output_dtype,
            use_gpu=bool(gpu_ids),
            gpu_ids=list(gpu_ids),
            lock_dir=str(lock_dir),
            checkpoint_dir=str(checkpoint_dir),
            low_mem=low_mem,
            num_threads=omp_nthreads,
        ),
        name="denoise",
        # Nipype counts the threads of a GPU node as GPU slots: one node, one slot.
        n_procs=1 if gpu_ids else n_procs,
        mem_gb=mem_gb,
    )

    if method.init not in ("random", "pretrained"):
        denoise.inputs.weights_file = method.init
    workflow.connect([
        (inputnode, denoise, [(f, f) for f in inputs if f != "noise_map" or given_noise_map]),
        (denoise, outputnode, [(f, f) for f in outputs]),
    ])  # fmt: skip
    return workflow


def _fusion(method: DenoiseOptions) -> str:
    if not method.fuses:
        return ""
    condition = "" if method.init == "pretrained" else " where its weights came with the others"
    return (
        "that mean, the measurement, the prediction and the principal components were fused by a second, small "
        f"network{condition}, trained on simulated runs and not on this one"
    )


def _single_b0(method: DenoiseOptions) -> str:
    if not method.b0_denoising:
        return ""
    network = (
        ", by a third such network that sees its principal components and the measurement"
        if method.fuses
        else ""
    )
    return (
        f"a single *b*=0 volume, which no other volume predicts, was denoised without a prediction{network}"
    )


def _twicing(method: DenoiseOptions) -> str:
    if "twicing" in method.leave_out:
        return ""
    return (
        "of what the residuals of each shell of more than six diffusion directions had in common in their mean and "
        "second-order harmonics, averaged over neighbouring voxels, a share was added to the result"
    )


def _describe(method: DenoiseOptions, given_noise_map: bool) -> str:
    loss = {
        "edge-aware": f"EdgeAwareLoss (alpha={method.alpha:g}, beta={method.beta:g})",
        "l1": "the mean absolute error",
        "mse": "the mean squared error",
    }[method.loss]
    start = {
        "random": "random weights",
        "pretrained": "weights that had been trained on simulated runs",
    }.get(method.init, f"weights trained before (`{Path(method.init).name}`)")
    training = (
        f"trained from {start} on this run (at most {method.max_steps} steps, {loss})"
        if method.max_steps
        else f"with {start}, without any training on this run"
    )
    bias = (
        "No correction of the Rician bias was applied"
        if method.bias_correction == "none"
        else "The Rician bias was removed by the exact unbiased inverse [@koay2006; @foi2011]"
    )
    denoised = "All volumes"
    if not method.b0_denoising:
        denoised = "The diffusion-weighted volumes (and no *b*=0 volume)"
    elif not method.blend:
        denoised += " (but no single *b*=0 volume, which no other volume predicts)"
    noise = "given" if given_noise_map else "estimated from local eigenvalues [@gavish2014; @koay2006]"
    blended = (
        "The prediction was moved towards the measured value by as much as its expected error allows, and averaged "
        "with overcomplete local principal components analysis [@manjon2013], whose share grows with that error"
    )
    clauses = [blended, _fusion(method), _twicing(method), _single_b0(method)] if method.blend else []
    blend = "; ".join(filter(None, clauses)) + ". " if clauses else ""
    return (
        f"{denoised} were denoised without a clean reference: each was predicted from all others by local principal "
        f"components that leave out the volume itself (in the manner of [@batson2019; @fadnavis2020]) and refined "
        f"by {_MODELS[method.model]} ({method.base_filters} base filters), a 3D convolutional network "
        f"{training}. {blend}The noise level was {noise}. {bias}. "
        + (
            f"Left out was: {'; '.join(PARTS[part] for part in method.leave_out)}. "
            if method.leave_out
            else ""
        )
    )
