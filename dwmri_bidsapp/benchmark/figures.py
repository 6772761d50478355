"""Pictures of the benchmark: values of all methods, and where their errors are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .cases import Run
from .scores import Row
from .tables import of_common_seeds

Array = NDArray[np.float32]

_MARKERS = "osv^DPX*<>p"
_ERROR_LIMIT = 2.0
_TITLES = {"psnr": "PSNR (dB)", "fa_error": "FA error", "v1_angle": "V1 angle (°)"}


def gain_figure(rows: Sequence[Row], measure: str) -> Figure | None:
    """Draw a measure of every method for every kind of case, means over seeds, as it is and corrected.

    Parameters
    ----------
    rows
        Of the benchmark.
    measure
        A column of the rows of all diffusion-weighted volumes.

    Returns
    -------
    Figure or None
        None where no row has the measure.
    """
    chosen = [row for row in rows if row.get("shell") == "dwi" and measure in row]
    if not chosen:
        return None
    kinds = list(dict.fromkeys(_label(row) for row in chosen))
    chosen = [row for kind in kinds for row in of_common_seeds([r for r in chosen if _label(r) == kind])]
    methods = list(dict.fromkeys(row["method"] for row in chosen))
    figure = Figure(figsize=(11, 1.6 + 0.45 * len(kinds)), layout="constrained")
    for axes, comparison in zip(figure.subplots(1, 2, sharey=True), ("truth", "corrected"), strict=True):
        for i, method in enumerate(methods):
            values = [_mean(chosen, kind, method, comparison, measure) for kind in kinds]
            axes.plot(
                values, np.arange(len(kinds)), _MARKERS[i % len(_MARKERS)], label=method, alpha=0.85,
                color="0.5" if method == "noisy" else mpl.colormaps["tab10"](i % 10),
            )  # fmt: skip
        axes.set_yticks(np.arange(len(kinds)), kinds)
        axes.set_xlabel(_TITLES.get(measure, measure))
        axes.set_title({"truth": "as it is", "corrected": "noise floor taken away"}[comparison])
        axes.grid(axis="y", alpha=0.3)
    figure.axes[0].invert_yaxis()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(methods), 5))
    return figure


def error_figure(run: Run, examples: Mapping[str, Array], *, title: str = "") -> Figure:
    """Draw one slice of one volume of the highest shell: what each method gives, and its error.

    Parameters
    ----------
    run
        With the truth.
    examples
        Result of each method, (X, Y, Z, V).
    title
        Of the figure.
    """
    volume = int(np.flatnonzero(run.gradients.shell == run.gradients.shell.max())[0])
    z = run.mask_xyz.shape[2] // 2
    truth_xy = run.clean_xyzv[:, :, z, volume]
    brightest = (
        float(np.percentile(truth_xy[run.mask_xyz[:, :, z]], 99.5)) if run.mask_xyz[:, :, z].any() else 1.0
    )
    figure = Figure(figsize=(2.1 * (len(examples) + 1), 4.6), layout="constrained")
    axes_rc = figure.subplots(2, len(examples) + 1, squeeze=False)
    for axes in axes_rc.flat:
        axes.set_axis_off()
    axes_rc[0, 0].imshow(truth_xy.T, cmap="gray", origin="lower", vmin=0, vmax=brightest)
    axes_rc[0, 0].set_title("truth")
    error = None
    for column, (name, data_xyzv) in enumerate(examples.items(), start=1):
        image_xy = data_xyzv[:, :, z, volume]
        axes_rc[0, column].imshow(image_xy.T, cmap="gray", origin="lower", vmin=0, vmax=brightest)
        axes_rc[0, column].set_title(name, fontsize=9)
        in_sigma_xy = (image_xy - run.expected_xyzv[:, :, z, volume]) / run.sigma_xyz[:, :, z]
        error = axes_rc[1, column].imshow(
            (in_sigma_xy * run.mask_xyz[:, :, z]).T, cmap="RdBu_r", origin="lower",
            vmin=-_ERROR_LIMIT, vmax=_ERROR_LIMIT,
        )  # fmt: skip
    if error is not None:
        figure.colorbar(error, ax=list(axes_rc[1]), label="error against E[noisy] (σ)", shrink=0.8)
    figure.suptitle(f"{title}: volume {volume}, b = {run.gradients.bvals[volume]:g} s/mm²", fontsize=10)
    return figure


def _label(row: Row) -> str:
    anatomy = row.get("file", "" if row["family"] == "brain" else row["family"])
    return ", ".join(filter(None, [row["protocol"], f"SNR {row['snr']:g}", row["noise"], anatomy]))


def _mean(rows: Sequence[Row], kind: str, method: str, comparison: str, measure: str) -> float:
    values = [
        row[measure]
        for row in rows
        if _label(row) == kind and row["method"] == method and row["comparison"] == comparison
    ]
    return float(np.mean(values)) if values else float("nan")
