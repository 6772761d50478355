"""What can be chosen about the method, in one frozen object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DenoiseOptions:
    """How one run is denoised.

    Parameters
    ----------
    model
        ``"multiscale"`` (:class:`MultiScaleDetailNet`) or ``"denoiser"`` (:class:`DenoiserNet`).
    loss
        ``"edge-aware"`` (:class:`EdgeAwareLoss`), ``"l1"`` or ``"mse"``.
    alpha, beta
        Weights of the edge and of the gradient term of the edge-aware loss.
    base_filters
        Features of the full-resolution path.
    init
        ``"random"``, or the path of a weights file.
    max_steps
        Most optimiser steps; 0 predicts with the initial weights.
    batch_size
        Patches of one forward pass.
    block
        Edge, in voxels, of the blocks that the blind local PCA predicts together.
    patch_size
        Edge of a training patch, in voxels.
    accumulation_steps
        Forward passes of one optimiser step.
    learning_rate
        Peak learning rate of AdamW.
    schedule
        ``"one-cycle"`` (warm-up, then cosine decay) or ``"plateau"`` (warm-up, then halved
        when the held-out loss stops falling).
    mixed_precision
        Use bf16 or float16 where the device gains by it.
    b0_denoising
        Denoise the b=0 volumes too; otherwise they are passed through.
    bias_correction
        ``"none"`` or ``"rician"``: invert the mean of the Rician distribution on the denoised data.
    blend
        Give the prediction back its own measurement where that helps, and average it with a local PCA; otherwise
        the result is the blind prediction.
    random_seed
        Seed of everything random.
    """

    model: Literal["multiscale", "denoiser"] = "multiscale"
    loss: Literal["edge-aware", "l1", "mse"] = "edge-aware"
    alpha: float = 0.5
    beta: float = 0.1
    base_filters: int = 16
    init: str = "random"
    max_steps: int = 400
    batch_size: int = 8
    block: int = 3
    patch_size: int = 24
    accumulation_steps: int = 1
    learning_rate: float = 1e-2
    schedule: Literal["one-cycle", "plateau"] = "one-cycle"
    mixed_precision: bool = True
    b0_denoising: bool = True
    bias_correction: Literal["none", "rician"] = "none"
    blend: bool = True
    random_seed: int = 0
