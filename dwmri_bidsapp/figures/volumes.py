"""Charts of the volumes themselves: the carpet of the signal, and how each volume fits its neighbours.

Axis letters: v volumes; n sampled voxels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..gradients import Gradients, nearest_in_shell
from ..outlying import outlying_volumes
from .charts import shell_colours
from .statistics import RunStatistics
from .svg import AFTER, BEFORE, GRID, INK, style

BAD = "#d55e00"
"""Marks of what should be looked at (Okabe & Ito's vermilion)."""

LARGE_MM = 1.0
"""Framewise displacement from which a volume moved visibly."""

_WIDTH_IN = 10.0
_LIMIT = 5.0  # noise standard deviations


def outliers_of(statistics: RunStatistics, gradients: Gradients) -> NDArray[np.bool_]:
    """Return which volumes stand out by mean signal, spread of the residual, or correlation, (V,) bool."""
    nearest_v2 = nearest_in_shell(gradients, 2)
    # The better of two: a good volume may have a bad neighbour.
    alike_v = np.max(
        [_correlations(statistics.before, statistics.before[:, nearest_v2[:, i]]) for i in (0, 1)], axis=0
    )
    values_3v = np.stack([statistics.mean_before, statistics.residual_std, alike_v])
    return outlying_volumes(np.nan_to_num(values_3v), gradients.shell)


def signal_carpet_chart(
    statistics: RunStatistics, gradients: Gradients, displacement_v: NDArray[Any] | None = None
) -> Figure:
    """Draw the signal of sampled voxels in all volumes, as difference to the voxel's mean over its shell.

    Volumes stand in the order of b-value, then of acquisition; those that stand out are marked. Above it the
    motion of the head since the volume before (mm), where it is known.
    """
    order_v = np.argsort(gradients.shell, kind="stable")
    rows = statistics.carpet_rows
    far_v = outliers_of(statistics, gradients)[order_v]
    colours = shell_colours(gradients.shell_bvals)
    with style():
        moved = displacement_v is not None and bool(np.isfinite(displacement_v).any())
        figure = Figure(figsize=(_WIDTH_IN, 5.9 if moved else 5.0))
        strip, *traces, before, after = figure.subplots(
            4 if moved else 3, 1, sharex=True, height_ratios=(0.22, 0.8, 2, 2) if moved else (0.22, 2, 2)
        )
        if displacement_v is not None and moved:
            _draw_displacement(traces[0], displacement_v[order_v])
        for shell, b in enumerate(gradients.shell_bvals):
            places = np.flatnonzero(gradients.shell[order_v] == shell)
            strip.plot(places, np.zeros(len(places)), "s", ms=5, color=colours[shell], label=f"b={b:.0f}")
        strip.plot(np.flatnonzero(far_v), np.ones(far_v.sum()), "v", ms=7, color=BAD)
        for place in np.flatnonzero(far_v):
            strip.annotate(f"{order_v[place]}", (place, 1), xytext=(0, 5), textcoords="offset points", ha="center",
                           color=BAD, fontsize=8)  # fmt: skip
        strip.set(ylim=(-1, 2.6), yticks=[], title="Signal of all volumes, by b-value (triangle: stands out)")
        strip.spines[["left", "bottom"]].set_visible(False)
        strip.tick_params(bottom=False)
        if len(gradients.shell_bvals) <= 8:  # a legend of dozens would hide the chart
            strip.legend(loc="lower right", bbox_to_anchor=(1, 1.05), fontsize=7.5, ncols=8, borderpad=0)
        shown: Any = None
        for axes, values_nv, name in (
            (before, statistics.before, "before"),
            (after, statistics.after, "after"),
        ):
            picture = _from_shell_mean(values_nv[rows], gradients.shell)[:, order_v]
            shown = axes.imshow(
                picture[::-1], aspect="auto", interpolation="none", cmap="gray", vmin=-_LIMIT, vmax=_LIMIT,
                extent=(-0.5, gradients.n_volumes - 0.5, 0, 1),
            )  # fmt: skip
            axes.set(ylabel=f"{name}\nfeet to head", yticks=[])
        after.set_xlabel("volumes, sorted by b-value")
        after.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.tight_layout(rect=(0, 0, 0.93, 1))
        low, high = after.get_position().y0, before.get_position().y1
        bar = figure.colorbar(shown, cax=figure.add_axes((0.94, low, 0.012, high - low)))
        bar.set_label("(signal − mean of shell) / σ")
    return figure


def _draw_displacement(axes: Any, displacement_v: NDArray[Any]) -> None:
    """Draw a bar for each volume, above a dotted line from which motion is large; unknown ones are hatched."""
    place = np.arange(len(displacement_v))
    large = displacement_v > LARGE_MM
    axes.bar(place, np.nan_to_num(displacement_v), width=0.8, color=np.where(large, BAD, BEFORE))
    top = max(1.25 * LARGE_MM, 1.15 * float(np.nanmax(displacement_v)))
    unknown = place[~np.isfinite(displacement_v)]
    axes.bar(unknown, np.full(len(unknown), top), width=1, color="none", edgecolor=GRID, hatch="////", lw=0)
    axes.axhline(LARGE_MM, color=INK, lw=0.8, ls=":")
    axes.set(ylabel="moved\n(mm)", ylim=(0, top))


def _from_shell_mean(values_nv: NDArray[np.float32], shell_v: NDArray[np.integer]) -> NDArray[np.float32]:
    result = np.array(values_nv)
    for shell in np.unique(shell_v):
        members = shell_v == shell
        result[:, members] -= values_nv[:, members].mean(axis=1, keepdims=True)
    return result


def neighbours_chart(statistics: RunStatistics, gradients: Gradients) -> Figure:
    """Draw the correlation of each volume with its neighbour in q-space, and of its residual with anatomy."""
    volume = np.arange(gradients.n_volumes)
    nearest_v = nearest_in_shell(gradients, 1)[:, 0]
    with style():
        figure = Figure(figsize=(_WIDTH_IN, 4.2))
        top, bottom = figure.subplots(2, 1, sharex=True)
        for values_nv, marker, colour, name in (
            (statistics.before, "o", BEFORE, "before"), (statistics.after, ".", AFTER, "after"),
        ):  # fmt: skip
            correlation_v = _correlations(values_nv, values_nv[:, nearest_v])
            face = "none" if marker == "o" else colour
            top.plot(volume, correlation_v, marker, ms=6, mfc=face, color=colour, label=name)
        top.set(
            ylabel="correlation", title="With the nearest direction of the shell (b=0: the nearest in time)"
        )
        low, high = top.get_ylim()
        top.set_ylim(low, high + 0.25 * (high - low))
        top.legend(loc="upper right", ncols=2)
        means_nv = _shell_means(statistics.after, gradients.shell)
        anatomy_v = _correlations(statistics.before - statistics.after, means_nv)
        colours = shell_colours(gradients.shell_bvals)
        for shell in range(len(gradients.shell_bvals)):
            here = gradients.shell == shell
            bottom.plot(volume[here], anatomy_v[here], "o", ms=4, color=colours[shell])
        chance = 2 / np.sqrt(max(len(statistics.before), 1))
        bottom.axhspan(-chance, chance, color=INK, alpha=0.12, lw=0)
        bottom.axhline(0, color=INK, lw=0.8)
        limit = max(0.1, 1.2 * float(np.nanmax(np.abs(anatomy_v), initial=0)))
        bottom.set(xlabel="volume", ylabel="correlation", ylim=(-limit, limit),
                   title="Residual with the anatomy of its shell (band: chance)")  # fmt: skip
        for axes in (top, bottom):
            axes.grid(axis="y")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.tight_layout()
    return figure


def _shell_means(values_nv: NDArray[np.float32], shell_v: NDArray[np.integer]) -> NDArray[np.float32]:
    means = np.empty_like(values_nv)
    for shell in np.unique(shell_v):
        means[:, shell_v == shell] = values_nv[:, shell_v == shell].mean(axis=1, keepdims=True)
    return means


def _correlations(a_nv: NDArray[Any], b_nv: NDArray[Any]) -> NDArray[np.float64]:
    """Correlation of each column of one array with the same column of another, (V,); NaN without variance."""
    a_nv, b_nv = (x - np.nanmean(x, axis=0) for x in (a_nv.astype(np.float64), b_nv.astype(np.float64)))
    scale_v = np.sqrt(np.nansum(a_nv**2, axis=0) * np.nansum(b_nv**2, axis=0))
    return np.divide(
        np.nansum(a_nv * b_nv, axis=0), scale_v, out=np.full(len(scale_v), np.nan), where=scale_v > 0
    )
