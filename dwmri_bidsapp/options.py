"""What can be chosen about the method, in one frozen object."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import UsageError

STARTS = ("pretrained", "random")
STEPS = {"pretrained": 100, "random": 400}
LEARNING_RATES = {"pretrained": 1e-3, "random": 3e-3}
NETWORK_PARTS = {
    "attention": "the attention of the network",
    "half-resolution": "its half-resolution path, with the attention",
    "detail": "the enhancement of detail between its paths",
    "skip": "the connections that carry full resolution past the half-resolution path",
    "encoding": "the encoding of the channels' places in q-space",
}
PARTS = {
    **NETWORK_PARTS,
    "q-space": "q-space in that encoding: the index of the volume takes its place",
    "base": "the blind local PCA as the channel that is corrected: the mean of the other volumes takes its place",
    "context": "the other channels: the base takes their place",
    "local-pca": "the mean with the overcomplete local PCA",
    "second-look": "the second look of that local PCA at angular contrast",
    "twicing": "giving back what the residuals of a shell have in common",
    "fusion": "the network that fuses the estimates: their weighted mean takes its place",
}
"""Parts of the method that can be left out, to measure what they are worth; first those that weights contain."""
AUTOMATIC = -1
"""What is done where the options leave it open: weights that know the task need few and small steps."""
MANY_VOLUMES = 60
"""From here on blocks of 2 voxels cost more time than they are worth: the decomposition of each takes (volumes)³."""
ONE_GRID = range(MANY_VOLUMES, 80)
"""Numbers of volumes where one grid of blocks has to do: the time of MP-PCA in MRtrix3, the limit, is near."""


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
        ``"pretrained"`` (the weights that come with the package), ``"random"``, or the path of a weights file.
    max_steps
        Most optimiser steps; 0 predicts with the initial weights. -1: 100 from weights, 400 from nothing.
    batch_size
        Patches of one forward pass.
    block
        Edge, in voxels, of the blocks that the blind local PCA predicts together. -1: 2, and 3 from 60 volumes on.
    patch_size
        Edge of a training patch, in voxels.
    accumulation_steps
        Forward passes of one optimiser step.
    learning_rate
        Peak learning rate of AdamW. -1: 0.001 from weights, 0.003 from nothing.
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
    leave_out
        Parts of the method to do without, of :data:`PARTS`; those of the network need ``init="random"``.
    random_seed
        Seed of everything random.

    Raises
    ------
    UsageError
        For parts that do not exist, or of which one at least is needed, or that the initial weights contain.
    """

    model: Literal["multiscale", "denoiser"] = "multiscale"
    loss: Literal["edge-aware", "l1", "mse"] = "edge-aware"
    alpha: float = 0.5
    beta: float = 0.1
    base_filters: int = 16
    init: str = "pretrained"
    max_steps: int = AUTOMATIC
    batch_size: int = 8
    block: int = AUTOMATIC
    patch_size: int = 24
    accumulation_steps: int = 1
    learning_rate: float = AUTOMATIC
    schedule: Literal["one-cycle", "plateau"] = "one-cycle"
    mixed_precision: bool = True
    b0_denoising: bool = True
    bias_correction: Literal["none", "rician"] = "none"
    blend: bool = True
    leave_out: tuple[str, ...] = ()
    random_seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "leave_out", tuple(self.leave_out))
        unknown = set(self.leave_out) - set(PARTS)
        if unknown or {"half-resolution", "skip"} <= set(self.leave_out):
            found = " ".join(sorted(unknown)) or "half-resolution and skip, of which one has to stay"
            raise UsageError(f"--leave-out: expected parts of {', '.join(PARTS)}, found {found}")
        trained = set(self.leave_out) & set(NETWORK_PARTS)
        if trained and self.init != "random":
            raise UsageError(
                f"--leave-out {' '.join(sorted(trained))}: these weights were trained with it",
                "use --init random",
            )

    @property
    def fuses(self) -> bool:
        """Whether the estimates are fused, where the initial weights come with a fusion."""
        return self.init != "random" and self.blend and not {"fusion", "local-pca"} & set(self.leave_out)

    def block_edge(self, n_volumes: int) -> int:
        """Edge of the blocks for a run of so many volumes."""
        if self.block != AUTOMATIC:
            return self.block
        return 2 if n_volumes < MANY_VOLUMES else 3

    def block_grids(self, n_volumes: int) -> int:
        """Number of grids of blocks for a run of so many volumes."""
        return 1 if n_volumes in ONE_GRID or self.block_edge(n_volumes) == 1 else 2

    def mirrored(self, n_volumes: int) -> bool:
        """Whether a run of so many volumes is predicted as it is and mirrored; many volumes take long as it is."""
        return n_volumes < MANY_VOLUMES

    def settled(self) -> DenoiseOptions:
        """The same options with the steps and the learning rate of their start, where these were left open."""
        start = "random" if self.init == "random" else "pretrained"
        steps, rate = self.max_steps, self.learning_rate
        return dataclasses.replace(
            self,
            max_steps=STEPS[start] if steps == AUTOMATIC else steps,
            learning_rate=LEARNING_RATES[start] if rate == AUTOMATIC else rate,
        )


def weights_file(options: DenoiseOptions) -> Path:
    """Where weights of this network lie in the package, if there are any."""
    return Path(__file__).parent / "data" / "weights" / f"{options.model}-{options.base_filters}.pt"


def shipped_weights(options: DenoiseOptions) -> Path:
    """File of the weights that come with the package for this network.

    Raises
    ------
    UsageError
        There are none.
    """
    path = weights_file(options)
    if not path.is_file():
        raise UsageError(
            f"--init pretrained: no weights come with the {options.model} network of {options.base_filters} filters",
            f"use --init random, or one of {', '.join(sorted(p.stem for p in path.parent.glob('*.pt')))} "
            "(network-filters)",
        )
    return path
