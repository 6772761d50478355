"""The page of the group: methods side by side, filters, outliers, a table; all numbers ride in the page."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from ..figures.methods import ACQUIRED, method_colours
from .collect import ENTITIES, RunRecord
from .glossary import describe, shell_of
from .outliers import LEAST_RUNS, Distance
from .pairs import OWN_METHOD, MeasureTable, Pair, compare
from .render import embedded_json, number, plotly_tag, render_page
from .subject import anchor_of

_FIRST_SHOWN = ("true_fa_error", "true_psnr_dwi", "dti_kfold_error", "neighbouring_dwi_correlation")
_IN_TABLE = (
    "b0_snr", "residual_std", "residual_edge_correlation", "edge_slope", "neighbouring_dwi_correlation",
    "dti_kfold_error", "fa_mean", "true_psnr_dwi", "true_fa_error",
)  # fmt: skip
"""Measures in the page's table: those that tell runs apart. The TSV has them all."""

_MOST_SELECTIONS = 250  # of filters, for which the statistics ride along


@dataclass(frozen=True)
class GroupProblem:
    """A participant or run that is not, or not fully, in the table."""

    head: str
    subject: str
    link: str
    message: str
    hint: str


@dataclass(frozen=True)
class OutlierRow:
    """A run that is unlike the others."""

    label: str
    link: str
    distance: str
    limit: str
    reasons: str


def group_page(
    *,
    subjects: Sequence[str],
    records: Sequence[RunRecord],
    table: MeasureTable,
    problems: Sequence[GroupProblem],
    protocols: Mapping[tuple[str, str], list[str]],
    far: Mapping[str, Distance | None],
    with_truth: bool,
) -> str:
    """Return the page.

    Parameters
    ----------
    subjects
        Labels of the participants.
    records
        One for each run and method.
    table
        Their measures.
    problems
        What failed or is missing.
    protocols
        Labels of the runs by grid and shells, the most frequent protocol first.
    far
        Robust distance of each run.
    with_truth
        Whether true errors are among the measures.
    """
    data = page_data(records, table, protocols, far)
    sections = [("summary", "Summary")]
    if table.labels:
        sections += [("comparison", "Methods"), ("overview", "All measures"), ("outliers", "Outliers"),
                     ("runs", "Runs"), ("protocols", "Protocols")]  # fmt: skip
    return render_page(
        "group.html",
        title="dwmri-bidsapp: group",
        sections=sections,
        scripts=["group.js"],
        n_subjects=len(subjects),
        n_runs=len(table.labels),
        methods=table.methods[1:],
        problems=problems,
        protocols=[(grid, shells, labels) for (grid, shells), labels in protocols.items()],
        outliers=_outlier_rows(data, far),
        outliers_known=any(distance is not None for distance in far.values()),
        least_runs=LEAST_RUNS,
        with_truth=with_truth,
        data=embedded_json(data),
        plotly=plotly_tag() if table.labels else "",
    )


def page_data(
    records: Sequence[RunRecord],
    table: MeasureTable,
    protocols: Mapping[tuple[str, str], list[str]],
    far: Mapping[str, Distance | None],
) -> dict[str, Any]:
    """Return all that the page's charts and table are drawn from, JSON-able."""
    by_label: dict[str, dict[str, RunRecord]] = {}
    for record in records:
        by_label.setdefault(record.label, {})[record.method] = record
    kinds = list(protocols)
    place = {label: i for i, kind in enumerate(kinds) for label in protocols[kind]}
    runs = [_run_entry(by_label[label], place[label], far[label]) for label in table.labels]
    measures = [_measure_entry(name) for name in table.measures]
    first = next((name for name in _FIRST_SHOWN if name in table.measures), (table.measures or [""])[0])
    return {
        "methods": table.methods,
        "colours": method_colours(table.methods),
        "measures": measures,
        "first": first,
        "columns": [name for name in _IN_TABLE if name in table.measures],
        "runs": runs,
        "protocols": [f"{grid}; {shells}" for grid, shells in kinds],
        "values": [
            [[_round(value) for value in row] for row in per_method.T]
            for per_method in np.moveaxis(table.values, 1, 0)
        ],
        "statistics": _statistics(table, runs),
    }


