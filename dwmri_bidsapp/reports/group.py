"""The group level: one table over all runs in OUT_DIR, its data dictionary, and one page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .collect import ENTITIES, Problem, RunRecord, find_records, find_subjects, read_problems
from .glossary import describe_column, order_of, split_name
from .group_page import GroupProblem, group_page
from .outliers import Distance, distances
from .pairs import OWN_METHOD, MeasureTable, tabulate
from .render import write_text
from .subject import grid_of, shells_of
from .truth import true_errors

_MISSING = "n/a"
_EXTRA = {
    "method": {"Description": "How it was denoised: desc entity of the files that were measured"},
    "protocol": {"Description": "Number of the protocol (grid and shells), 1 being the one of most runs"},
    "n_warnings": {"Description": "Warnings recorded for the run"},
    "robust_distance": {
        "Description": "Robust distance of the denoised run from the others of its protocol; n/a with too few runs"
    },
    "outlier": {"Description": "1 for a run unlike the others of its protocol, 0 for the others"},
}
"""Columns of the table that are no measures."""


@dataclass(frozen=True)
class Group:
    """Everything that OUT_DIR tells about a group.

    Attributes
    ----------
    subjects
        Labels of the participants, without ``sub-``.
    records, tables
        One for each run and method, with its measures and true errors.
    problems
        What failed or is missing.
    with_truth
        Whether a truth was given.
    """

    subjects: list[str]
    records: list[RunRecord]
    tables: list[dict[str, Any]]
    problems: list[GroupProblem]
    with_truth: bool

    @property
    def protocols(self) -> dict[tuple[str, str], list[str]]:
        """Labels of the runs by grid and shells, the most frequent protocol first."""
        protocol = {record.label: protocol_of(record) for record in self.records}
        # a method of an earlier call may have seen other data
        protocol |= {
            record.label: protocol_of(record) for record in self.records if record.method == OWN_METHOD
        }
        kinds: dict[tuple[str, str], list[str]] = {}
        for label, kind in protocol.items():
            kinds.setdefault(kind, []).append(label)
        return dict(sorted(kinds.items(), key=lambda kind: -len(kind[1])))


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
    group = read_group(out_dir, None if truth_dir is None else Path(truth_dir))
    table = tabulate(group.records, group.tables)
    kind = {label: i for i, labels in enumerate(group.protocols.values()) for label in labels}
    far = dict(zip(table.labels, distances(table, [kind[label] for label in table.labels]), strict=True))
    names = sorted({name for row in group.tables for name in row}, key=_column_order)
    write_text(out_dir / "group_dwi.tsv", _as_tsv(group, names, kind, far))
    write_text(
        out_dir / "group_dwi.json", json.dumps(_data_dictionary(group.records, names), indent=2) + "\n"
    )
    page = group_page(
        subjects=group.subjects,
        records=group.records,
        table=table,
        problems=[*group.problems, *_missing_methods(group.records, table)],
        protocols=group.protocols,
        far=far,
        with_truth=group.with_truth,
    )
    return write_text(out_dir / "group.html", page)


def read_group(out_dir: Path, truth_dir: Path | None) -> Group:
    """Gather the runs of all participants, and measure them against the truth where there is one."""
    subjects = find_subjects(out_dir)
    records: list[RunRecord] = []
    problems: list[GroupProblem] = []
    for subject in subjects:
        found, unreadable = find_records(out_dir, subject)
        failed = [*read_problems(out_dir, subject), *unreadable]
        records += found
        problems += _problems_of(out_dir, subject, found, failed)
    tables = [dict(record.metrics) for record in records]
    if truth_dir is not None:
        for record, table in zip(records, tables, strict=True):
            errors, trouble = true_errors(record, truth_dir)
            table |= errors
            if trouble:
                head = "Not compared with the truth"
                problems.append(_group_problem(out_dir, record.subject, head, trouble))
    return Group(subjects, records, tables, problems, truth_dir is not None)


def protocol_of(record: RunRecord) -> tuple[str, str]:
    """Return what runs of one protocol have in common: grid and shells, in words."""
    return grid_of(record.preparation), shells_of(record.preparation)


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


def _missing_methods(records: Sequence[RunRecord], table: MeasureTable) -> list[GroupProblem]:
    """Return a problem for each run that lacks a method that most others have."""
    present: dict[str, set[str]] = {}
    subject = {}
    for record in records:
        present.setdefault(record.label, set()).add(record.method)
        subject[record.label] = record.subject
    usual = [m for m in table.methods[1:] if 2 * sum(m in found for found in present.values()) > len(present)]
    hint = "run this participant again with the same --compare: finished steps are not repeated"
    return [
        GroupProblem(
            "Missing", label, f"sub-{subject[label]}.html", f"not denoised by {', '.join(lacking)}", hint
        )
        for label, found in present.items()
        if (lacking := [method for method in usual if method not in found])
    ]


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


def _as_tsv(group: Group, names: Sequence[str], kind: dict[str, int], far: dict[str, Distance | None]) -> str:
    entities = _used_entities(group.records)
    lines = ["\t".join([*entities, *_EXTRA, *names])]
    for record, table in zip(group.records, group.tables, strict=True):
        distance = far[record.label] if record.method == OWN_METHOD else None
        values = [
            *(record.entities.get(column) for column in entities),
            record.method,
            kind[record.label] + 1,
            len(record.warnings),
            None if distance is None else round(distance.distance, 3),
            None if distance is None else int(distance.outlier),
            *(table.get(name) for name in names),
        ]
        lines.append("\t".join(map(_tsv_value, values)))
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
    return columns | _EXTRA | {name: describe_column(name) for name in names}
