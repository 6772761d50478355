"""All methods side by side: one slice of each shell, what was taken away, tensors, courses of training.

Axis letters: x, y, z voxel axes; h, w rows and columns of a picture; v volumes; c colours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from . import svg
from .frames import colour_fa, fsl_to_world
from .slices import SlicePlan, plan_slices
from .statistics import read_volume, representative_volumes, safe_sigma, shells_to_show

if TYPE_CHECKING:
    from ..metrics import TensorMaps

ACQUIRED = "acquired"
"""What is no method: the run as it was measured."""

_COLOURS = {ACQUIRED: svg.BEFORE, "denoised": svg.AFTER, "mppca": "#009e73", "patch2self": "#cc79a7",
            "denoiser": "#d55e00"}  # fmt: skip
_MORE_COLOURS = ("#8c8c8c", "#b2a000", "#7a5195", "#00a0a0")
_LIMIT = 3.0  # noise standard deviations
_MANY_TIMES = 10  # the noise variance: a training that jumped would flatten all others
_MD_TOP = 3e-3  # mm²/s
_WIDTH_IN, _HEADER_IN, _LABEL_IN = 10.0, 0.34, 0.3


def method_colours(methods: Sequence[str]) -> dict[str, str]:
    """Return the colour of each method, the same in every chart (Okabe & Ito's palette first)."""
    others = [method for method in methods if method not in _COLOURS]
    more = {method: _MORE_COLOURS[i % len(_MORE_COLOURS)] for i, method in enumerate(others)}
    return {method: _COLOURS.get(method) or more[method] for method in methods}


def make_method_figures(
    acquired_xyzv: Any,
    series: Mapping[str, Any],
    sigma_xyz: NDArray,
    mask_xyz: NDArray[np.bool_],
    gradients: Any,
    affine: NDArray,
    *,
    tensors: Mapping[str, TensorMaps],
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    out_dir: str | Path,
    prefix: str,
) -> dict[str, Path]:
    """Draw all methods on one run and write ``<out_dir>/<prefix>_desc-<name>_dwi.svg`` for each figure.

    Parameters
    ----------
    acquired_xyzv : (X, Y, Z, V) array
        The run as measured; anything that can be sliced.
    series
        The same of each method, by name.
    sigma_xyz : (X, Y, Z) array
        Noise standard deviation, in the unit of the signal.
    mask_xyz : (X, Y, Z) bool
        The brain.
    gradients
        :class:`~dwmri_bidsapp.gradients.Gradients`.
    affine : (4, 4) array
        From voxels to mm.
    tensors
        Tensor maps by name, those of the acquired run among them.
    histories
        Course of the training of each method that has one.
    out_dir, prefix
        Where, and under which name, the files are written.

    Returns
    -------
    dict of str to Path
        The file of each figure, by name.
    """
    from .run import write_figure

    plan = plan_slices(mask_xyz, affine, n_slices=1)
    stacks = _slices_of_all_volumes({ACQUIRED: acquired_xyzv, **series}, plan)
    sigma_hw = plan.strip(np.where(mask_xyz, safe_sigma(sigma_xyz), np.nan), "axial")
    drawn = dict(_shell_figures(stacks, sigma_hw, gradients, plan))
    drawn["methodsTensor"] = _tensor_figure(tensors, affine, plan)
    if any(histories.values()):
        drawn["methodsTraining"] = _training_figure(histories)
    return {name: write_figure(text, Path(out_dir), prefix, name) for name, text in drawn.items()}


def _slices_of_all_volumes(series: Mapping[str, Any], plan: SlicePlan) -> dict[str, NDArray[np.float32]]:
    """Return the shown axial slice of every volume, (V, h, w), in one pass over the files."""
    n_volumes = next(iter(series.values())).shape[3]
    found: dict[str, list[NDArray]] = {name: [] for name in series}
    for v in range(n_volumes):
        for name, data_xyzv in series.items():
            found[name].append(plan.strip(read_volume(data_xyzv, v), "axial"))
    return {name: np.stack(strips) for name, strips in found.items()}


def _shell_figures(
    stacks: Mapping[str, NDArray[np.float32]], sigma_hw: NDArray, gradients: Any, plan: SlicePlan
) -> Iterator[tuple[str, str]]:
    methods = [name for name in stacks if name != ACQUIRED]
    residuals = {name: (stacks[ACQUIRED] - stacks[name]) / sigma_hw for name in methods}
    spread_v = np.nanstd(residuals[methods[0]], axis=(1, 2))
    volumes = representative_volumes(spread_v, gradients.shell)
    for shell in shells_to_show(sorted(volumes)):
        volume, members = volumes[shell], np.flatnonzero(gradients.shell == shell)
        shown = stacks[ACQUIRED][volume][np.isfinite(sigma_hw)]
        window = (0.0, float(np.percentile(shown, 99.5)) or 1.0)
        rows = [("one volume", {name: stack[volume] for name, stack in stacks.items()}, window)]
        rows.append(("its residual / σ", {n: r[volume] for n, r in residuals.items()}, (-_LIMIT, _LIMIT)))
        if len(members) > 1:
            means = {n: r[members].sum(axis=0) / np.sqrt(len(members)) for n, r in residuals.items()}
            rows.append(("mean residual × √n / σ", means, (-_LIMIT, _LIMIT)))
        b = f"{gradients.shell_bvals[shell]:.0f}"
        title = f"b = {b} s/mm², volume {volume}; residuals from −3 (black) to +3 (white)"
        name = f"methodsB{b}"
        figure = _matrix(list(stacks), rows, title, plan)
        yield name, svg.to_svg(figure, name, f"All methods side by side, b={b}")


def _tensor_figure(tensors: Mapping[str, TensorMaps], affine: NDArray, plan: SlicePlan) -> str:
    colours = {
        name: plan.strip(colour_fa(maps.fa_xyz, fsl_to_world(maps.v1_xyzd, affine)), "axial")
        for name, maps in tensors.items()
    }
    diffusivity = {name: plan.strip(maps.md_xyz, "axial") for name, maps in tensors.items()}
    rows = [("colour FA", colours, (0.0, 1.0)), ("MD", diffusivity, (0.0, _MD_TOP))]
    title = "fractional anisotropy with direction; mean diffusivity from 0 to 0.003 mm²/s"
    figure = _matrix(list(tensors), rows, title, plan)
    return svg.to_svg(figure, "methodsTensor", "Tensor maps of all methods side by side")


_Row = tuple[str, Mapping[str, NDArray], tuple[float, float]]
"""What a row shows, its pictures by method, and their window."""


def _matrix(names: Sequence[str], rows: Sequence[_Row], title: str, plan: SlicePlan) -> Figure:
    """Draw pictures on black: a column for each name, a row for each kind; what is missing stays black."""
    width = (_WIDTH_IN - _LABEL_IN) / max(len(names), 4)
    tall = width * plan.extent_mm[1] / plan.cell_mm  # voxels need not be squares
    height = 2 * _HEADER_IN + len(rows) * tall
    colours = method_colours(names) | {"denoised": svg.AFTER_ON_BLACK}
    with svg.style():
        figure = Figure(figsize=(_WIDTH_IN, height), facecolor="black")
        figure.text(0.008, 1 - 0.2 / height, title, color="0.85", va="center")
        for column, name in enumerate(names):
            left, share = (_LABEL_IN + column * width) / _WIDTH_IN, width / _WIDTH_IN
            figure.text(left + share / 2, 1 - 0.52 / height, name, color=colours[name], weight="bold",
                        ha="center", va="center")  # fmt: skip
            for row, (_, pictures, window) in enumerate(rows):
                bottom = height - 2 * _HEADER_IN - (row + 1) * tall
                if name in pictures:
                    axes = figure.add_axes((left, bottom / height, share, tall / height))
                    _show(axes, pictures[name], window)
        for row, (kind, _, _) in enumerate(rows):
            middle = (height - 2 * _HEADER_IN - (row + 0.5) * tall) / height
            figure.text(0.018, middle, kind, color="0.75", rotation=90, ha="center", va="center", fontsize=8)
    return figure


def _show(axes: Any, picture: NDArray, window: tuple[float, float]) -> None:
    axes.set_axis_off()
    shown = (picture * 255).round().astype(np.uint8) if picture.ndim == 3 else picture
    axes.imshow(shown, cmap="gray", norm=Normalize(*window), interpolation="none", aspect="auto")


def _training_figure(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    colours = method_colours(list(histories))
    with svg.style():
        figure = Figure(figsize=(_WIDTH_IN, 3.0))
        axes = figure.add_subplot()
        axes.axhline(1, color=svg.INK, lw=0.9, ls="--", label="noise alone")
        for name, history in histories.items():
            steps = [row["step"] for row in history]
            losses = [row.get("heldout_loss", np.nan) for row in history]
            axes.plot(steps, losses, "o-", ms=3, lw=1.5, color=colours[name], label=name)
        axes.set(xlabel="optimiser step", ylabel="squared error / noise variance", title="Held-out voxels")
        known = [
            row["heldout_loss"] for history in histories.values() for row in history if "heldout_loss" in row
        ]
        if np.nanmax(known, initial=1) > _MANY_TIMES:
            axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.grid(axis="y")
        axes.legend(loc="upper right")
        figure.tight_layout()
    return svg.to_svg(figure, "methodsTraining", "Courses of the trainings")
