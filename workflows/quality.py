"""Measure what denoising did, and draw it."""

from __future__ import annotations

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from .. import __version__
from ..interfaces import CollectMetrics, DrawFigures, MeasureQuality


def init_quality_wf(
    *,
    prefix: str,
    sources: dict[str, str],
    versions: dict[str, str],
    n_procs: int,
    mem_gb: float,
    low_mem: bool = False,
    name: str = "quality_wf",
) -> Workflow:
    """Measure quality without a reference, and draw the figures of the report.

    Parameters
    ----------
    prefix
        Entities of the run, such as ``sub-01_run-1``.
    sources
        BIDS URIs of the files used, by what they are.
    versions
        Versions of the program and its libraries.
    n_procs
        CPUs that nothing else may use while quality is measured.
    mem_gb
        Memory that is expected to be needed, in GB.
    low_mem
        Keep the series in files of the work folder.
    name
        Unique name of this workflow.

    Inputs
    ------
    dwi_file, denoised_file
        Series before and after.
    sigma_file, uncertainty_file
        Noise, and error that is left, in signal units.
    mask_file, gradients_file
        Brain mask and checked gradient table (npz).
    timeseries_file, info_file, preparation_file
        Course of the training (TSV); how it went, and facts of the run (JSON).

    Outputs
    -------
    metrics_json, metrics_tsv
        Everything known about the run, and the measures in one row.
    figures, figure_names
        Pictures, and what each shows.
    tensors_before, tensors_after
        Tensor maps (npz).
    confounds_file
        Motion of the head by volume (TSV).
    """
    workflow = Workflow(name=name)
    workflow.__desc__ = (
        "Quality was measured without a reference: size, whiteness and structure of the residual, the mean signal "
        "of each shell, and diffusion tensors [@basser1994] fitted with *DIPY* [@garyfallidis2014]. Framewise "
        "displacement [@power2012] was estimated from the spatial gradients of each volume's prediction by the other "
        "volumes of its shell; nothing was realigned. "
    )
    series = ["dwi_file", "denoised_file", "sigma_file", "gradients_file", "mask_file"]
    known = ["info_file", "preparation_file"]
    measured = ["tensors_before", "tensors_after", "confounds_file"]
    drawn = [*series, "uncertainty_file", "timeseries_file"]
    inputnode = pe.Node(
        niu.IdentityInterface(fields=[*drawn, *known]),
        name="inputnode",
    )
    outputnode = pe.Node(
        niu.IdentityInterface(fields=["metrics_json", "metrics_tsv", "figures", "figure_names", *measured]),
        name="outputnode",
    )
    measure = pe.Node(
        MeasureQuality(motion=True, low_mem=low_mem, version=__version__),
        name="measure",
        n_procs=n_procs,
        mem_gb=mem_gb,
    )
    collect = pe.Node(CollectMetrics(sources=sources, versions=versions), name="collect", mem_gb=0.2)
    draw = pe.Node(DrawFigures(prefix=prefix, version=__version__), name="draw", mem_gb=1.0)

    workflow.connect([
        (inputnode, measure, [(field, field) for field in series]),
        (inputnode, collect, [(field, field) for field in known]),
        (inputnode, draw, [(field, field) for field in drawn]),
        (measure, collect, [("metrics_file", "metrics_file")]),
        (measure, draw, [(field, field) for field in measured]),
        (measure, outputnode, [(field, field) for field in measured]),
        (collect, outputnode, [("json_file", "metrics_json"),
                               ("tsv_file", "metrics_tsv")]),
        (draw, outputnode, [("out_files", "figures"),
                            ("names", "figure_names")]),
    ])  # fmt: skip
    return workflow
