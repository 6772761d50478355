"""The one training loop: fit the network to the measured target volumes, with no clean reference.

Axes: ``b`` sample of a batch, ``c`` channel, ``v`` volume, ``x y z`` space.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..options import DenoiseOptions
from ..stopping import stop_if_asked
from .context import Context
from .fusion import Estimates
from .hardware import Precision
from .losses import make_loss
from .optimizer import AdamW
from .voxels import Box

WARM_UP = 0.1
CLIP_NORM = 1.0
WEIGHT_DECAY = 1e-4
EVALUATE_EVERY = 25
HELDOUT_CELL = 6
HELDOUT_SHARE = 0.05
HELDOUT_PATCHES = 16
# evaluations without an improvement of one part in a thousand before training stops
PATIENCE = 6
IMPROVEMENT = 1e-3
MAX_BAD_STEPS = 10

Progress = Callable[[int, int, float], None]


@dataclass
class Training:
    """What a training gave.

    Parameters
    ----------
    history
        One row per evaluation: step, learning_rate, training_loss, heldout_loss, seconds. The held-out loss is the
        mean squared error in SNR units: 1 is what the noise alone leaves.
    stop_reason
        ``"max-steps"``, ``"no-steps"``, ``"converged"`` or ``"diverged"``.
    loading_seconds, training_seconds
        Time for making inputs, and in all.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    stop_reason: str = "no-steps"
    steps: int = 0
    best_step: int = 0
    loading_seconds: float = 0.0
    training_seconds: float = 0.0


