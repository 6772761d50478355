"""The report of one participant: one HTML file with all its runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from .acquisition import metadata_findings, metadata_rows, sphere_data
from .captions import Caption, caption_of, figure_order
from .collect import (
    Problem,
    RunRecord,
    find_records,
    log_files,
    read_problems,
    read_provenance,
    save_problems,
)
from .glossary import MethodRow, MetricRow, method_rows, metric_rows
from .judge import Finding, findings_of
from .methods import read_methods, story_of
from .render import (
    embedded_json,
    inline_svg,
    link_to,
    number,
    plotly_tag,
    render_page,
    seconds,
    write_text,
)

_PAGE_BYTES = 12_000_000
"""Figures embedded in one page (the charting library needs 2 MB more): it opens at once, and can be sent by mail."""

_ELSEWHERE = Markup(
    '<p><a href="{}">Open this picture</a>: it is kept out of the page, which would be too large.</p>'
)


@dataclass(frozen=True)
class FigureView:
    """A figure in the page: its anchor, title, caption and markup; a link where it is not embedded."""

    anchor: str
    title: str
    caption: Caption
    markup: Markup
    embedded: bool


@dataclass(frozen=True)
class RunView:
    """A run in the page; see ``templates/subject.html``."""

    record: RunRecord
    anchor: str
    grid: str
    shells: str
    device: str
    time: str
    story: Markup
    findings: list[Finding]
    metric_rows: list[MetricRow]
    methods: list[str]
    method_rows: list[MethodRow]
    acquisition: list[tuple[str, str]]
    sphere: Markup
    figures: list[tuple[str, list[FigureView]]]
    facts: list[tuple[str, str]]
    record_text: str
    files: list[tuple[str, str]]


def write_subject_report(
    out_dir: str | Path,
    subject: str,
    problems: Iterable[Any] | None = None,
    others: Iterable[str] = (),
    finished: str = "",
) -> Path:
    """Write ``OUT_DIR/sub-<subject>.html`` from what stands in OUT_DIR.

    Parameters
    ----------
    out_dir
        Root of the derivatives.
    subject
        Label of the participant, with or without ``sub-``.
    problems
        What went wrong in this call: errors, outcomes of runs (``.run.label``, ``.error``), failures
        (``.run``, ``.message``) or texts; kept for the group level. None: those of earlier calls.
    others
        Labels of runs that this call had nothing to do with: what earlier calls said of them is kept.
    finished
        Label of a run that was finished just now: what earlier calls said of it, or of no run, is forgotten.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    InputOutputError
        It could not be written.
    """
    out_dir = Path(out_dir)
    subject = subject.removeprefix("sub-")
    records, unreadable = find_records(out_dir, subject)
    known = read_problems(out_dir, subject)
    if problems is not None:
        others = set(others)
        known = [*(problem for problem in known if problem.run in others), *Problem.all_of(problems)]
        save_problems(out_dir, subject, known)
    elif finished:
        known = [problem for problem in known if problem.run not in ("", finished)]
        save_problems(out_dir, subject, known)
    failed = [*known, *unreadable]
    logs = log_files(out_dir, subject)
    memory = read_provenance(logs).get("peak_memory_mb")
    room = _PAGE_BYTES
    runs = []
    for record, compared in runs_and_methods(records):
        runs.append(_view(record, compared, room))
        room -= sum(len(figure.markup) for _, figures in runs[-1].figures for figure in figures)
    methods, references = read_methods(out_dir)
    text = render_page(
        "subject.html",
        title=f"sub-{subject}",
        sections=[
            ("summary", "Summary"),
            *((r.anchor, r.record.label) for r in runs),
            ("methods", "What was done"),
        ],
        subject=f"sub-{subject}",
        runs=runs,
        problems=failed,
        crashes=[(link_to(path, out_dir), path.name) for path in logs if path.name.startswith("crash")],
        logs=[(link_to(path, out_dir), path.name) for path in logs],
        memory=f"{number(memory / 1000)} GB" if isinstance(memory, int | float) else "",
        plotly=plotly_tag() if any(run.sphere for run in runs) else "",
        scripts=["subject.js"],
        group_link="group.html" if (out_dir / "group.html").is_file() else "",
        methods=methods,
        references=references,
    )
    return write_text(out_dir / f"sub-{subject}.html", text)


def runs_and_methods(records: Iterable[RunRecord]) -> list[tuple[RunRecord, list[RunRecord]]]:
    """Return each run's own record, and those of the other methods, which have no section of their own."""
    by_label: dict[str, list[RunRecord]] = {}
    for record in records:
        by_label.setdefault(record.label, []).append(record)
    found = []
    for members in by_label.values():
        own = next((record for record in members if record.method == "denoised"), members[0])
        found.append((own, [record for record in members if record is not own]))
    return found


