"""AdamW in a few lines: making PyTorch's own imports its compiler, which takes a second and 75 MB."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

FIRST_DECAY, SECOND_DECAY = 0.9, 0.999
SMALLEST_ROOT = 1e-8


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101).

    The same to the bit as ``torch.optim.AdamW`` on a CPU, with what a ``GradScaler`` needs.

    Parameters
    ----------
    parameters
        What is fitted.
    lr
        Learning rate; ``param_groups[0]["lr"]`` is where it is changed.
    weight_decay
        Share of the rate by which parameters shrink.
    """

    def __init__(self, parameters: Iterable[Tensor], *, lr: float, weight_decay: float) -> None:
        parameters = list(parameters)
        self.param_groups: list[dict[str, Any]] = [{"params": parameters, "lr": lr}]
        self.weight_decay = weight_decay
        self.n_steps = 0
        self.means = [torch.zeros_like(p) for p in parameters]
        self.squares = [torch.zeros_like(p) for p in parameters]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters that have a gradient."""
        self.n_steps += 1
        group = self.param_groups[0]
        rate = group["lr"]
        first = 1 - FIRST_DECAY**self.n_steps
        second = math.sqrt(1 - SECOND_DECAY**self.n_steps)
        for parameter, mean, square in zip(group["params"], self.means, self.squares, strict=True):
            gradient = parameter.grad
            if gradient is None:
                continue
            parameter.mul_(1 - rate * self.weight_decay)
            mean.lerp_(gradient, 1 - FIRST_DECAY)
            square.mul_(SECOND_DECAY).addcmul_(gradient, gradient, value=1 - SECOND_DECAY)
            root = (square.sqrt() / second).add_(SMALLEST_ROOT)
            parameter.addcdiv_(mean, root, value=-rate / first)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"n_steps": self.n_steps, "means": self.means, "squares": self.squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.n_steps = state["n_steps"]
        for held, saved in ((self.means, state["means"]), (self.squares, state["squares"])):
            for tensor, value in zip(held, saved, strict=True):
                tensor.copy_(value)
