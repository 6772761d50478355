"""The group level: one table over all runs in OUT_DIR, its data dictionary, and one page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .collect import ENTITIES, Problem, RunRecord, find_records, find_subjects, read_problems
from .comparison import compare, comparison_chart
from .glossary import describe, describe_column, order_of, split_name
from .render import inline_svg, number, render_page, write_text
from .subject import anchor_of, grid_of, shells_of
from .truth import true_errors

_MISSING = "n/a"
_IN_PAGE = (
    "b0_snr", "residual_std", "residual_edge_correlation", "edge_slope", "neighbouring_dwi_correlation",
    "dti_kfold_error", "fa_mean", "true_psnr_dwi", "true_fa_error",
)  # fmt: skip
"""Measures in the page's table: those that tell runs apart. The TSV has them all."""


@dataclass(frozen=True)
class Column:
    """A column of the page's table."""

    label: str
    unit: str
    description: str
    numeric: bool


@dataclass(frozen=True)
class Cell:
    """A cell: what is shown, what is sorted by, where it leads."""

    text: str
    value: str
    numeric: bool
    link: str = ""


@dataclass(frozen=True)
class GroupProblem:
    """A participant or run that is not, or not fully, in the table."""

    head: str
    subject: str
    link: str
    message: str
    hint: str


@dataclass(frozen=True)
class Protocol:
    """Runs acquired alike."""

    grid: str
    shells: str
    labels: list[str]


def write_group_report(out_dir: str | Path, truth_dir: str | Path | None = None) -> Path:
    """Write ``group_dwi.tsv``, ``group_dwi.json`` and ``group.html`` from what stands in OUT_DIR.

    Parameters
    ----------
    out_dir
        Root of the derivatives; participants may have been processed by separate jobs.
    truth_dir
        BIDS derivatives with the noise-free series of simulated data, ``*_desc-truth_dwi.nii.gz``: the true
        errors before and after are measured, too.

    Returns
    -------
    Path
        ``group.html``.

    Raises
    ------
    InputOutputError
        A file could not be written.
    """
    out_dir = Path(out_dir)
    subjects = find_subjects(out_dir)
    records: list[RunRecord] = []
    problems: list[GroupProblem] = []
    for subject in subjects:
        found, unreadable = find_records(out_dir, subject)
        failed = [*read_problems(out_dir, subject, found), *unreadable]
        records += found
        problems += _problems_of(out_dir, subject, found, failed)
    tables = [dict(record.metrics) for record in records]
    if truth_dir is not None:
        for record, table in zip(records, tables, strict=True):
            errors, trouble = true_errors(record, Path(truth_dir))
            table |= errors
            if trouble:
                problems.append(
                    _group_problem(out_dir, record.subject, "Not compared with the truth", trouble)
                )
    names = sorted({name for table in tables for name in table}, key=_column_order)
    write_text(out_dir / "group_dwi.tsv", _as_tsv(records, tables, names))
    write_text(out_dir / "group_dwi.json", json.dumps(_data_dictionary(records, names), indent=2) + "\n")
    page = _page(subjects, records, tables, problems, with_truth=truth_dir is not None)
    return write_text(out_dir / "group.html", page)


def _page(
    subjects: Sequence[str],
    records: Sequence[RunRecord],
    tables: Sequence[dict[str, Any]],
    problems: Sequence[GroupProblem],
    *,
    with_truth: bool,
) -> str:
    lines = compare(tables)
    columns, rows = _page_table(records, tables)
    chart = comparison_chart(lines, [(record.label, _page_of(record)) for record in records])
    sections = [("summary", "Summary")]
    sections += [("comparison", "Before and after")] if lines else []
    sections += [("runs", "Runs"), ("protocols", "Protocols")] if rows else []
    return render_page(
        "group.html",
        title="dwmri-bidsapp: group",
        sections=sections,
        n_subjects=len(subjects),
        problems=problems,
        protocols=_protocols(records),
        comparison=lines,
        chart=inline_svg(chart, "group") if lines else "",
        good="below the line where lower is better, above it where higher is better.",
        columns=columns,
        rows=rows,
        with_truth=with_truth,
    )


