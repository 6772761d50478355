"""Weights to start from: one network trained on many runs, whose expected magnitudes may be known.

Axes: ``b`` sample of a batch, ``c`` channel, ``v`` volume, ``x y z`` space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UsageError
from .context import Context
from .fusion import Estimates
from .hardware import Precision
from .train import CLIP_NORM, WEIGHT_DECAY, PatchSampler, masks_of, one_cycle

LAYOUT = torch.channels_last_3d
# squared error over the blind base's from which on a training has failed: an untrained network has 1
DIVERGED = 2.0
# keeps a run that its blind base predicts perfectly from ruling the loss
LEAST_ERROR = 0.02

Report = Callable[[int, float], None]


@dataclass(frozen=True)
class TrainingRun:
    """One run to learn from.

    Parameters
    ----------
    context
        The run as the network sees it; for the fusion, its estimates.
    mask_xyz
        (X, Y, Z) bool, voxels that count.
    target_vn
        (V, N) what the network is to predict, in SNR units: the expected magnitudes of a simulated run, or the
        measured volumes themselves.
    error
        Mean squared error of the first channel, the blind base, against the expected magnitudes, in noise variances:
        runs that are hard to predict count less, so that none rules the others.
    """

    context: Context | Estimates
    mask_xyz: Tensor
    target_vn: Tensor
    error: float

    @property
    def weight(self) -> float:
        """Factor on the squared errors of this run."""
        return 1.0 / (self.error + LEAST_ERROR)


def pretrain(
    model: nn.Module,
    runs: Sequence[TrainingRun],
    criterion: nn.Module,
    *,
    steps: int,
    batch_size: int,
    patch_size: int,
    learning_rate: float,
    precision: Precision,
    generator: torch.Generator,
    report: Report | None = None,
    report_every: int = 200,
) -> None:
    """Train a model on patches of all runs, in place.

    Parameters
    ----------
    model
        On any device; batches are brought there.
    runs
        At least one.
    criterion
        A loss of :mod:`.losses`.
    steps, batch_size, patch_size, learning_rate
        Optimiser steps, patches of each (every one of another run), edge of a patch in voxels, peak learning rate.
    precision
        Number format of the forward pass.
    generator
        Source of all randomness.
    report
        Called every ``report_every`` steps with the step and the squared error over that of the blind base, 1 for an
        untrained network.

    Raises
    ------
    UsageError
        The training diverged.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    device = next(model.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=precision.scales_loss)
    samplers = [PatchSampler(run.context, run.mask_xyz, patch_size, generator) for run in runs]
    error = base_error = 0.0
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * one_cycle(step, steps)
        chosen = torch.randint(len(runs), (batch_size,), generator=generator).tolist()
        parts = _batch(runs, samplers, chosen, patch_size)
        inputs, coordinates, target, mask, weight = (part.to(device) for part in parts)
        with torch.autocast(device.type, precision.autocast, enabled=precision.autocast is not None):
            prediction = model(inputs, coordinates)
        prediction = prediction.float()
        loss = criterion(prediction * weight, target * weight, mask)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        scaler.step(optimizer)
        scaler.update()
        inside = weight * mask
        error += float(((prediction.detach() - target) * inside).square().sum())
        base_error += float(((inputs[:, :1] - target) * inside).square().sum())
        if (step + 1) % report_every == 0 or step + 1 == steps:
            ratio = error / max(base_error, 1e-12)
            if report is not None:
                report(step + 1, ratio)
            if not ratio < DIVERGED:  # written so that NaN fails too
                raise UsageError(
                    f"the training diverged: at step {step + 1} the squared error is {ratio:.3g} times the base's",
                    f"lower the learning rate, which is {learning_rate:g}",
                )
            error = base_error = 0.0
    model.eval()


def _batch(
    runs: Sequence[TrainingRun], samplers: Sequence[PatchSampler], chosen: Sequence[int], size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Inputs, coordinates, targets, masks and square roots of the weights of one patch of each chosen run."""
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for i in chosen:
        run = runs[i]
        volumes, boxes = samplers[i].draw(1)
        inputs, coordinates = run.context.inputs(volumes, boxes)
        image = run.context.voxels.cut(boxes[0]).image(run.target_vn[volumes[0]])
        target = image[None, None] * run.context.gain(volumes[0])
        mask = masks_of(run.mask_xyz, boxes)
        parts.append((_fill(inputs, size), coordinates, _fill(target, size), _fill(mask, size)))
    inputs, coordinates, target, mask = (torch.cat(part) for part in zip(*parts, strict=True))
    weight = torch.tensor([runs[i].weight ** 0.5 for i in chosen], device=target.device)
    return (
        inputs.contiguous(memory_format=LAYOUT),
        coordinates,
        target,
        mask,
        weight[:, None, None, None, None],
    )


def _fill(patch_bcxyz: Tensor, size: int) -> Tensor:
    """Zeros behind a patch that the grid cut short."""
    pad = [x for n in reversed(patch_bcxyz.shape[2:]) for x in (0, size - n)]
    return F.pad(patch_bcxyz, pad) if any(pad) else patch_bcxyz
