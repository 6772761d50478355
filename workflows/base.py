"""The workflow of a run, and the workflow of a call."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from .. import __version__
from ..bids import DwiRun
from ..config import BUILT_IN_METHODS, Config
from ..derivatives import versions
from ..images import IMAGE_ERRORS
from ..interfaces import DrawMethods
from .comparison import TRAINED, init_compare_wf
from .denoise import init_denoise_wf
from .outputs import init_derivatives_wf
from .preparation import init_preparation_wf
from .quality import init_quality_wf

TOP = "dwmri_wf"


def init_dwmri_wf(config: Config, runs: Sequence[DwiRun]) -> Workflow:
    """Set up one workflow for each run, side by side.

    Parameters
    ----------
    config
        What was asked for, the device resolved.
    runs
        What to process.

    Returns
    -------
    LiterateWorkflow
        Its ``visit_desc()`` is the text for the methods section of a paper.
    """
    workflow = Workflow(name=TOP, base_dir=str(config.work_dir))
    workflow.__desc__ = (
        "Diffusion MRI data were denoised with *dwmri-bidsapp* {dwmri-bidsapp}, which is based on *Nipype* {nipype} "
        "[@gorgolewski2011; @esteban2019], *PyTorch* {torch} [@paszke2019], *pybids* {pybids} [@yarkoni2019] and the "
        "Brain Imaging Data Structure [@gorgolewski2016]. "
    ).format(**versions())
    workflow.config["execution"].update(
        stop_on_first_crash=str(config.stop_on_first_crash).lower(),
        crashfile_format="txt",
        crashdump_dir=str(config.log_dir()),
        hash_method="content",  # what was finished is known by its content, wherever it was copied from
        create_report="false",
        remove_unnecessary_outputs="false",
        poll_sleep_duration="0.2",
        check_version="false",
    )
    for run in runs:
        run_wf = init_single_run_wf(run, config)
        for node in run_wf._get_all_nodes():
            node.config = deepcopy(workflow.config)
            node.config["execution"]["crashdump_dir"] = str(config.log_dir(run.subject))
        workflow.add_nodes([run_wf])
    return workflow


def init_single_run_wf(run: DwiRun, config: Config) -> Workflow:
    """Set up prepare, denoise, quality and derivatives of one run.

    Workflow graph::

        inputnode ─> preparation_wf ─> denoise_wf ─> quality_wf ─> derivatives_wf
          dwi, bval    gradients         denoised      metrics       BIDS files
          bvec, mask   mask              sigma         figures       report
          noise map    warnings          uncertainty

    Parameters
    ----------
    run
        What to process.
    config
        What was asked for, the device resolved.
    """
    name = run_workflow_name(run)
    workflow = Workflow(name=name)
    size_gb = series_gb(run.dwi)
    # With little memory, the nodes that hold a series take all CPUs: one at a time.
    all_procs = config.nprocs if config.low_mem else None
    sources = _sources(run, config)
    inputs = {"dwi_file": run.dwi, "bval_file": run.bval, "bvec_file": run.bvec,
              "mask_file": run.mask, "noise_map": run.noise_map}  # fmt: skip
    inputnode = pe.Node(niu.IdentityInterface(fields=list(inputs)), name="inputnode")
    inputnode.inputs.trait_set(**{field: str(path) for field, path in inputs.items() if path is not None})
    preparation_wf = init_preparation_wf(
        b0_threshold=config.b0_threshold,
        given_mask=run.mask is not None,
        given_noise_map=run.noise_map is not None,
    )
    denoise_settings: dict[str, Any] = {
        "output_dtype": config.output_dtype,
        "gpu_ids": config.gpu_ids,
        "omp_nthreads": config.omp_nthreads,
        "n_procs": all_procs or config.omp_nthreads,
        "mem_gb": memory_gb(run.dwi),
        "low_mem": config.low_mem,
        # Of this call alone: cuda:0 is another device to another job that shares the work folder.
        "lock_dir": config.work_dir / "locks" / config.run_uuid,
    }
    denoise_wf = init_denoise_wf(
        method=config.method,
        given_noise_map=run.noise_map is not None,
        checkpoint_dir=config.work_dir / TOP / name / "checkpoints",
        **denoise_settings,
    )
    quality_settings: dict[str, Any] = {
        "versions": versions(),
        "n_procs": all_procs or 1,
        "mem_gb": 0.7 + 3 * size_gb,
    }
    quality_wf = init_quality_wf(
        prefix=run.label, sources=sources, low_mem=config.low_mem, **quality_settings
    )
    methods = methods_of(run, config)
    derivatives_wf = init_derivatives_wf(
        run=run, sources=sources, out_dir=str(config.out_dir), methods=methods
    )
    given = [field for field in ("mask_file", "noise_map") if inputs[field] is not None]
    workflow.connect([
        (inputnode, preparation_wf, [
            (field, f"inputnode.{field}") for field in ("dwi_file", "bval_file", "bvec_file", *given)
        ]),
        (inputnode, denoise_wf, [
            (field, f"inputnode.{field}") for field in ("dwi_file", *given) if field != "mask_file"
        ]),
        (inputnode, quality_wf, [("dwi_file", "inputnode.dwi_file")]),
        (preparation_wf, denoise_wf, _same("gradients_file", "mask_file")),
        (preparation_wf, quality_wf, _same("gradients_file", "mask_file", "preparation_file")),
        (preparation_wf, derivatives_wf, _same("mask_file", "bval_file", "bvec_file")),
        (denoise_wf, quality_wf, _same(
            "denoised_file", "sigma_file", "uncertainty_file", "timeseries_file", "info_file"
        )),
        (denoise_wf, derivatives_wf, _same(
            "denoised_file", "sigma_file", "uncertainty_file", "timeseries_file"
        )),
        (quality_wf, derivatives_wf, _same(
            "metrics_json", "metrics_tsv", "confounds_file", "figures", "figure_names"
        )),
    ])  # fmt: skip
    if methods:
        compared = [
            init_compare_wf(
                method=method,
                options=config.method,
                given_file=run.compared.get(method),
                sources=sources,
                denoise_settings=denoise_settings,
                checkpoint_dir=config.work_dir / TOP / name / "checkpoints" / method,
                name=f"compare_{method}_wf",
                **quality_settings,
            )
            for method in methods
        ]
        _connect_comparison(workflow, compared, methods, run.label)
    return workflow


def methods_of(run: DwiRun, config: Config) -> list[str]:
    """Return the other methods that a run is denoised with: those made elsewhere only where there is a file."""
    return [method for method in config.compare if method in BUILT_IN_METHODS or method in run.compared]


def _connect_comparison(
    workflow: Workflow, compared: Sequence[Workflow], methods: Sequence[str], prefix: str
) -> None:
    """Feed the other methods, draw them beside the application's own, and have all of it written."""
    inputnode, derivatives_wf = workflow.get_node("inputnode"), workflow.get_node("derivatives_wf")
    preparation_wf, denoise_wf, quality_wf = (
        workflow.get_node(f"{name}_wf") for name in ("preparation", "denoise", "quality")
    )
    n_methods = len(methods)
    trained = [method for method in methods if method in TRAINED]
    series = pe.Node(niu.Merge(1 + n_methods), name="series", run_without_submitting=True)
    tensors = pe.Node(niu.Merge(1 + n_methods), name="tensors", run_without_submitting=True)
    courses = pe.Node(niu.Merge(1 + len(trained)), name="courses", run_without_submitting=True)
    draw = pe.Node(
        DrawMethods(
            methods=["denoised", *methods],
            trained=["denoised", *trained],
            prefix=prefix,
            version=__version__,
        ),
        name="draw_methods",
        mem_gb=1.0,
    )
    workflow.connect([
        (inputnode, draw, [("dwi_file", "dwi_file")]),
        (preparation_wf, draw, [("outputnode.gradients_file", "gradients_file"),
                                ("outputnode.mask_file", "mask_file")]),
        (denoise_wf, draw, [("outputnode.sigma_file", "sigma_file")]),
        (denoise_wf, series, [("outputnode.denoised_file", "in1")]),
        (denoise_wf, courses, [("outputnode.timeseries_file", "in1")]),
        (quality_wf, tensors, [("outputnode.tensors_after", "in1")]),
        (quality_wf, draw, [("outputnode.tensors_before", "tensors_before")]),
        (series, draw, [("out", "series")]),
        (tensors, draw, [("out", "tensors_after")]),
        (courses, draw, [("out", "timeseries")]),
        (draw, derivatives_wf, [("out_files", "inputnode.methods_figures"),
                                ("names", "inputnode.methods_figure_names")]),
    ])  # fmt: skip
    for number, (method, compare_wf) in enumerate(zip(methods, compared, strict=True), start=2):
        fields = ["denoised_file", "metrics_json", "metrics_tsv"]
        fields += ["timeseries_file"] if method in TRAINED else []
        workflow.connect([
            (inputnode, compare_wf, [("dwi_file", "inputnode.dwi_file")]),
            (preparation_wf, compare_wf, _same("gradients_file", "mask_file", "preparation_file")),
            (denoise_wf, compare_wf, [("outputnode.sigma_file", "inputnode.sigma_file")]),
            (compare_wf, series, [("outputnode.denoised_file", f"in{number}")]),
            (compare_wf, tensors, [("outputnode.tensors_after", f"in{number}")]),
            (compare_wf, derivatives_wf, [
                (f"outputnode.{field}", f"inputnode.{method}_{field}") for field in fields
            ]),
        ])  # fmt: skip
        if method in TRAINED:
            place = f"in{2 + trained.index(method)}"
            workflow.connect(compare_wf, "outputnode.timeseries_file", courses, place)


