"""Charts of a run: gradient scheme, signal, residual, training.

Axis letters: v volumes; n sampled voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .frames import fsl_to_world
from .statistics import RESIDUAL_EDGES, RunStatistics
from .svg import AFTER, BEFORE, GRID, INK, style

_WIDTH_IN = 10.0
# Beyond 0.85 viridis is too pale for a white page; below 0.15 too dark for a black one.
_SHELL_COLOURS = (0.25, 0.85)
_MOST_LEGEND_ENTRIES = 8


def shell_colours(shell_bvals: Sequence[float] | NDArray) -> list[Any]:
    """Return a colour for each shell: grey for b=0, then along viridis."""
    weighted = max(len(shell_bvals) - 1, 1)
    viridis = mpl.colormaps["viridis"]
    places = np.linspace(*_SHELL_COLOURS, weighted) if weighted > 1 else np.array([0.55])
    return [GRID, *[mpl.colors.to_hex(viridis(place)) for place in places]]


def gradient_chart(gradients: Any, affine: NDArray) -> Figure:
    """Draw where the directions lie and in which order the b-values came.

    Parameters
    ----------
    gradients
        Has bvals (V,) in s/mm², bvecs (V, 3) in the FSL frame, shell (V,) and shell_bvals (S,).
    affine : (4, 4) array
        From voxels to mm: directions are shown along the axes of the world.
    """
    colours = shell_colours(gradients.shell_bvals)
    with style():
        figure = Figure(figsize=(_WIDTH_IN, 3.2))
        sphere, order = figure.subplots(1, 2, width_ratios=(1, 2.2))
        _draw_hemisphere(sphere, gradients, affine, colours)
        volume = np.arange(len(gradients.bvals))
        for shell, b in enumerate(gradients.shell_bvals):
            here = gradients.shell == shell
            label = f"b={b:.0f} ({here.sum()})"
            order.plot(volume[here], gradients.bvals[here], "o", ms=4, color=colours[shell], label=label)
        order.set(xlabel="volume", ylabel="b-value (s/mm²)", title="Order of acquisition")
        order.set_ylim(top=1.25 * max(float(np.max(gradients.bvals)), 1.0))
        order.xaxis.set_major_locator(MaxNLocator(integer=True))
        _few_entries_legend(order, len(gradients.shell_bvals))
        order.grid(axis="y")
        figure.tight_layout()
    return figure


def _draw_hemisphere(axes: Any, gradients: Any, affine: NDArray, colours: list[Any]) -> None:
    """Equal-area projection of the upper half: g and -g measure the same."""
    world = fsl_to_world(gradients.bvecs, affine)
    world = np.where(world[:, 2:] < 0, -world, world)
    radius = np.sqrt(np.clip(1 - world[:, 2], 0, None))
    length = np.linalg.norm(world[:, :2], axis=1)
    place = world[:, :2] * (radius / np.where(length > 0, length, 1))[:, None]
    around = np.linspace(0, 2 * np.pi, 120)
    axes.plot(np.cos(around), np.sin(around), color=GRID, lw=0.8)
    axes.plot([-1, 1], [0, 0], [0, 0], [-1, 1], color=GRID, lw=0.4)
    for shell in range(1, len(gradients.shell_bvals)):
        here = gradients.shell == shell
        axes.plot(*place[here].T, "o", ms=4, color=colours[shell])
    for x, y, text in ((-1.12, 0, "L"), (1.12, 0, "R"), (0, 1.12, "A"), (0, -1.12, "P")):
        axes.text(x, y, text, ha="center", va="center")
    axes.set(aspect="equal", xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), title="Directions from above")
    axes.set_axis_off()


def signal_chart(statistics: RunStatistics, gradients: Any) -> Figure:
    """Draw the mean signal of each volume before and after, by how much it changed, and the change by shell."""
    volume = np.arange(len(statistics.mean_before))
    change = 100 * (
        statistics.mean_after / np.where(statistics.mean_before == 0, np.nan, statistics.mean_before) - 1
    )
    colours = shell_colours(gradients.shell_bvals)
    with style():
        figure = Figure(figsize=(_WIDTH_IN, 4.0))
        grid = figure.add_gridspec(2, 2, height_ratios=(2, 1.2), width_ratios=(3.2, 1))
        top = figure.add_subplot(grid[0, 0])
        bottom = figure.add_subplot(grid[1, 0], sharex=top)
        top.plot(volume, statistics.mean_before, "o", ms=6, mfc="none", color=BEFORE, label="before")
        top.plot(volume, statistics.mean_after, ".", ms=6, color=AFTER, label="after")
        top.set(ylabel="mean signal", title="Mean signal in the brain")
        top.set_ylim(0, 1.25 * max(float(np.nanmax(statistics.mean_before, initial=0)), 1e-6))
        top.legend(loc="upper right", ncols=2)
        for shell in range(len(gradients.shell_bvals)):
            here = gradients.shell == shell
            bottom.plot(volume[here], change[here], "o", ms=4, color=colours[shell])
        bottom.axhline(0, color=INK, lw=0.8)
        limit = max(2.0, float(np.nanmax(np.abs(change), initial=0)) * 1.15)
        bottom.set(xlabel="volume", ylabel="change (%)", ylim=(-limit, limit))
        for axes in (top, bottom):
            axes.grid(axis="y")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
        _draw_shell_changes(figure.add_subplot(grid[:, 1]), statistics, gradients)
        figure.tight_layout()
    return figure


def _draw_shell_changes(axes: Any, statistics: RunStatistics, gradients: Any) -> None:
    """Draw the change of the mean of each shell, that is the bias, in per cent."""
    colours = shell_colours(gradients.shell_bvals)
    present = np.unique(gradients.shell)
    changes = []
    for place, shell in enumerate(present):
        here = gradients.shell == shell
        before, after = (float(np.nanmean(m[here])) for m in (statistics.mean_before, statistics.mean_after))
        changes.append(100 * (after / before - 1) if before else 0.0)
        axes.plot([0, changes[-1]], [place, place], lw=5, solid_capstyle="butt", color=colours[shell])
        if len(present) <= _MOST_LEGEND_ENTRIES:
            axes.annotate(f"{before:.4g} → {after:.4g}", (0, place), xytext=(0, 7), textcoords="offset points",
                          ha="center", fontsize=7.5)  # fmt: skip
    axes.axvline(0, color=INK, lw=0.8)
    limit = max(2.0, 1.3 * float(np.abs(changes).max()))
    axes.set(
        xlim=(-limit, limit), ylim=(len(present) - 0.4, -0.7), xlabel="change (%)", title="Mean of each shell"
    )
    axes.set_yticks(range(len(present)), [f"b={gradients.shell_bvals[shell]:.0f}" for shell in present])
    axes.yaxis.set_major_locator(axes.yaxis.get_major_locator() if len(present) <= 20 else MaxNLocator(8))
    axes.grid(axis="x")


def carpet_chart(statistics: RunStatistics, gradients: Any, limit: float = 3.0) -> Figure:
    """Draw the residual of sampled voxels over all volumes, and its spread per volume above."""
    colours = shell_colours(gradients.shell_bvals)
    n_volumes = len(statistics.residual_std)
    volume = np.arange(n_volumes)
    with style():
        figure = Figure(figsize=(_WIDTH_IN, 5.2))
        spread, carpet = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2.2))
        for shell, b in enumerate(gradients.shell_bvals):
            here = gradients.shell == shell
            spread.plot(
                volume[here],
                statistics.residual_std[here],
                "o",
                ms=4,
                color=colours[shell],
                label=f"b={b:.0f}",
            )
        spread.axhline(1, color=INK, lw=0.8, ls="--")
        spread.set(ylabel="std / σ", title="Residual of each volume (dashed: noise alone)")
        spread.set_ylim(0, max(1.4, float(np.nanmax(statistics.residual_std, initial=0)) * 1.25))
        spread.grid(axis="y")
        _few_entries_legend(spread, len(gradients.shell_bvals))
        shown = carpet.imshow(
            statistics.carpet[::-1], aspect="auto", interpolation="none", cmap="gray", vmin=-limit, vmax=limit,
            extent=(-0.5, n_volumes - 0.5, 0, 1),
        )  # fmt: skip
        carpet.set(xlabel="volume", ylabel="voxels, feet to head", yticks=[])
        carpet.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.tight_layout(rect=(0, 0, 0.93, 1))
        place = carpet.get_position()
        bar = figure.colorbar(shown, cax=figure.add_axes((0.94, place.y0, 0.012, place.height)))
        bar.set_label("residual / σ")
    return figure


def distribution_chart(statistics: RunStatistics, gradients: Any) -> Figure:
    """Draw the distribution of the residual of each shell against the Gaussian of pure noise."""
    centre = (RESIDUAL_EDGES[1:] + RESIDUAL_EDGES[:-1]) / 2
    gaussian = np.exp(-(centre**2) / 2) / np.sqrt(2 * np.pi)
    colours = shell_colours(gradients.shell_bvals)
    with style():
        figure = Figure(figsize=(_WIDTH_IN, 3.0))
        linear, logarithmic = figure.subplots(1, 2)
        for shell, b in enumerate(gradients.shell_bvals):
            counts = statistics.residual_counts[gradients.shell == shell].sum(axis=0)
            if not counts.any():
                continue
            density = counts / (counts.sum() * np.diff(RESIDUAL_EDGES))
            for axes in (linear, logarithmic):
                axes.step(centre, density, where="mid", color=colours[shell], label=f"b={b:.0f}", lw=1.5)
        for axes in (linear, logarithmic):
            axes.plot(centre, gaussian, color=INK, ls="--", lw=1, label="noise alone")
            axes.set_xlabel("residual / σ")
        linear.set(title="Distribution of the residual", ylabel="density")
        logarithmic.set(title="The same, tails enlarged (logarithmic)", yscale="log", ylim=(1e-5, 1))
        if len(gradients.shell_bvals) <= _MOST_LEGEND_ENTRIES:
            linear.legend(loc="upper left", fontsize=7.5)
        figure.tight_layout()
    return figure


def training_chart(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw what the optimiser did, with the level below which only noise could be learnt.

    Parameters
    ----------
    history
        Rows with step, heldout_loss (mean squared error in units of the noise variance: 1 is noise
        alone), training_loss (the whole loss, its edge terms included) and learning_rate. NaN is left out.
    """
    step = _column(history, "step")
    with style():
        figure = Figure(figsize=(_WIDTH_IN, 3.2))
        if not history:
            figure.text(0.5, 0.5, "No training: the initial weights were used as they are.", ha="center")
            return figure
        heldout, training, rate = figure.subplots(1, 3, width_ratios=(2, 1.2, 1))
        heldout.axhline(1, color=INK, lw=0.9, ls="--", label="noise alone")
        _draw_curve(heldout, step, _column(history, "heldout_loss"), AFTER, floor=1.0)
        heldout.set(title="Held-out voxels", ylabel="squared error / noise variance")
        heldout.legend(loc="upper right")
        _draw_curve(training, step, _column(history, "training_loss"), BEFORE)
        training.set(title="Training loss (edge terms included)")
        _draw_curve(rate, step, _column(history, "learning_rate"), GRID)
        rate.set(title="Learning rate")
        rate.set(yscale="linear", ylim=(0, None))
        figure.tight_layout()
    return figure


def _draw_curve(axes: Any, step: NDArray, values: NDArray, colour: str, floor: float | None = None) -> None:
    known = np.isfinite(values)
    axes.plot(step[known], values[known], "o-", ms=3, lw=1.5, color=colour)
    shown = np.append(values[known], [] if floor is None else [floor])
    if shown.size:
        low, high = float(shown.min()), float(shown.max())
        if low > 0 and high > 20 * low:
            axes.set_yscale("log")
        else:
            room = 0.12 * max(high - low, 0.05 * abs(high))
            axes.set_ylim(low - room, high + 2 * room)
    axes.set_xlabel("optimiser step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="y")


def _column(history: Sequence[Mapping[str, float]], key: str) -> NDArray[np.float64]:
    return np.array([float(row.get(key, np.nan)) for row in history])


def _few_entries_legend(axes: Any, n_entries: int) -> None:
    """A Cartesian grid in q-space has dozens of b-values: a legend would hide the chart."""
    if n_entries <= _MOST_LEGEND_ENTRIES:
        axes.legend(loc="upper right", fontsize=7.5, ncols=4)
