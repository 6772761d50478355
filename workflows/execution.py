"""Run the workflow of a call, and tell what became of each run."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nipype.pipeline.plugins import LinearPlugin
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from ..bids import DwiRun
from ..config import Config
from ..errors import BadDataError, DwmriError, InputOutputError, RunFailed, TryAgainError, WorkflowError
from ..gpus import too_small
from ..interfaces.base import ERROR_FILE, as_dwmri_error, read_error
from ..stopping import raise_if_stopped
from .base import TOP, init_dwmri_wf, memory_gb, run_workflow_name
from .plugins import make_plugin

LOGGER = logging.getLogger(__name__)
_LAST_NODE = "derivatives_wf.report"
_SHOWN_NODES = {"prepare": "checking", "denoise": "denoising", "measure": "measuring", "report": "reporting"}


@dataclass(frozen=True)
class RunOutcome:
    """What became of a run.

    Attributes
    ----------
    run
        What was processed.
    error
        What went wrong, in one line; None when nothing did.
    exit_code
        0, or what kind of error it was (see :mod:`..errors`).
    """

    run: DwiRun
    error: str | None = None
    exit_code: int = 0


def run_participant_level(config: Config, runs: Sequence[DwiRun]) -> list[RunOutcome]:
    """Denoise all runs; one that fails does not stop the others (unless that was asked for).

    Parameters
    ----------
    config
        What was asked for, the device resolved.
    runs
        What to process.

    Returns
    -------
    list of RunOutcome
        What became of each run, in the same order.

    Raises
    ------
    UsageError
        The plugin file cannot be used.
    WorkflowError
        The workflow could not be built.
    """
    errors = {run.label: error for run in runs if (error := _unreadable(run))}
    usable = [run for run in runs if run.label not in errors]
    if config.gpu_ids:
        for line in too_small({run.label: memory_gb(run.dwi) for run in usable}, config.gpu_ids):
            LOGGER.warning(line)
    if usable:
        errors |= _execute(config, usable)
    return [
        RunOutcome(run, " ".join(str(error).split()), error.exit_code) if error else RunOutcome(run)
        for run in runs
        for error in [errors.get(run.label)]
    ]


def _execute(config: Config, runs: Sequence[DwiRun]) -> dict[str, DwmriError]:
    """Run the workflow, and return the errors by label of the run."""
    ended: set[str] = set()
    plugin = make_plugin(config, _Progress(ended))
    # One after the other, Nipype would take all runs through the first step, then all through the next.
    batches = [[run] for run in runs] if isinstance(plugin, LinearPlugin) else [runs]
    workflows = [_build(config, batch) for batch in batches]
    if config.write_graph:
        _write_graph(_build(config, runs), config.log_dir() / "graph.dot")
    folders = {run.label: config.work_dir / TOP / run_workflow_name(run) for run in runs}
    for folder in folders.values():
        for old in folder.rglob(ERROR_FILE):
            old.unlink()
    stopped: Exception | None = None
    for workflow in workflows:
        try:
            workflow.run(plugin=plugin)
        except Exception as error:  # Nipype raises one for all; what each run has to say is on disk
            LOGGER.debug("Nipype stopped with an error", exc_info=True)
            stopped = error
        raise_if_stopped()
        if stopped and config.stop_on_first_crash:
            break
    return {
        run.label: _error_of(run, folders[run.label], config, stopped)
        for run in runs
        if f"{TOP}.{run_workflow_name(run)}.{_LAST_NODE}" not in ended
    }


def _build(config: Config, runs: Sequence[DwiRun]) -> Workflow:
    try:
        return init_dwmri_wf(config, runs)
    except DwmriError:
        raise
    except Exception as error:
        raise WorkflowError(f"the workflow could not be built: {type(error).__name__}: {error}") from error


def _write_graph(workflow: Workflow, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Drawn only where graphviz is installed; the dot file is always written.
    kind = "svg" if shutil.which("dot") else "dot"
    workflow.write_graph(dotfilename=str(path), graph2use="colored", format=kind, simple_form=True)


class _Progress:
    """Notes which nodes have ended, and tells the user which run is where."""

    def __init__(self, ended: set[str]) -> None:
        self._started: set[str] = set()
        self._ended = ended

    def __call__(self, node: Any, status: str) -> None:
        if status == "start":
            self._started.add(node.fullname)
            if node.name in _SHOWN_NODES:
                run = node.fullname.split(".")[1].removesuffix("_wf")
                LOGGER.info("%s: %s", run, _SHOWN_NODES[node.name])
        # Linear lets nodes "end" that it left out because of an error before them.
        elif status == "end" and node.fullname in self._started:
            self._ended.add(node.fullname)


def _error_of(run: DwiRun, folder: Path, config: Config, stopped: Exception | None) -> DwmriError:
    """Return the first error of a run that did not reach its end."""
    for file in sorted(folder.rglob(ERROR_FILE), key=lambda path: path.stat().st_mtime):
        try:
            error = read_error(file)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a full disk cut it off: the crash file tells the same
        if run.label in error.message:
            return error
        return type(error)(f"{run.dwi}: {error.message}", error.hint)
    name = f"{TOP}.{run_workflow_name(run)}."
    for crash_file in sorted(config.log_dir(run.subject).glob("crash-*.txt")):
        lines = [line.strip() for line in crash_file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if lines and lines[0].startswith(f"Node: {name}"):
            return _error_from_text(f"{run.dwi}: {lines[-1]}", f"see {crash_file}")
    if isinstance(stopped, OSError | MemoryError):
        return as_dwmri_error(stopped)
    reason = "an earlier run failed" if config.stop_on_first_crash else str(stopped or "no node ran")
    return RunFailed(f"{run.dwi}: not finished: {reason[:300]}")


def _error_from_text(message: str, hint: str) -> DwmriError:
    """Return the error that the last line of a traceback tells of, for errors outside our interfaces."""
    if re.search(r"\[Errno (5|13|27|28|30|122)\]", message):
        return InputOutputError(message, hint)
    return (TryAgainError if "MemoryError" in message else RunFailed)(message, hint)


def _unreadable(run: DwiRun) -> DwmriError | None:
    """Return an error for a file that may not be read: Nipype would stop all runs for it."""
    for path in (run.dwi, run.bval, run.bvec, run.mask, run.noise_map, *run.compared.values()):
        if path is None:
            continue
        try:
            with path.open("rb") as stream:
                stream.read(1)
        except FileNotFoundError:
            return BadDataError(f"{path}: no such file")
        except OSError as error:
            return InputOutputError(
                f"{path}: cannot be read: {error.strerror}", "check that it exists and may be read"
            )
    return None
