"""Denoising of diffusion MRI with networks: the torch library, usable on its own.

from dwmri_bidsapp.denoising import MultiScaleDetailNet, EdgeAwareLoss, denoise
"""

from ..options import DenoiseOptions
from .blocks import SinusoidalVolumeEncoder
from .denoise import Denoised, denoise
from .losses import EdgeAwareLoss, make_loss
from .model import DenoiserNet, MultiScaleDetailNet

__all__ = [
    "DenoiseOptions",
    "Denoised",
    "DenoiserNet",
    "EdgeAwareLoss",
    "MultiScaleDetailNet",
    "SinusoidalVolumeEncoder",
    "denoise",
    "make_loss",
]
