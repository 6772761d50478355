"""The participant level and the group level: what is called in which order, and what is said at the end."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import sys
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from ..bids import (
    DwiRun,
    Found,
    UnusableImage,
    files_below,
    find_runs,
    label_of,
    participants_of,
    select_participants,
)
from ..config import PACKAGE, Config, check_paths
from ..derivatives import (
    check_out_dir,
    write_boilerplate,
    write_config,
    write_provenance,
    write_root_files,
)
from ..errors import BadDataError, DwmriError, RunFailed
from ..machine import PeakMemory, resolve_device, set_environment
from ..raw_layout import DERIVATIVES, write_raw_dataset
from .logs import logging_shown

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A run, or a participant, that could not be processed.

    Attributes
    ----------
    subject
        Label of the participant, without ``sub-``.
    message
        What went wrong.
    exit_code
        What kind of error it was (see :mod:`..errors`).
    run
        The run's label; empty where the message begins with the image, or the whole participant is meant.
    """

    subject: str
    message: str
    exit_code: int
    run: str = ""


@dataclass
class Summary:
    """What the last line will tell.

    Attributes
    ----------
    n_done
        Runs that were denoised.
    said
        What was done, and where to look.
    failures
        What was not.
    """

    n_done: int = 0
    said: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def run_levels(config: Config) -> int:
    """Run the levels that were asked for, and return the exit code.

    Raises
    ------
    DwmriError
        When nothing can be done.
    """
    check_paths(config)
    check_out_dir(config.out_dir, config.output_layout)
    root = config.out_dir
    if config.output_layout == "raw":
        config = dataclasses.replace(config, out_dir=root / DERIVATIVES)
    if config.dry_run:
        from .dry_run import dry_run

        return dry_run(config)
    denoising = "participant" in config.levels and not config.reports_only
    if not denoising and not config.out_dir.is_dir():
        raise BadDataError(
            f"{config.out_dir}: no earlier results: no such folder",
            "check the path, or run the participant level",
        )
    set_environment(config)
    summary = Summary()
    with logging_shown(config.verbose) as write_log_to:
        # Before anything is written: most mistakes show here.
        found = find_runs(config) if denoising else Found([], [], [])
        runs, problems, b0_series = found
        config = resolve_device(config) if denoising and not config.boilerplate_only else config
        subjects = sorted({run.subject for run in runs} | {problem.subject for problem in problems})
        log_dir = config.log_dir(subjects[0] if len(subjects) == 1 else None)
        write_log_to(log_dir / f"{PACKAGE}.log")
        if denoising and config.boilerplate_only:
            _write_methods(config, runs, problems, summary)
            return _end(config, summary)
        for series in b0_series:
            LOGGER.info("left as it is: %s: holds b=0 volumes only", series.dwi)
        if denoising:
            done = _denoise(config, found, subjects, summary)
            if config.output_layout == "raw" and done:
                write_raw_dataset(config.bids_dir, root, done, b0_series)
                summary.said.append(f"raw dataset: {root}")
        elif "participant" in config.levels:
            _write_reports_again(config, summary)
        if "group" in config.levels:
            _write_group(config, summary)
    return _end(config, summary)


def methods_text(config: Config, runs: Sequence[DwiRun]) -> str:
    """Return the methods text of the workflow that a configuration makes of runs.

    Runs that are treated differently (masks, noise maps and other methods may be there for some only) get a paragraph
    for each kind.
    """
    from ..workflows import init_dwmri_wf
    from ..workflows.base import run_workflow_name

    workflow = init_dwmri_wf(config, runs)
    kinds: dict[str, list[str]] = {}
    for run in runs:
        text = workflow.get_node(run_workflow_name(run)).visit_desc()
        kinds.setdefault(text, []).append(run.label)
    if len(kinds) == 1:
        return str(workflow.visit_desc())
    paragraphs = [
        f"**{len(labels)} of {len(runs)} runs, such as {labels[0]}.** {text}"
        for text, labels in kinds.items()
    ]
    return "\n\n".join([workflow.__desc__, *paragraphs])


