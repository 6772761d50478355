"""How good is a denoised run? Pure functions on arrays.

`truth` measures errors against a known truth, `no_reference` judges without one, `tensor` fits
the diffusion tensors that both look at.
"""

from .no_reference import (
    edge_slope,
    edge_width,
    neighbouring_dwi_correlation,
    no_reference_metrics,
    repeat_spread,
    residual_statistics,
    shell_means,
)
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
    "TensorMaps",
    "angular_error",
    "dti_kfold_error",
    "dwi_range",
    "edge_slope",
    "edge_width",
    "errors_against_truth",
    "fa_error",
    "fit_tensor",
    "md_error",
    "neighbouring_dwi_correlation",
    "no_reference_metrics",
    "psnr",
    "psnr_by_volume",
    "repeat_spread",
    "residual_statistics",
    "shell_means",
    "ssim",
    "tensor_volumes",
]