def _view(record: RunRecord, others: list[RunRecord], room: int) -> RunView:
    info, preparation = record.info, record.preparation
    spent = info.get("seconds")
    total = sum(spent.values()) if isinstance(spent, dict) else spent
    anchor = anchor_of(record)
    everything = {
        "info": info, "preparation": preparation, "metrics": record.metrics, "sources": record.sources,
        "versions": record.versions,
    }  # fmt: skip
    return RunView(
        record=record,
        anchor=anchor,
        grid=grid_of(preparation),
        shells=shells_of(preparation),
        device=str(info.get("device", "")),
        time=seconds(total),
        story=story_of(record),
        findings=[*findings_of(record), *metadata_findings(record)],
        metric_rows=metric_rows(record.metrics),
        methods=["acquired", record.method, *(other.method for other in others)] if others else [],
        method_rows=method_rows([record.metrics, *(other.metrics for other in others)]) if others else [],
        acquisition=metadata_rows(record),
        sphere=embedded_json(sphere) if (sphere := sphere_data(record)) else Markup(""),
        figures=_figures(record, anchor, room),
        facts=_facts(record),
        record_text=json.dumps(everything, indent=2, ensure_ascii=False),
        files=[(link_to(path, record.out_dir), path.name) for path in record.files()],
    )


def anchor_of(record: RunRecord) -> str:
    """Return where a run stands in its participant's page; the group page links to it."""
    return record.label if record.method == "denoised" else f"{record.label}_{record.method}"


def grid_of(preparation: dict[str, Any]) -> str:
    """Return matrix and voxel size for readers."""
    shape, size = preparation.get("shape"), preparation.get("voxel_size_mm")
    texts = []
    if shape:
        texts.append(" × ".join(str(n) for n in shape))
    if size:
        texts.append(" × ".join(number(float(mm)) for mm in size) + " mm")
    return ", ".join(texts)


def shells_of(preparation: dict[str, Any]) -> str:
    """Return b-values and numbers of volumes for readers; a range where there are many."""
    shells = preparation.get("shells") or []
    if len(shells) > 8:
        top = max(shell["b_value"] for shell in shells)
        return f"{len(shells)} b-values up to {top:.0f} ({sum(shell['n_volumes'] for shell in shells)})"
    return ", ".join(f"{shell['b_value']:.0f} ({shell['n_volumes']})" for shell in shells)


def _figures(record: RunRecord, anchor: str, room: int) -> list[tuple[str, list[FigureView]]]:
    """Return the figures by section; those that do not fit in the room (bytes) are linked."""
    files = record.figures()
    known = [(name, found) for name in sorted(files, key=figure_order) if (found := caption_of(name))]
    sections = []
    for section, members in groupby(known, key=lambda entry: entry[1][0].section):
        views = []
        for name, (caption, title) in members:
            room -= files[name].stat().st_size
            embedded = room >= 0
            markup = (
                inline_svg(files[name].read_text(encoding="utf-8"), anchor)
                if embedded
                else _ELSEWHERE.format(link_to(files[name], record.out_dir))
            )
            views.append(FigureView(f"{anchor}-{name}", title, caption, markup, embedded))
        sections.append((section, views))
    return sections


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    info, preparation = record.info, record.preparation
    blend, shares = info.get("blend") or {}, info.get("local_pca_share") or {}
    stages = info.get("seconds")
    spent = stages if isinstance(stages, dict) else {}
    share = info.get("data_loading_share")
    facts = [
        ("Orientation, data type", f"{preparation.get('orientation', '')}, {preparation.get('data_type', '')}"),
        ("Brain mask", f"{number(preparation.get('mask_voxels'))} voxels, from {preparation.get('mask_source', '')}"),
        ("Negative values (kept)", number(preparation.get("negative_values"))),
        ("Voxels with DWI above b=0 (kept)", number(preparation.get("dwi_above_b0_voxels"))),
        ("Network", f"{info.get('model', '')}, {number(info.get('weights'))} weights, {info.get('precision', '')}"),
        ("Training", f"{number(info.get('steps'))} steps, ended: {info.get('stop_reason', '')}"),
        ("Held-out error, start → end (noise variance)",
         f"{number(info.get('heldout_loss_start'), 4)} → {number(info.get('heldout_loss_end'), 4)}"),
        ("Waiting for data", "" if share is None else f"{100 * share:.0f}% of the training"),
        ("Measurement given back, by b-value", ", ".join(f"{b}: {number(w, 2)}" for b, w in blend.items())),
        ("Share of the local PCA, by b-value", ", ".join(f"{b}: {number(w, 2)}" for b, w in shares.items())),
        ("Estimates fused by a network", {True: "yes", False: "no"}.get(info.get("fusion"), "")),  # type: ignore[arg-type]
        (
            "Volumes denoised without a prediction",
            ", ".join(map(str, info.get("local_pca_only_volumes") or ())) or "none",
        ),
        ("Volumes passed through", ", ".join(map(str, info.get("passed_through_volumes") or ())) or "none"),
        ("Median noise level (signal units)", number(info.get("sigma_median"))),
        ("Time", ", ".join(f"{stage} {seconds(spent[stage])}" for stage in spent)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
        ("Sources", ", ".join(str(source) for source in record.sources.values())),
    ]  # fmt: skip
    return [(name, value) for name, value in facts if value.strip(" ,→")]