def _run_entry(records: Mapping[str, RunRecord], protocol: int, far: Distance | None) -> dict[str, Any]:
    record = records.get(OWN_METHOD) or next(iter(records.values()))
    entities = record.entities
    others = [
        f"{key}-{entities[ENTITIES[key]]}" for key in ("acq", "dir", "rec") if ENTITIES[key] in entities
    ]
    shells = record.preparation.get("shells") or []
    return {
        "label": record.label,
        "participant": entities["participant_id"],
        "session": entities.get("session_id", ""),
        "acquisition": " ".join(others),
        # the first is b=0, whatever small b-value its volumes have
        "shells": [f"{shell['b_value']:g}" for shell in shells[1:]],
        "protocol": protocol,
        "page": f"sub-{record.subject}.html#{quote(anchor_of(record))}",
        "warnings": len(record.warnings),
        "distance": None if far is None else _round(far.distance),
        "limit": None if far is None else _round(far.limit),
        "outlier": bool(far and far.outlier),
    }


def _measure_entry(name: str) -> dict[str, str]:
    metric = describe(name)
    return {"name": name, "label": metric.label, "unit": metric.unit, "description": metric.description,
            "ideal": metric.ideal, "better": metric.better, "shell": shell_of(name)}  # fmt: skip


def _statistics(table: MeasureTable, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compute the paired statistics of every selection that the filters can make.

    Keys are ``shell|session|acquisition``, each empty for all; then ``reference|method``; then the measure.
    """
    choices = [
        ["", *sorted({shell for run in runs for shell in run["shells"]}, key=float)],
        ["", *sorted({run["session"] for run in runs if run["session"]})],
        ["", *sorted({run["acquisition"] for run in runs if run["acquisition"]})],
    ]
    selections = sorted(itertools.product(*choices), key=lambda key: sum(map(bool, key)))
    found: dict[str, Any] = {}
    done: dict[bytes, dict[str, Any]] = {}
    for key in selections[:_MOST_SELECTIONS]:
        chosen_r = _chosen(runs, *key)
        if not chosen_r.any():
            continue
        same = chosen_r.tobytes()
        if same not in done:
            done[same] = _pairs_of(table, chosen_r)
        found["|".join(key)] = done[same]
    return found


def _chosen(
    runs: Sequence[Mapping[str, Any]], shell: str, session: str, acquisition: str
) -> NDArray[np.bool_]:
    return np.array([
        (not shell or shell in run["shells"])
        and (not session or run["session"] == session)
        and (not acquisition or run["acquisition"] == acquisition)
        for run in runs
    ])  # fmt: skip


def _pairs_of(table: MeasureTable, chosen_r: NDArray[np.bool_]) -> dict[str, Any]:
    references = [name for name in (ACQUIRED, OWN_METHOD) if name in table.methods]
    return {
        f"{reference}|{method}": {
            measure: _pair_entry(pair)
            for measure, pair in compare(table, reference, method, chosen_r).items()
        }
        for reference in references
        for method in table.methods
        if method not in (reference, ACQUIRED)
    }


def _pair_entry(pair: Pair) -> list[float | None]:
    numbers = (pair.reference, pair.method, pair.difference, pair.low, pair.high, pair.effect, pair.effect_low,
               pair.effect_high)  # fmt: skip
    return [pair.n, *(None if value is None else _round(value) for value in numbers), pair.improved]


def _round(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _outlier_rows(data: Mapping[str, Any], far: Mapping[str, Distance | None]) -> list[OutlierRow]:
    rows = []
    for run in sorted(data["runs"], key=lambda run: -(run["distance"] or 0)):
        distance = far[run["label"]]
        if distance is None or not distance.outlier:
            continue
        reasons = ", ".join(
            f"{describe(name).label} {'high' if z > 0 else 'low'} (z {number(z, 2)})"
            for name, z in distance.reasons
        )
        rows.append(
            OutlierRow(run["label"], run["page"], number(distance.distance), number(distance.limit), reasons)
        )
    return rows
