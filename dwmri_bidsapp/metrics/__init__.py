"""How good is a denoised run? Pure functions on arrays.

`truth` measures errors against a known truth, `no_reference` judges without one; `tensor`, `kurtosis` and `peaks` fit
what they look at.
"""

from .kurtosis import has_kurtosis, mean_kurtosis
from .motion import MOTION_COLUMNS, estimate_motion, framewise_displacement, motion_measures
from .no_reference import (
    edge_slope,
    edge_width,
    neighbouring_dwi_correlation,
    no_reference_metrics,
    repeat_spread,
    residual_statistics,
    shell_means,
)
from .peaks import PeakFinder, can_find_peaks, make_peak_finder, peak_angle
from .tensor import TensorMaps, dti_kfold_error, fit_tensor, tensor_volumes
from .truth import (
    angular_error,
    dwi_range,
    errors_against_truth,
    fa_error,
    md_error,
    psnr,
    psnr_by_volume,
    ssim,
)

__all__ = [
    "MOTION_COLUMNS",
    "PeakFinder",
    "TensorMaps",
    "angular_error",
    "can_find_peaks",
    "dti_kfold_error",
    "dwi_range",
    "edge_slope",
    "edge_width",
    "errors_against_truth",
    "estimate_motion",
    "fa_error",
    "fit_tensor",
    "framewise_displacement",
    "has_kurtosis",
    "make_peak_finder",
    "md_error",
    "mean_kurtosis",
    "motion_measures",
    "neighbouring_dwi_correlation",
    "no_reference_metrics",
    "peak_angle",
    "psnr",
    "psnr_by_volume",
    "repeat_spread",
    "residual_statistics",
    "shell_means",
    "ssim",
    "tensor_volumes",
]
