"""Every figure of one run, from arrays to SVG files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputOutputError
from . import charts, pictures, svg, volumes
from .frames import colour_fa, fsl_to_world
from .slices import SlicePlan, plan_slices
from .statistics import (
    RunStatistics,
    read_volume,
    representative_volumes,
    run_statistics,
    safe_sigma,
    shells_to_show,
)

if TYPE_CHECKING:
    from ..metrics import TensorMaps

_MD_WINDOW = (0.0, 3e-3)  # mm²/s: free water at body temperature is the upper end


def make_run_figures(
    noisy_xyzv: Any,
    denoised_xyzv: Any,
    sigma_xyz: NDArray,
    mask_xyz: NDArray,
    gradients: Any,
    affine: NDArray,
    *,
    history: Sequence[Mapping[str, float]] = (),
    tensors_before: TensorMaps | None = None,
    tensors_after: TensorMaps | None = None,
    uncertainty_xyz: NDArray | None = None,
    displacement_v: NDArray | None = None,
    out_dir: str | Path,
    prefix: str,
) -> dict[str, Path]:
    """Draw one run and write ``<out_dir>/<prefix>_desc-<name>_dwi.svg`` for each figure.

    Parameters
    ----------
    noisy_xyzv, denoised_xyzv : (X, Y, Z, V) array
        Anything that can be sliced; one volume at a time is read.
    sigma_xyz : (X, Y, Z) array
        Noise standard deviation, in the unit of the signal.
    mask_xyz : (X, Y, Z) array
        The brain, where not 0.
    gradients
        :class:`~dwmri_bidsapp.gradients.Gradients`: bvals, bvecs in the FSL frame, shell, shell_bvals.
    affine : (4, 4) array
        From voxels to mm.
    history
        Rows of the training: step, learning_rate, training_loss, heldout_loss.
    tensors_before, tensors_after
        Their directions are in the FSL frame; without them there are no such figures.
    uncertainty_xyz : (X, Y, Z) array
        Standard deviation of the error that is left, in the unit of the signal.
    displacement_v : (V,) array
        Motion of the head since the volume before, in mm; NaN where it is not known.
    out_dir
        Made when it does not exist.
    prefix
        Entities of the run: ``sub-01_ses-test_run-1``.

    Returns
    -------
    dict of str to Path
        Name of the figure and its file, in the order of the report.

    Raises
    ------
    InputOutputError
        A figure could not be written.
    """
    mask_xyz = np.asarray(mask_xyz) > 0
    plan = plan_slices(mask_xyz, affine)
    up_axis = int(np.flatnonzero(plan.orientation[:, 0] == 2)[0])
    shells = shells_to_show(np.unique(gradients.shell).tolist())
    statistics = run_statistics(
        noisy_xyzv, denoised_xyzv, sigma_xyz, mask_xyz, gradients.shell, shells, up_axis,
        head_first=bool(plan.orientation[up_axis, 1] < 0),
    )  # fmt: skip
    drawn = _chart_figures(statistics, gradients, affine, history, displacement_v)
    chosen = representative_volumes(statistics.residual_std, gradients.shell)
    # In the order of the file, because a compressed one cannot be read backwards.
    for shell in sorted(shells, key=chosen.__getitem__):
        volume = chosen[shell]
        pair = read_volume(noisy_xyzv, volume), read_volume(denoised_xyzv, volume)
        drawn |= _shell_figures(*pair, sigma_xyz, mask_xyz, gradients, plan, statistics, volume)
    drawn |= dict(_mask_figures(statistics, mask_xyz, affine, plan))
    drawn |= dict(_map_figures(sigma_xyz, uncertainty_xyz, mask_xyz, plan))
    if tensors_before is not None and tensors_after is not None:
        drawn |= dict(_tensor_figures(tensors_before, tensors_after, affine, plan))
    return {name: write_figure(text, Path(out_dir), prefix, name) for name, text in drawn.items()}


def _chart_figures(
    statistics: RunStatistics,
    gradients: Any,
    affine: NDArray,
    history: Sequence[Mapping[str, float]],
    displacement_v: NDArray | None,
) -> dict[str, str]:
    figures = {
        "gradients": (charts.gradient_chart(gradients, affine), "Gradient directions and b-values"),
        "signal": (charts.signal_chart(statistics, gradients), "Mean signal before and after"),
        "dwicarpet": (
            volumes.signal_carpet_chart(statistics, gradients, displacement_v),
            "Signal of all volumes",
        ),
        "neighbours": (
            volumes.neighbours_chart(statistics, gradients),
            "Correlation of each volume with its neighbour, and of its residual with anatomy",
        ),
        "carpet": (charts.carpet_chart(statistics, gradients), "Residual of each volume"),
        "distribution": (charts.distribution_chart(statistics, gradients), "Distribution of the residual"),
        "training": (charts.training_chart(history), "Loss during training"),
    }
    return {name: svg.to_svg(figure, name, label) for name, (figure, label) in figures.items()}


def _shell_figures(
    before_xyz: NDArray[np.float32],
    after_xyz: NDArray[np.float32],
    sigma_xyz: NDArray,
    mask_xyz: NDArray[np.bool_],
    gradients: Any,
    plan: SlicePlan,
    statistics: RunStatistics,
    volume: int,
) -> dict[str, str]:
    """Flicker, residual of one volume, and mean residual of its shell."""
    shell = int(gradients.shell[volume])
    n = int((gradients.shell == shell).sum())
    b = f"{gradients.shell_bvals[shell]:.0f}"
    window = pictures.window_of(before_xyz, mask_xyz)
    what = f"b = {b} s/mm², volume {volume}"
    pair = pictures.before_after(before_xyz, after_xyz, plan, window, what)
    sigma = np.where(mask_xyz, safe_sigma(sigma_xyz), np.nan)
    residual = pictures.residual_picture((before_xyz - after_xyz) / sigma, plan, f"RESIDUAL  {what}")
    drawn = {
        f"flickerB{b}": svg.flicker(*pair, f"flickerB{b}", f"Before and after denoising, b={b}"),
        f"residualB{b}": svg.to_svg(residual, f"residualB{b}", f"Residual of one volume, b={b}"),
    }
    if n > 1:
        title = f"MEAN RESIDUAL × √n  b = {b} s/mm², n = {n} volumes"
        figure = pictures.residual_picture(statistics.mean_residual[shell], plan, title)
        drawn[f"meanresidualB{b}"] = svg.to_svg(figure, f"meanresidualB{b}", f"Mean residual, b={b}")
        for name, (before, after), what in (
            ("shellmean", statistics.shell_mean[shell], "mean"),
            ("shellstd", statistics.shell_std[shell], "standard deviation"),
        ):
            title = f"{what} over {n} volumes, b = {b} s/mm²"
            pair = pictures.before_after(before, after, plan, pictures.window_of(before, mask_xyz), title)
            drawn[f"{name}B{b}"] = svg.flicker(*pair, f"{name}B{b}", f"Before and after: {what}, b={b}")
    return drawn


def _mask_figures(
    statistics: RunStatistics, mask_xyz: NDArray[np.bool_], affine: NDArray, plan: SlicePlan
) -> Iterator[tuple[str, str]]:
    """The mask on the mean of the lowest shell, and what is outside the head."""
    lowest, highest = min(statistics.shell_mean), max(statistics.shell_mean)
    mean_xyz = statistics.shell_mean[lowest][0]
    figure = pictures.map_picture(
        mean_xyz, plan, window=pictures.window_of(mean_xyz, mask_xyz), outline_xyz=mask_xyz,
        title="BRAIN MASK on the mean of the lowest shell",
    )  # fmt: skip
    yield "brainmask", svg.to_svg(figure, "brainmask", "Outline of the brain mask")
    mean_xyz = statistics.shell_mean[highest][0]
    outside = mean_xyz[~mask_xyz]
    # Plain noise becomes mid-grey.
    top = 2 * float(np.median(np.abs(outside))) if outside.size else 1.0
    everything = plan_slices(np.ones_like(mask_xyz), affine)
    figure = pictures.map_picture(
        mean_xyz, everything, window=(0.0, top or 1.0), title="BACKGROUND of the mean of the highest shell"
    )
    yield "background", svg.to_svg(figure, "background", "Background, enhanced")


def _map_figures(
    sigma_xyz: NDArray, uncertainty_xyz: NDArray | None, mask_xyz: NDArray[np.bool_], plan: SlicePlan
) -> Iterator[tuple[str, str]]:
    maps = {"noisemap": (sigma_xyz, "NOISE STANDARD DEVIATION")}
    if uncertainty_xyz is not None:
        maps["uncertainty"] = (uncertainty_xyz, "ERROR THAT IS LEFT (root mean square)")
    for name, (volume, title) in maps.items():
        shown = np.where(mask_xyz, volume, np.nan)
        figure = pictures.map_picture(
            shown, plan, window=pictures.window_of(shown, mask_xyz), title=title, cmap="viridis",
            bar="signal units",
        )  # fmt: skip
        yield name, svg.to_svg(figure, name, title.capitalize())


def _tensor_figures(
    before: TensorMaps, after: TensorMaps, affine: NDArray, plan: SlicePlan
) -> Iterator[tuple[str, str]]:
    colours = [colour_fa(maps.fa_xyz, fsl_to_world(maps.v1_xyzd, affine)) for maps in (before, after)]
    pair = pictures.before_after(colours[0], colours[1], plan, what="fractional anisotropy and direction")
    yield "colourfa", svg.flicker(*pair, "colourfa", "Colour FA before and after denoising")
    pair = pictures.before_after(
        before.md_xyz, after.md_xyz, plan, _MD_WINDOW, "mean diffusivity, 0 to 0.003 mm²/s"
    )
    yield "md", svg.flicker(*pair, "md", "Mean diffusivity before and after denoising")


def write_figure(text: str, out_dir: Path, prefix: str, name: str) -> Path:
    """Write a figure under its BIDS name.

    Raises
    ------
    InputOutputError
        It could not be written.
    """
    path = out_dir / f"{prefix}_desc-{name}_dwi.svg"
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputOutputError(
            f"{path}: cannot write the figure: {error.strerror}", "free some space"
        ) from error
    return path