def run_workflow_name(run: DwiRun) -> str:
    """Return the name of a run's workflow, such as ``sub_01_ses_test_run_1_wf``."""
    return re.sub(r"\W", "_", run.label) + "_wf"


def series_gb(dwi_file: Path) -> float:
    """Return the size of a series as float32 in GB, from its header; 0.5 when that cannot be read."""
    try:
        return float(np.prod(nb.load(dwi_file).shape, dtype=float)) * 4e-9
    except IMAGE_ERRORS:
        # The first node of the run will say what is wrong with the file.
        return 0.5


def memory_gb(dwi_file: Path) -> float:
    """Return the most memory that denoising a series takes, in GB."""
    return 1.0 + 4 * series_gb(dwi_file)


def _same(*fields: str) -> list[tuple[str, str]]:
    return [(f"outputnode.{field}", f"inputnode.{field}") for field in fields]


def _sources(run: DwiRun, config: Config) -> dict[str, str]:
    """Return the BIDS URIs of the files of a run, by what they are."""
    roots = {"raw": config.bids_dir, **config.derivatives}
    files = {"dwi": run.dwi, "bval": run.bval, "bvec": run.bvec, "mask": run.mask, "noise_map": run.noise_map}
    files |= {f"compared_{name}": path for name, path in run.compared.items()}
    return {name: _bids_uri(path, roots) for name, path in files.items() if path is not None}


def _bids_uri(path: Path, roots: dict[str, Path]) -> str:
    # The longest root wins: derivatives may lie inside the dataset.
    for name, root in sorted(roots.items(), key=lambda item: -len(item[1].parts)):
        if path.is_relative_to(root):
            return f"bids:{name}:{path.relative_to(root).as_posix()}"
    return path.as_uri()
