"""Write the derivatives of a run: every sink stands here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from ..bids import DwiRun
from ..interfaces import DerivativesDataSink, WriteReport
from .comparison import TRAINED

TIMESERIES_COLUMNS: dict[str, dict[str, str]] = {
    "step": {"Description": "Number of optimiser steps done"},
    "learning_rate": {"Description": "Learning rate of the next step"},
    "training_loss": {"Description": "Loss of the last step; n/a before the first"},
    "heldout_loss": {
        "Description": "Mean squared error of voxels that no step sees, in units of the noise variance: "
        "1 is what the noise alone leaves"
    },
    "seconds": {"Description": "Time since the training began", "Units": "s"},
}

CONFOUNDS_COLUMNS: dict[str, dict[str, str]] = {
    "framewise_displacement": {
        "Description": "Motion of the head since the volume before (Power 2012, sphere of 50 mm), estimated without "
        "registration; n/a where a position is not known",
        "Units": "mm",
    },
    **{
        f"trans_{axis}": {"Description": f"Shift of the head along image axis {axis}", "Units": "mm"}
        for axis in "xyz"
    },
    **{
        f"rot_{axis}": {"Description": f"Turn of the head about image axis {axis}", "Units": "rad"}
        for axis in "xyz"
    },
}


def init_derivatives_wf(
    *,
    run: DwiRun,
    sources: dict[str, str],
    out_dir: str,
    methods: Sequence[str] = (),
    name: str = "derivatives_wf",
) -> Workflow:
    """Set up a sink for each derivative of a run, and the report that follows them.

    Parameters
    ----------
    run
        Names and metadata of the derivatives come from it.
    sources
        BIDS URIs of the files used, by what they are.
    out_dir
        Root of the derivatives.
    methods
        Other methods that the run is denoised with.
    name
        Unique name of this workflow.

    Inputs
    ------
    denoised_file, sigma_file, uncertainty_file, mask_file
        Images on the grid of the run.
    bval_file, bvec_file
        Copies of the gradient table.
    timeseries_file, confounds_file, metrics_tsv, metrics_json
        Tables, and everything known about the run.
    figures, figure_names
        Pictures, and what each shows.
    <method>_denoised_file, <method>_metrics_tsv, <method>_metrics_json, <method>_timeseries_file
        The same of each other method (a course of the training where there was one).
    methods_figures, methods_figure_names
        Pictures of all methods side by side.

    Outputs
    -------
    report
        The participant's report.
    """
    workflow = Workflow(name=name)
    # By sink: the field of the input node, and names and metadata.
    sinks = _own_sinks(run, sources) | _sinks_of_methods(run, sources, methods)
    fields = dict.fromkeys(field for field, _ in sinks.values())
    drawn = ("figures", "methods_figures") if methods else ("figures",)
    names = {"figures": "figure_names", "methods_figures": "methods_figure_names"}
    inputnode = pe.Node(
        niu.IdentityInterface(fields=[*fields, *(names[field] for field in drawn)]), name="inputnode"
    )
    outputnode = pe.Node(niu.IdentityInterface(fields=["report"]), name="outputnode")
    written = pe.Node(niu.Merge(len(sinks)), name="written", run_without_submitting=True, mem_gb=0.1)
    report = pe.Node(
        WriteReport(out_dir=out_dir, subject=run.subject, run=run.label), name="report", mem_gb=0.5
    )

    for number, (sink, (field, settings)) in enumerate(sinks.items(), start=1):
        node = _sink(f"ds_{sink}", run=run, out_dir=out_dir, **settings)
        workflow.connect([
            (inputnode, node, [(field, "in_file")]),
            (node, written, [("out_file", f"in{number}")]),
        ])  # fmt: skip
    workflow.connect([
        *((inputnode, workflow.get_node(f"ds_{field}"), [(names[field], "desc")]) for field in drawn),
        (written, report, [("out", "in_files")]),
        (report, outputnode, [("out_file", "report")]),
    ])  # fmt: skip
    return workflow


def _sink(
    name: str, *, run: DwiRun, out_dir: str, meta_dict: dict[str, Any] | None = None, **names: Any
) -> pe.Node:
    sink = DerivativesDataSink(base_directory=out_dir, source_file=str(run.dwi), **names)
    if meta_dict:
        sink.inputs.meta_dict = meta_dict
    # Small files do not deserve a process of their own; to compress a series takes a while.
    return pe.Node(sink, name=name, run_without_submitting=not name.endswith("dwi"), mem_gb=0.3)


def _own_sinks(run: DwiRun, sources: dict[str, str]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the input field, BIDS entities and sidecar of each sink (no sidecar where the file has none)."""
    fields = {"dwi": "denoised_file", "sigma": "sigma_file", "uncertainty": "uncertainty_file", "mask": "mask_file",
              "bval": "bval_file", "bvec": "bvec_file", "timeseries": "timeseries_file",
              "confounds": "confounds_file"}  # fmt: skip
    return {
        sink: (fields.get(sink, sink), settings)
        for sink, settings in _names_and_metadata(run, sources).items()
    }


