"""Pictures of the brain in three planes: before and after, residual, maps, colours.

Axis letters: x, y, z voxel axes; h, w rows and columns of a picture; c colours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .slices import PLANES, SlicePlan
from .svg import AFTER_ON_BLACK, BEFORE, style

OUTLINE = "#d55e00"
"""Contours on grey pictures (Okabe & Ito's vermilion)."""

_WIDTH_IN = 10.0
_HEADER_IN = 0.34
_BAR_IN = 0.62
_SIDES = {"axial": ("L", "R"), "coronal": ("L", "R"), "sagittal": ("P", "A")}


def window_of(volume_xyz: NDArray, mask_xyz: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the intensity window for a volume: 0 to its 99.5th percentile in the brain."""
    values = volume_xyz[mask_xyz]
    values = values[np.isfinite(values)]
    top = float(np.percentile(values, 99.5)) if values.size else 1.0
    return (0.0, top if top > 0 else 1.0)


def before_after(
    before_xyz: NDArray,
    after_xyz: NDArray,
    plan: SlicePlan,
    window: tuple[float, float] | None = None,
    what: str = "",
    cmap: str = "gray",
) -> tuple[Figure, Figure]:
    """Draw two volumes alike: same slices, same intensity window, same size.

    Parameters
    ----------
    before_xyz, after_xyz : (X, Y, Z) or (X, Y, Z, 3) array
        Acquired and denoised; colours when the last axis holds red, green and blue.
    plan
        The slices.
    window
        Least and greatest intensity shown; not used for colours.
    what
        Put behind "Before" and "After".
    """
    figures = [
        map_picture(volume, plan, window=window, cmap=cmap, title=f"{word}  {what}", title_colour=colour)
        for volume, word, colour in ((before_xyz, "BEFORE", BEFORE), (after_xyz, "AFTER", AFTER_ON_BLACK))
    ]
    return figures[0], figures[1]


def residual_picture(
    residual_xyz: NDArray,
    plan: SlicePlan,
    title: str,
    limit: float = 3.0,
) -> Figure:
    """Draw what was taken away, in noise standard deviations, mid-grey meaning nothing.

    Parameters
    ----------
    residual_xyz : (X, Y, Z) array
        (before - after) / σ.
    plan
        The slices.
    title
        Over the picture.
    limit
        The window is symmetric: -limit to +limit.
    """
    return map_picture(
        residual_xyz,
        plan,
        window=(-limit, limit),
        title=title,
        bar="(before − after) / noise standard deviation",
    )


def map_picture(
    volume_xyz: NDArray,
    plan: SlicePlan,
    *,
    window: tuple[float, float] | None,
    title: str,
    cmap: str = "gray",
    bar: str = "",
    title_colour: str = "white",
    outline_xyz: NDArray | None = None,
) -> Figure:
    """Draw one volume in three planes on black.

    Parameters
    ----------
    volume_xyz : (X, Y, Z) or (X, Y, Z, 3) array
        NaN stays black.
    plan
        The slices.
    window
        Least and greatest value of the colour map.
    title
        Over the picture.
    cmap
        Name of a matplotlib colour map.
    bar
        Label of the colour bar; without it there is none.
    outline_xyz : (X, Y, Z) bool
        Drawn as a contour on top.
    """
    strips = plan.strips(volume_xyz)
    scale = _WIDTH_IN / (plan.cell_mm * plan.n_slices)
    tall = {"axial": plan.extent_mm[1], "coronal": plan.extent_mm[2], "sagittal": plan.extent_mm[2]}
    height = _HEADER_IN + sum(tall.values()) * scale + (_BAR_IN if bar else 0.0)
    with style():
        figure = Figure(figsize=(_WIDTH_IN, height), facecolor="black")
        figure.text(0.008, 1 - 0.22 / height, title, color=title_colour, weight="bold", va="center")
        top = height - _HEADER_IN
        shown = None
        for plane in PLANES:
            bottom = top - tall[plane] * scale
            axes = figure.add_axes((0, bottom / height, 1, tall[plane] * scale / height))
            shown = _show(axes, strips[plane], window, cmap)
            if outline_xyz is not None:
                inside = np.nan_to_num(plan.strip(outline_xyz.astype(np.float32), plane))
                if min(inside.shape) > 1:  # the cross-section of a single slice has no outline
                    axes.contour(inside, levels=[0.5], colors=OUTLINE, linewidths=0.9)
            for side, place in zip(_SIDES[plane], (0.003, 0.997), strict=True):
                align = "left" if place < 0.5 else "right"
                axes.text(place, 0.5, side, transform=axes.transAxes, color="0.75", ha=align, va="center")
            top = bottom
        if bar:
            _colour_bar(figure, shown, bar, height)
    return figure


def _show(axes: Any, strip: NDArray, window: tuple[float, float] | None, cmap: str) -> Any:
    axes.set_axis_off()
    axes.set_facecolor("black")
    if strip.ndim == 3:
        # Eight bits now, or matplotlib embeds the same picture with more work.
        return axes.imshow((strip * 255).round().astype(np.uint8), interpolation="none", aspect="auto")
    low, high = window if window is not None else (np.nanmin(strip), np.nanmax(strip))
    return axes.imshow(strip, interpolation="none", aspect="auto", cmap=cmap, norm=Normalize(low, high))


def _colour_bar(figure: Figure, shown: Any, label: str, height: float) -> None:
    axes = figure.add_axes((0.3, 0.42 / height, 0.4, 0.10 / height))
    bar = figure.colorbar(shown, cax=axes, orientation="horizontal")
    bar.set_label(label, color="white", labelpad=1)
    bar.outline.set_edgecolor("0.6")
    axes.tick_params(colors="white", length=2, pad=1)
