"""Before against after over all runs: paired statistics, and a chart whose points are links."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy import stats

from ..figures import svg
from .glossary import describe, order_of
from .render import number

_PANELS = ("true_psnr_dwi", "true_fa_error", "dti_kfold_error", "neighbouring_dwi_correlation", "b0_repeat_spread",
           "fa_mean", "edge_width")  # fmt: skip
_MOST_PANELS = 6
_FOCUSABLE = 60  # more points than this would be a trap for the tab key; the table has the same links


@dataclass(frozen=True, eq=False)
class ComparisonLine:
    """One measure over all runs that have it before and after.

    Attributes
    ----------
    base
        Name without ``_before``.
    pairs : (n, 2) float
        Before and after, NaN where a run lacks it.
    n
        Runs that have both.
    before, after, difference
        Means over these.
    interval
        95% confidence interval of the mean difference, for readers; empty for fewer than two runs.
    effect
        Mean difference over its standard deviation; None where that cannot be told.
    improved
        In how many runs the measure became better.
    """

    base: str
    label: str
    unit: str
    description: str
    pairs: NDArray[np.float64]
    n: int
    before: float
    after: float
    difference: float
    interval: str
    effect: float | None
    improved: str


def compare(tables: Sequence[Mapping[str, Any]]) -> list[ComparisonLine]:
    """Compare before and after for every measure that comes in such a pair.

    Parameters
    ----------
    tables
        Names and numbers of each run.
    """
    bases = {name.removesuffix("_before") for table in tables for name in table if name.endswith("_before")}
    lines = (_line(base, _pairs(tables, base)) for base in sorted(bases, key=order_of))
    return [line for line in lines if line is not None]


def _pairs(tables: Sequence[Mapping[str, Any]], base: str) -> NDArray[np.float64]:
    rows = [[_finite(table.get(f"{base}_{when}")) for when in ("before", "after")] for table in tables]
    return np.array(rows, dtype=np.float64).reshape(len(tables), 2)


def _line(base: str, pairs: NDArray[np.float64]) -> ComparisonLine | None:
    known = pairs[np.isfinite(pairs).all(axis=1)]
    n = len(known)
    if n == 0:
        return None
    metric = describe(base)
    difference = known[:, 1] - known[:, 0]
    interval, effect = "", None
    if n > 1 and (spread := float(difference.std(ddof=1))) > 0:
        low, high = stats.t.interval(0.95, n - 1, difference.mean(), spread / math.sqrt(n))
        interval = f"{number(float(low))} to {number(float(high))}"
        # The spread of two differences says nothing about the effect's size.
        effect = float(difference.mean()) / spread if n > 2 else None
    better = {"higher": difference > 0, "lower": difference < 0}.get(metric.better)
    before, after = known.mean(axis=0).tolist()
    return ComparisonLine(
        base, metric.label, metric.unit, metric.description, pairs, n,
        before=before, after=after, difference=after - before, interval=interval, effect=effect,
        improved="" if better is None else f"{int(better.sum())} of {n}",
    )  # fmt: skip


def comparison_chart(lines: Sequence[ComparisonLine], runs: Sequence[tuple[str, str]]) -> str:
    """Draw after against before for the main measures; every point is a link.

    Parameters
    ----------
    lines
        From :func:`compare`.
    runs
        Label and page of each run, in the order of the pairs.

    Returns
    -------
    str
        SVG; empty when there is nothing to draw.
    """
    by_base = {line.base: line for line in lines}
    shown = [by_base[base] for base in _PANELS if base in by_base][:_MOST_PANELS] or list(lines[:1])
    if not shown:
        return ""
    n_rows = math.ceil(len(shown) / 3)
    with svg.style():
        figure = Figure(figsize=(10.0, 3.4 * n_rows))
        for place, line in enumerate(shown):
            _draw_panel(figure.add_subplot(n_rows, 3, place + 1), line, [page for _, page in runs])
        figure.tight_layout()
    return _name_points(
        svg.to_svg(figure, "comparison", "Measures of each run before and after denoising"), runs
    )


def _draw_panel(axes: Any, line: ComparisonLine, urls: Sequence[str]) -> None:
    known = np.isfinite(line.pairs).all(axis=1)
    before, after = line.pairs[known].T
    low, high = min(before.min(), after.min()), max(before.max(), after.max())
    room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    limits = (low - room, high + room)
    axes.plot(limits, limits, color=svg.GRID, lw=0.9, ls="--")
    points = axes.scatter(before, after, s=34, color=svg.AFTER, alpha=0.75, linewidths=0)
    points.set_urls([urls[i] for i in np.flatnonzero(known).tolist()])
    unit = f" ({line.unit})" if line.unit else ""
    axes.set(
        xlim=limits,
        ylim=limits,
        aspect="equal",
        title=line.label,
        xlabel=f"before{unit}",
        ylabel=f"after{unit}",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4))


def _name_points(drawn: str, runs: Sequence[tuple[str, str]]) -> str:
    """Give every link the run's name, shown on hovering and read aloud, and its page as target."""
    labels = {page: label for label, page in runs}
    focus = "" if len(runs) <= _FOCUSABLE else ' tabindex="-1"'

    def link(found: re.Match[str]) -> str:
        label = escape(labels[found[1]])
        return f'<a href="{found[1]}"{focus} aria-label="{label}"><title>{label}</title>'

    return re.sub(r'<a xlink:href="([^"]*)"[^>]*>', link, drawn)


def _finite(value: Any) -> float:
    usable = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if usable else math.nan
