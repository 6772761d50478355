"""The optimiser: the same steps as PyTorch's own, without its compiler."""

from __future__ import annotations

import subprocess
import sys

import torch

from dwmri_bidsapp.denoising.optimizer import AdamW


def test_it_is_pytorchs_adamw_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn((4, 3), generator=generator), torch.randn(5, generator=generator)]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    one = AdamW(ours, lr=0.01, weight_decay=0.1)
    other = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1)
    for step in range(30):
        if step == 15:
            fresh = AdamW(ours, lr=0.01, weight_decay=0.1)
            fresh.load_state_dict(one.state_dict())
            one = fresh
        for optimizer in (one, other):
            optimizer.param_groups[0]["lr"] = 0.01 / (1 + step)
            optimizer.zero_grad()
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        one.step()
        other.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[0], start[0])


def test_a_training_does_not_import_the_compiler() -> None:
    code = """
import sys, torch
from dwmri_bidsapp.denoising.optimizer import AdamW
weight = torch.nn.Parameter(torch.ones(3))
optimizer = AdamW([weight], lr=0.1, weight_decay=0.0)
scaler = torch.amp.GradScaler("cpu", enabled=False)
scaler.scale(weight.square().sum()).backward()
scaler.unscale_(optimizer)
torch.nn.utils.clip_grad_norm_([weight], 1.0)
scaler.step(optimizer)
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