def _denoise(config: Config, found: Found, subjects: Sequence[str], summary: Summary) -> list[DwiRun]:
    """Denoise all runs, write everything that is not of one run alone, and return the runs that were denoised."""
    runs, problems, b0_series = found
    done: list[DwiRun] = []
    start, memory = time.time(), PeakMemory()
    write_root_files(config)
    for subject in subjects:
        write_config(config, subject)
    for problem in problems:
        LOGGER.info("left out: %s", problem)
        summary.failures.append(Failure(problem.subject, str(problem), problem.exit_code))
    if runs:
        from ..workflows import run_participant_level

        LOGGER.info("to denoise: %d of %d participants, on %s", len(runs), len(subjects), config.device)
        write_boilerplate(config.out_dir, methods_text(config, runs))
        with memory:
            outcomes = run_participant_level(config, runs)
        for outcome in outcomes:
            if outcome.error is None:
                summary.n_done += 1
                done.append(outcome.run)
                if config.clean_workdir:
                    _remove_intermediate_files(config, outcome.run)
            else:
                failed = outcome.run
                summary.failures.append(
                    Failure(failed.subject, outcome.error, outcome.exit_code, failed.label)
                )
    used = {"seconds": round(time.time() - start, 1), "peak_memory_mb": memory.megabytes}
    looked_at = {run.label for run in runs} | {label_of(series.dwi) for series in b0_series}
    _write_records(config, subjects, looked_at, summary.failures, used)
    if summary.n_done:
        report = f"sub-{subjects[0]}.html" if len(subjects) == 1 else "sub-*.html"
        plural = "run" if summary.n_done == 1 else "runs"
        summary.said.append(f"{summary.n_done} {plural} denoised, see {config.out_dir / report}")
    return done


def _remove_intermediate_files(config: Config, run: DwiRun) -> None:
    from ..workflows.base import TOP, run_workflow_name

    shutil.rmtree(config.work_dir / TOP / run_workflow_name(run), ignore_errors=True)


def _write_records(
    config: Config,
    subjects: Sequence[str],
    looked_at: Set[str],
    failures: Sequence[Failure],
    used: Mapping[str, float],
) -> None:
    """Write provenance, and what failed into the participants' reports."""
    from ..reports import write_subject_report

    for subject in subjects:
        own = [failure for failure in failures if failure.subject == subject]
        write_provenance(config, subject, {**used, "failures": [failure.message for failure in own]})
        files = files_below(config.bids_dir / f"sub-{subject}")
        others = {label_of(path) for path in files if path.match("dwi/*_dwi.nii*")} - looked_at
        write_subject_report(config.out_dir, subject, problems=own, others=others)


def _write_methods(
    config: Config, runs: Sequence[DwiRun], problems: Sequence[UnusableImage], summary: Summary
) -> None:
    if not runs:
        raise problems[0]
    written = write_boilerplate(config.out_dir, methods_text(config, runs))
    summary.said.append(f"methods text written, see {written[0]}")


def _write_reports_again(config: Config, summary: Summary) -> None:
    from ..reports import write_subject_report

    present = participants_of(config.out_dir)
    reports = [write_subject_report(config.out_dir, s) for s in select_participants(config) if s in present]
    if not reports:
        raise BadDataError(f"{config.out_dir}: no earlier results of these participants", "run them first")
    summary.said.append(f"{len(reports)} reports written again, see {reports[0]}")


def _write_group(config: Config, summary: Summary) -> None:
    from ..reports import write_group_report

    try:
        report = write_group_report(config.out_dir, truth_dir=config.derivatives.get("truth"))
    except DwmriError as error:
        if not summary.failures:
            raise
        LOGGER.warning("no group report: %s", error)
    else:
        summary.said.append(f"group report: {report}")


def _end(config: Config, summary: Summary) -> int:
    """Print the last line, and return the exit code."""
    failures = summary.failures
    if not failures:
        print(f"{PACKAGE}: done: {'; '.join(summary.said)}", flush=True)
        return 0
    subjects = {failure.subject for failure in failures}
    logs = config.log_dir(subjects.pop()) if len(subjects) == 1 else config.out_dir / "sub-*" / "log"
    lines = [failure.message for failure in failures]
    if len(lines) == 1 and not summary.n_done:
        lines = [f"{lines[0]}; logs: {logs}"]
    else:
        n_all = len(failures) + summary.n_done
        lines.append("; ".join([f"{len(failures)} of {n_all} failed, logs: {logs}", *summary.said]))
    for line in lines:
        print(f"{PACKAGE}: error: {' '.join(line.split())}", file=sys.stderr, flush=True)
    codes = {failure.exit_code for failure in failures}
    return codes.pop() if len(codes) == 1 and not summary.n_done else RunFailed.exit_code