def _sinks_of_methods(
    run: DwiRun, sources: dict[str, str], methods: Sequence[str]
) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the same for the other methods, whose files stand beside and differ in ``desc``."""
    if not methods:
        return {}
    sinks: dict[str, tuple[str, dict[str, Any]]] = {
        "methods_figures": ("methods_figures", {"datatype": "figures", "suffix": "dwi"})
    }
    for method in methods:
        made_of = [sources.get(f"compared_{method}", sources["dwi"])]
        dwi = {
            "desc": method, "suffix": "dwi", "compress": True,
            "meta_dict": {
                **run.metadata, "Sources": made_of, "SpatialReference": sources["dwi"], "SkullStripped": False,
                "Description": f"Denoised by {method}, for comparison",
            },
        }  # fmt: skip
        sinks |= {
            f"{method}_dwi": (f"{method}_denoised_file", dwi),
            f"{method}_bval": ("bval_file", {"desc": method, "suffix": "dwi", "extension": ".bval"}),
            f"{method}_bvec": ("bvec_file", {"desc": method, "suffix": "dwi", "extension": ".bvec"}),
        }
        for table in ("metrics_tsv", "metrics_json"):
            sinks[f"{method}_{table}"] = (f"{method}_{table}", {"desc": method, "suffix": "metrics"})
        if method in TRAINED:
            course = {"desc": method, "suffix": "timeseries", "meta_dict": TIMESERIES_COLUMNS}
            sinks[f"{method}_timeseries"] = (f"{method}_timeseries_file", course)
    return sinks


def _names_and_metadata(run: DwiRun, sources: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return BIDS entities and sidecar of each of the own sinks."""
    used = [sources[key] for key in ("dwi", "bval", "bvec", "mask", "noise_map") if key in sources]
    noise = {"model": "noise", "suffix": "dwimap", "compress": True}
    return {
        "dwi": {
            "desc": "denoised", "suffix": "dwi", "compress": True,
            "meta_dict": {
                # The metadata of the input go with the image, and with nothing else.
                **run.metadata,
                "Sources": used,
                "SpatialReference": sources["dwi"],
                "SkullStripped": False,
                "Description": "Denoised inside the brain mask; unchanged outside of it",
            },
        },
        "bval": {"desc": "denoised", "suffix": "dwi", "extension": ".bval"},
        "bvec": {"desc": "denoised", "suffix": "dwi", "extension": ".bvec"},
        "mask": {
            "desc": "brain", "suffix": "mask", "compress": True,
            "meta_dict": {
                "Sources": [sources.get("mask", sources["dwi"])],
                "SpatialReference": sources["dwi"],
                "Type": "Brain",
            },
        },
        "sigma": {
            **noise, "param": "sigma",
            "meta_dict": {
                "Sources": [sources.get("noise_map", sources["dwi"])],
                "SpatialReference": sources["dwi"],
                "SkullStripped": False,
                "Description": "Standard deviation of the noise, in units of the signal",
            },
        },
        "uncertainty": {
            **noise, "param": "uncertainty",
            "meta_dict": {
                "Sources": used,
                "SpatialReference": sources["dwi"],
                "SkullStripped": True,
                "Description": "Root mean square of the error left in the denoised diffusion-weighted volumes, the "
                "noise floor included where it was not removed, in units of the signal",
            },
        },
        "timeseries": {"desc": "training", "suffix": "timeseries", "meta_dict": TIMESERIES_COLUMNS},
        "confounds": {"desc": "confounds", "suffix": "timeseries", "meta_dict": CONFOUNDS_COLUMNS},
        "metrics_tsv": {"desc": "denoised", "suffix": "metrics"},
        "metrics_json": {"desc": "denoised", "suffix": "metrics"},
        "figures": {"datatype": "figures", "suffix": "dwi"},
    }  # fmt: skip
