"""Every measure in words: one dictionary for the pages and for the data dictionary of the group table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Metric:
    """How a measure is called and read.

    Attributes
    ----------
    label
        Name for readers; may hold ``{b}``, a b-value in s/mm².
    unit
        Unit; empty for a ratio.
    description
        What is measured.
    ideal
        What a good value is.
    better
        ``"higher"`` or ``"lower"`` where one direction is an improvement; else empty.
    """

    label: str
    unit: str
    description: str
    ideal: str
    better: str = ""


METRICS: dict[str, Metric] = {
    "b0_snr": Metric(
        "b=0 signal-to-noise ratio", "", "Mean signal at b=0 over the mean noise level.", "below 10 is low"
    ),
    "sigma_mean": Metric(
        "Noise level",
        "signal units",
        "Mean standard deviation of the noise in the brain.",
        "alike within a scanner",
    ),
    "outlier_volumes": Metric(
        "Volumes that stand out",
        "",
        "Number of volumes whose mean signal, residual or likeness to their neighbours is far from that of the others "
        "of their shell.",
        "0",
    ),
    "fd_mean": Metric(
        "Head motion, mean",
        "mm",
        "Mean framewise displacement (Power 2012, sphere of 50 mm) of the acquired volumes, estimated without "
        "registration.",
        "below 0.3",
    ),
    "fd_max": Metric(
        "Head motion, largest", "mm", "Largest framewise displacement of the acquired volumes.", "below 1"
    ),
    "residual_std": Metric(
        "Spread of the residual",
        "σ",
        "Standard deviation of what was taken away from the diffusion-weighted volumes, over the noise level.",
        "0.95 to 1.02; less where the signal is near the noise floor",
    ),
    "residual_std_b0": Metric(
        "Spread of the residual, b=0",
        "σ",
        "The same for the b=0 volumes.",
        "0.95 to 1.02; 0 when passed through",
    ),
    "residual_std_b": Metric(
        "Spread of the residual, b={b}",
        "σ",
        "The same for one shell.",
        "0.95 to 1.02; less near the noise floor",
    ),
    "residual_mean": Metric(
        "Mean of the residual", "σ", "A systematic change of the signal.", "0 unless a bias was corrected"
    ),
    "residual_edge_correlation": Metric(
        "Residual along anatomy",
        "",
        "Correlation of the residual's size with the edges of the anatomy.",
        "between −0.02 and 0.02",
    ),
    "residual_autocorrelation_x": Metric(
        "Residual whiteness, x",
        "",
        "Correlation of neighbouring voxels of the residual along the first image axis.",
        "that of the noise: 0 without interpolation",
    ),
    "residual_autocorrelation_y": Metric(
        "Residual whiteness, y", "", "The same along the second axis.", "that of the noise"
    ),
    "residual_autocorrelation_z": Metric(
        "Residual whiteness, z", "", "The same along the third axis.", "that of the noise"
    ),
    "edge_slope": Metric(
        "Edge slope",
        "",
        "Slope of the noisy volumes' spatial gradients against the denoised ones'.",
        "0.95 to 1.05; above: blurred",
    ),
    "mean_signal_b": Metric(
        "Mean signal, b={b}", "signal units", "Mean of the shell in the brain.", "within 1% of before"
    ),
    "b0_repeat_spread": Metric(
        "Spread of repeated b=0",
        "",
        "Standard deviation over repeated b=0 volumes over their mean, median of brain.",
        "lower after",
        "lower",
    ),
    "neighbouring_dwi_correlation": Metric(
        "Neighbouring-DWI correlation",
        "",
        "Mean correlation of each volume with the nearest direction of its shell.",
        "higher after; blurring raises it too",
        "higher",
    ),
    "neighbouring_dwi_correlation_b": Metric(
        "Neighbouring-DWI correlation, b={b}",
        "",
        "The same within one shell.",
        "higher after; blurring raises it too",
        "higher",
    ),
    "edge_width": Metric(
        "Edge width",
        "voxels",
        "10–90% width of the strongest edges of the mean of the largest shell.",
        "at most 5% wider than before",
        "lower",
    ),
    "dti_kfold_error": Metric(
        "Error on held-out raw volumes",
        "σ",
        "Acquired volumes predicted by tensors fitted to the others: root mean square error over the noise level.",
        "lower after; about 1 where one tensor describes the signal",
        "lower",
    ),
    "fa_mean": Metric(
        "Mean FA", "", "Mean fractional anisotropy in the brain.", "lower after: noise raises FA"
    ),
    "md_mean": Metric("Mean MD", "mm²/s", "Mean diffusivity in the brain.", "within 1% of before"),
    "true_psnr_dwi": Metric(
        "True PSNR, DWI",
        "dB",
        "Peak signal-to-noise ratio of all diffusion-weighted volumes against the truth.",
        "higher after",
        "higher",
    ),
    "true_psnr_dwi_worst_volume": Metric(
        "True PSNR, worst volume",
        "dB",
        "The same for the worst diffusion-weighted volume.",
        "higher after",
        "higher",
    ),
    "true_psnr_b": Metric("True PSNR, b={b}", "dB", "The same for one shell.", "higher after", "higher"),
    "true_ssim_dwi": Metric(
        "True SSIM, DWI", "", "Mean structural similarity to the truth.", "higher after, up to 1", "higher"
    ),
    "true_bias_b": Metric("True bias, b={b}", "", "Mean error over mean truth of a shell.", "0"),
    "true_fa_error": Metric(
        "True FA error",
        "",
        "Mean absolute error of fractional anisotropy in the brain.",
        "lower after",
        "lower",
    ),
    "true_md_error": Metric(
        "True MD error",
        "mm²/s",
        "Mean absolute error of the mean diffusivity in the brain.",
        "lower after",
        "lower",
    ),
    "true_angular_error": Metric(
        "True angular error",
        "degrees",
        "Mean angle of the first eigenvector to the truth where FA is above 0.2.",
        "lower after",
        "lower",
    ),
}
"""By base name: without ``_before`` and ``_after``, and up to the ``b`` of a shell."""

_SHELL = re.compile(r"(.*_b)(\d+(?:\.\d+)?)")
_SUFFIXES = ("_before", "_after")


@dataclass(frozen=True)
class MetricRow:
    """A line of the table of measures: one value (``after``), or one before and one after."""

    name: str
    label: str
    unit: str
    description: str
    ideal: str
    before: float | None
    after: float | None


def describe(base: str) -> Metric:
    """Return the words for a base name; an unknown one is spelled out."""
    if base in METRICS:
        return METRICS[base]
    shell = _SHELL.fullmatch(base)
    if shell and shell[1] in METRICS:
        metric = METRICS[shell[1]]
        return replace(metric, label=metric.label.format(b=shell[2]))
    return Metric(base.replace("_", " ").capitalize(), "", "", "")


def shell_of(base: str) -> str:
    """Return the b-value (s/mm²) of a measure of one shell, such as ``"1000"``; empty for the others."""
    shell = _SHELL.fullmatch(base)
    return shell[2] if shell and shell[1] in METRICS else ""


def split_name(name: str) -> tuple[str, str]:
    """Return base name and ``"before"``, ``"after"`` or ``""``."""
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix[1:]
    return name, ""


def describe_column(name: str) -> dict[str, str]:
    """Return the entry of a column in a BIDS data dictionary."""
    base, when = split_name(name)
    metric = describe(base)
    texts = {"": "", "before": ", as acquired", "after": ", denoised"}
    ideal = f" Good: {metric.ideal}." if metric.ideal else ""
    entry = {
        "LongName": f"{metric.label}{texts[when]}",
        "Description": f"{metric.description}{ideal}".strip(),
    }
    return entry | ({"Units": metric.unit} if metric.unit else {})


def metric_rows(metrics: Mapping[str, Any]) -> list[MetricRow]:
    """Return the lines of the table of measures, those of the dictionary first and in its order."""
    bases = dict.fromkeys(split_name(name)[0] for name in metrics)
    rows = []
    for base in sorted(bases, key=order_of):
        metric = describe(base)
        before = metrics.get(f"{base}_before")
        after = metrics.get(f"{base}_after", metrics.get(base))
        rows.append(
            MetricRow(base, metric.label, metric.unit, metric.description, metric.ideal, before, after)
        )
    return rows


def order_of(base: str) -> tuple[int, float, str]:
    """Return a sort key: place in the dictionary, then b-value."""
    shell = _SHELL.fullmatch(base)
    key = base if base in METRICS else (shell[1] if shell else base)
    names = list(METRICS)
    return (names.index(key) if key in names else len(names), float(shell[2]) if shell else 0.0, base)


@dataclass(frozen=True)
class MethodRow:
    """A line of the table of methods: the value as acquired, and one for each method (None: not measured)."""

    label: str
    unit: str
    description: str
    ideal: str
    values: list[Any]


def method_rows(acquired_and_methods: list[Mapping[str, Any]]) -> list[MethodRow]:
    """Return the lines of the table of methods.

    Parameters
    ----------
    acquired_and_methods
        Measures of each method; the state before denoising is taken from the first.
    """
    rows = []
    for base in sorted({split_name(name)[0] for one in acquired_and_methods for name in one}, key=order_of):
        metric = describe(base)
        before = acquired_and_methods[0].get(f"{base}_before")
        values = [before, *(one.get(f"{base}_after", one.get(base)) for one in acquired_and_methods)]
        rows.append(MethodRow(metric.label, metric.unit, metric.description, metric.ideal, values))
    return rows