def split_heldout(mask_xyz: Tensor, generator: torch.Generator) -> Tensor:
    """Small cubes of the mask, one in twenty, that no gradient ever sees; (X, Y, Z) bool."""
    cells = [-(-n // HELDOUT_CELL) for n in mask_xyz.shape]
    chosen = torch.rand(cells, generator=generator) < HELDOUT_SHARE
    for axis in range(3):
        chosen = chosen.repeat_interleave(HELDOUT_CELL, dim=axis)
    heldout = (
        chosen[: mask_xyz.shape[0], : mask_xyz.shape[1], : mask_xyz.shape[2]].to(mask_xyz.device) & mask_xyz
    )
    # in a tiny mask every cell may be spared: the loss is then watched on all voxels
    return heldout if bool(heldout.any()) else mask_xyz.clone()


class PatchSampler:
    """Draws target volumes and patches around voxels of a mask.

    Parameters
    ----------
    context
        The run, or its estimates.
    mask_xyz
        Where patches are centred.
    patch_size
        Edge of a patch; cut to the grid.
    generator
        Source of all randomness.
    """

    def __init__(
        self, context: Context | Estimates, mask_xyz: Tensor, patch_size: int, generator: torch.Generator
    ) -> None:
        self.context = context
        self.centres = mask_xyz.nonzero().cpu()
        self.size = [min(patch_size, n) for n in mask_xyz.shape]
        self.limits = [n - s for n, s in zip(mask_xyz.shape, self.size, strict=True)]
        self.generator = generator

    def draw(self, n: int) -> tuple[list[int], list[Box]]:
        """Target volumes and boxes of ``n`` samples."""
        targets = self.context.targets
        chosen = targets[torch.randint(len(targets), (n,), generator=self.generator)]
        centres = self.centres[torch.randint(len(self.centres), (n,), generator=self.generator)]
        return chosen.tolist(), [self._box(centre) for centre in centres.tolist()]

    def _box(self, centre: list[int]) -> Box:
        starts = [
            min(max(0, c - s // 2), limit) for c, s, limit in zip(centre, self.size, self.limits, strict=True)
        ]
        x, y, z = (slice(start, start + s) for start, s in zip(starts, self.size, strict=True))
        return x, y, z


def masks_of(mask_xyz: Tensor, boxes: list[Box]) -> Tensor:
    """The mask in each box, (B, 1, X, Y, Z)."""
    return torch.stack([mask_xyz[box][None] for box in boxes])


def one_cycle(step: int, max_steps: int) -> float:
    """Factor of the one-cycle schedule: linear warm-up, then a cosine to nearly nothing."""
    warm = max(1, round(WARM_UP * max_steps))
    if step < warm:
        return (step + 1) / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, max_steps - warm)))


def train(
    model: nn.Module,
    context: Context,
    mask_xyz: Tensor,
    options: DenoiseOptions,
    precision: Precision,
    *,
    checkpoint_dir: Path | None = None,
    progress: Progress | None = None,
) -> Training:
    """Fit the model to the run; it ends with the weights of the lowest held-out loss.

    Parameters
    ----------
    model
        On the context's device.
    context
        The run.
    mask_xyz
        (X, Y, Z) voxels that count.
    options
        Steps, batch, learning rate, loss.
    precision
        Number format of the forward pass.
    checkpoint_dir
        Where the state is kept, and found again by a later call; also the TensorBoard log.
    progress
        Called with step, number of steps and held-out loss after every evaluation.
    """
    options = options.settled()
    trainer = _State(model, context, mask_xyz, options, precision, checkpoint_dir)
    if options.max_steps == 0:
        trainer.evaluate(float("nan"))
        trainer.close()
        return trainer.record
    trainer.resume()
    record = trainer.record
    if record.stop_reason != "no-steps":
        # a checkpoint of a training that had come to its end
        trainer.finish()
        return record
    start = time.perf_counter() - record.training_seconds
    if not record.history:
        trainer.evaluate(float("nan"))
    bad_steps = 0
    while record.steps < options.max_steps:
        stop_if_asked(trainer.save)
        loss = trainer.step()
        record.steps += 1
        bad_steps = 0 if math.isfinite(loss) else bad_steps + 1
        record.training_seconds = time.perf_counter() - start
        if bad_steps >= MAX_BAD_STEPS:
            record.stop_reason = "diverged"
            break
        if record.steps % EVALUATE_EVERY == 0 or record.steps == options.max_steps:
            heldout = trainer.evaluate(loss)
            record.training_seconds = time.perf_counter() - start
            if progress is not None:
                progress(record.steps, options.max_steps, heldout)
            if trainer.converged():
                record.stop_reason = "converged"
                break
            trainer.save()
    else:
        record.stop_reason = "max-steps"
    trainer.finish()
    return record


class _State:
    """Everything that one training needs between two steps, and that a checkpoint holds."""

    def __init__(
        self,
        model: nn.Module,
        context: Context,
        mask_xyz: Tensor,
        options: DenoiseOptions,
        precision: Precision,
        checkpoint_dir: Path | None,
    ) -> None:
        self.model, self.context, self.options, self.precision = model, context, options, precision
        self.generator = torch.Generator().manual_seed(options.random_seed)
        self.heldout_mask = split_heldout(mask_xyz, self.generator)
        seen = mask_xyz & ~self.heldout_mask
        self.training_mask = seen if bool(seen.any()) else mask_xyz
        self.sampler = PatchSampler(context, self.training_mask, options.patch_size, self.generator)
        watcher = PatchSampler(context, self.heldout_mask, options.patch_size, self.generator)
        self.watched = watcher.draw(HELDOUT_PATCHES)
        self.criterion = make_loss(options.loss, options.alpha, options.beta)
        self.optimizer = AdamW(model.parameters(), lr=options.learning_rate, weight_decay=WEIGHT_DECAY)
        self.scaler = torch.amp.GradScaler(context.device.type, enabled=precision.scales_loss)
        self.plateau_factor = 1.0
        self.record = Training()
        self.best = float("inf")
        self.best_weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.path = None if checkpoint_dir is None else checkpoint_dir / "checkpoint.pt"
        self.log = _open_log(checkpoint_dir)

    def _forward(self, volumes: list[int], boxes: list[Box]) -> tuple[Tensor, Tensor]:
        """Prediction and target of some samples."""
        start = time.perf_counter()
        inputs, coordinates = self.context.inputs(volumes, boxes)
        target = self.context.target(volumes, boxes)
        self.record.loading_seconds += time.perf_counter() - start
        with torch.autocast(
            self.context.device.type, self.precision.autocast, enabled=self.precision.autocast is not None
        ):
            prediction = self.model(inputs, coordinates)
        return prediction.float(), target

    def step(self) -> float:
        """One optimiser step over ``accumulation_steps`` batches; the mean loss."""
        self.model.train()
        rate = self.options.learning_rate * self._factor()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        total = 0.0
        for _ in range(self.options.accumulation_steps):
            volumes, boxes = self.sampler.draw(self.options.batch_size)
            prediction, target = self._forward(volumes, boxes)
            loss = self.criterion(prediction, target, masks_of(self.training_mask, boxes))
            self.scaler.scale(loss / self.options.accumulation_steps).backward()
            total += float(loss.detach()) / self.options.accumulation_steps
        self.scaler.unscale_(self.optimizer)  # type: ignore[arg-type]
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        if math.isfinite(total):
            self.scaler.step(self.optimizer)  # type: ignore[arg-type]
        self.scaler.update()
        return total

    def _factor(self) -> float:
        if self.options.schedule == "one-cycle":
            return one_cycle(self.record.steps, self.options.max_steps)
        warm = max(1, round(WARM_UP * self.options.max_steps))
        return min(1.0, (self.record.steps + 1) / warm) * self.plateau_factor

    @torch.no_grad()
    def evaluate(self, training_loss: float) -> float:
        """Held-out mean squared error in SNR units; keeps the weights if they are the best."""
        self.model.eval()
        loading = self.record.loading_seconds
        squares, count = 0.0, 0.0
        volumes, boxes = self.watched
        for first in range(0, len(volumes), self.options.batch_size):
            part = slice(first, first + self.options.batch_size)
            prediction, target = self._forward(volumes[part], boxes[part])
            inside = masks_of(self.heldout_mask, boxes[part])
            gains = torch.tensor([self.context.gain(v) for v in volumes[part]], device=target.device)
            error = (prediction - target) / gains[:, None, None, None, None]
            squares += float((error.square() * inside).sum())
            count += float(inside.sum())
        self.record.loading_seconds = loading
        heldout = squares / max(1.0, count)
        if heldout < self.best * (1 - IMPROVEMENT) or not self.record.history:
            self.record.best_step = self.record.steps
        elif self.options.schedule == "plateau":
            self.plateau_factor *= 0.5
        if heldout < self.best:
            self.best = heldout
            self.best_weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        row = {
            "step": float(self.record.steps),
            "learning_rate": self.options.learning_rate * self._factor(),
            "training_loss": training_loss,
            "heldout_loss": heldout,
            "seconds": self.record.training_seconds,
        }
        self.record.history.append(row)
        if self.log is not None:
            for name in ("learning_rate", "training_loss", "heldout_loss"):
                self.log.add_scalar(name, row[name], self.record.steps)
        return heldout

    def converged(self) -> bool:
        """Whether the held-out loss has not fallen for some time."""
        return self.record.steps - self.record.best_step >= PATIENCE * EVALUATE_EVERY

    def finish(self) -> None:
        """Take the best weights."""
        self.model.load_state_dict(self.best_weights)
        self.model.eval()
        self.save()
        self.close()

    def close(self) -> None:
        """Close the TensorBoard log."""
        if self.log is not None:
            self.log.close()

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "fingerprint": self._fingerprint(),
            "model": self.model.state_dict(),
            "best": self.best,
            "best_weights": self.best_weights,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "plateau_factor": self.plateau_factor,
            "generator": self.generator.get_state(),
            "record": asdict(self.record),
        }
        save_state(state, self.path)

    def resume(self) -> None:
        """Continue from a checkpoint of the same options on the same data, if there is a whole one."""
        if self.path is None or not self.path.exists():
            return
        try:
            state = torch.load(self.path, map_location=self.context.device, weights_only=True)
        except (
            EOFError,
            OSError,
            RuntimeError,
            pickle.UnpicklingError,
        ):  # cut short when the machine stopped
            return
        if state["fingerprint"] != self._fingerprint():
            return
        self.model.load_state_dict(state["model"])
        self.best, self.best_weights = state["best"], state["best_weights"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.plateau_factor = state["plateau_factor"]
        self.generator.set_state(state["generator"].cpu())
        self.record = Training(**state["record"])

    def _fingerprint(self) -> dict[str, Any]:
        """Options, and a sample of the data, that a checkpoint belongs to."""
        sample = self.context.snr_vn[:, ::64].double()
        per_volume = torch.stack([sample.sum(1), sample.square().sum(1)]).cpu()
        coordinates = self.context.coordinates_vck.double().cpu().flatten(1)
        order_v = torch.arange(1, len(sample) + 1, dtype=torch.float64)
        return {
            "options": asdict(self.options),
            "scales_loss": self.scaler.is_enabled(),  # another number format has another state
            "shape": [len(sample), *self.context.voxels.mask_xyz.shape],
            # to as many digits as sums by other numbers of threads agree
            "data": [
                f"{float(total):.6g}"
                for total in (*(per_volume @ order_v), coordinates.square().sum(1) @ order_v)
            ],
        }


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write what ``torch.load`` reads, whole or not at all.

    Raises
    ------
    OSError
        It cannot be written; PyTorch's own writer says RuntimeError when the disk is full.
    """
    content = io.BytesIO()
    torch.save(state, content)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content.getbuffer())
    os.replace(partial, path)


def _open_log(checkpoint_dir: Path | None) -> Any:
    """A TensorBoard writer, if there is a folder for it."""
    if checkpoint_dir is None:
        return None
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and often not needed

    return SummaryWriter(str(checkpoint_dir / "tensorboard"))
