"""What one optimiser step costs: precision, loss, accumulation and parts of the network, each in a process of its own.

    python benchmarks/training_cost.py [--threads 2] [--steps 15]

Prints a Markdown table: weights, milliseconds of a step (median) and the memory that training adds (peak).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

EDGE = 24
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "float32": {"mixed_precision": False},
    "two patches, accumulated four times": {"batch_size": 2, "accumulation_steps": 4},
    "L1 loss": {"loss": "l1"},
    "MSE loss": {"loss": "mse"},
    "no attention": {"leave_out": ["attention"]},
    "no encoding": {"leave_out": ["encoding"]},
    "no half-resolution path": {"leave_out": ["half-resolution"]},
    "DenoiserNet": {"model": "denoiser"},
    "DenoiserNet, float32": {"model": "denoiser", "mixed_precision": False},
}


def measure(options: dict[str, Any], n_steps: int, threads: int) -> dict[str, float]:
    """Train some steps on random numbers; weights that learn, milliseconds of a step, megabytes added."""
    import torch

    from dwmri_bidsapp.denoising.denoise import make_model
    from dwmri_bidsapp.denoising.hardware import choose_precision
    from dwmri_bidsapp.denoising.losses import make_loss
    from dwmri_bidsapp.options import DenoiseOptions

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    chosen = DenoiseOptions(init="random", **options)
    model = make_model(chosen).to(memory_format=torch.channels_last_3d)
    precision = choose_precision(torch.device("cpu"), chosen.mixed_precision)
    criterion = make_loss(chosen.loss, chosen.alpha, chosen.beta)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    shape = (chosen.batch_size, 9, EDGE, EDGE, EDGE)
    inputs = torch.randn(shape).contiguous(memory_format=torch.channels_last_3d)
    places, target = torch.rand(chosen.batch_size, 9, 2), torch.randn(shape[0], 1, *shape[2:])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(n_steps):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        for _ in range(chosen.accumulation_steps):
            with torch.autocast("cpu", precision.autocast, enabled=precision.autocast is not None):
                prediction = model(inputs, places)
            criterion(prediction.float(), target).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weights = sum(p.numel() for p in model.parameters() if p.grad is not None)
    return {"weights": weights, "ms": 1e3 * statistics.median(seconds[3:]), "mb": (peak - before) / 1e3}


def main() -> None:
    """Measure every configuration in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        print(json.dumps(measure(json.loads(arguments.only), arguments.steps, arguments.threads)))
        return
    base: dict[str, float] = {}
    print("| step | weights | ms | of default | MB | of default |\n|---|---|---|---|---|---|")
    for name, options in CONFIGURATIONS.items():
        command = [sys.executable, __file__, "--only", json.dumps(options)]
        command += ["--steps", str(arguments.steps), "--threads", str(arguments.threads)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        base = base or found
        print(
            f"| {name} | {found['weights']:,} | {found['ms']:.0f} | {found['ms'] / base['ms']:.2f} | "
            f"{found['mb']:.0f} | {found['mb'] / base['mb']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