def _page_of(record: RunRecord) -> str:
    return f"sub-{record.subject}.html#{quote(anchor_of(record))}"


def _problems_of(
    out_dir: Path, subject: str, records: Sequence[RunRecord], failed: Sequence[Problem]
) -> list[GroupProblem]:
    if failed or records:
        return [_group_problem(out_dir, subject, "Failed", problem) for problem in failed]
    missing = Problem(
        "no finished run, and no error was recorded", "run the participant level for it, or look at its log"
    )
    return [_group_problem(out_dir, subject, "Missing", missing)]


def _group_problem(out_dir: Path, subject: str, head: str, problem: Problem) -> GroupProblem:
    page = f"sub-{subject}.html"
    link = page if (out_dir / page).is_file() else ""
    return GroupProblem(head, problem.run or f"sub-{subject}", link, problem.message, problem.hint)


def _column_order(name: str) -> tuple[Any, ...]:
    base, when = split_name(name)
    return (*order_of(base), ("", "before", "after").index(when))


def _used_entities(records: Sequence[RunRecord]) -> list[str]:
    """Entity columns that any run has; participant_id always."""
    return [
        column
        for column in ENTITIES.values()
        if column == "participant_id" or any(column in record.entities for record in records)
    ]


def _as_tsv(records: Sequence[RunRecord], tables: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    entities = _used_entities(records)
    lines = ["\t".join([*entities, "method", *names])]
    for record, table in zip(records, tables, strict=True):
        keys = [record.entities.get(column, _MISSING) for column in entities]
        lines.append("\t".join([*keys, record.method, *(_tsv_value(table.get(name)) for name in names)]))
    return "\n".join(lines) + "\n"


def _tsv_value(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return _MISSING
    return repr(value) if isinstance(value, int | float) else " ".join(str(value).split())


def _data_dictionary(records: Sequence[RunRecord], names: Sequence[str]) -> dict[str, dict[str, str]]:
    columns = {
        column: {"Description": f"BIDS entity: {column.removesuffix('_id')}"}
        for column in _used_entities(records)
    }
    columns["method"] = {"Description": "desc entity of the files that were measured"}
    return columns | {name: describe_column(name) for name in names}


def _page_table(
    records: Sequence[RunRecord], tables: Sequence[dict[str, Any]]
) -> tuple[list[Column], list[list[Cell]]]:
    shown = [base for base in _IN_PAGE if any(base in table or f"{base}_after" in table for table in tables)]
    texts = [("Run", ""), ("Shells", "s/mm²")]
    columns = [Column(label, unit, "", False) for label, unit in texts]
    columns.append(Column("Warnings", "", "Number of warnings recorded for the run", True))
    for base in shown:
        metric = describe(base)
        columns.append(Column(metric.label, metric.unit, f"{metric.description} Good: {metric.ideal}.", True))
    rows = []
    for record, table in zip(records, tables, strict=True):
        name = record.label if record.method == "denoised" else f"{record.label} ({record.method})"
        cells = [
            Cell(name, name, False, _page_of(record)),
            Cell(shells_of(record.preparation), shells_of(record.preparation), False),
            Cell(str(len(record.warnings)), str(len(record.warnings)), True),
        ]
        for base in shown:
            value = table.get(f"{base}_after", table.get(base))
            text = number(value)
            cells.append(Cell(text, repr(value) if text else "", True))
        rows.append(cells)
    return columns, rows


def _protocols(records: Sequence[RunRecord]) -> list[Protocol]:
    """Kinds of acquisition, the most frequent one first."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for record in records:
        kinds.setdefault((grid_of(record.preparation), shells_of(record.preparation)), []).append(
            record.label
        )
    found = [Protocol(grid, shells, labels) for (grid, shells), labels in kinds.items()]
    return sorted(found, key=lambda protocol: -len(protocol.labels))
