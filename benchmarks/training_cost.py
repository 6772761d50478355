"""What one optimiser step costs: precision, loss, accumulation and parts of the network, each in a process of its own.

    python benchmarks/training_cost.py [--threads 2] [--steps 15] [--device cuda] [--patch-size 24] [--base-filters 16]

Prints a Markdown table: weights, milliseconds of a step (median) and the memory that training adds (peak): of the
process on a CPU, of PyTorch's tensors on a GPU.
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


def measure(options: dict[str, Any], n_steps: int, threads: int, device_name: str) -> dict[str, float]:
    """Train some steps on random numbers; weights that learn, milliseconds of a step, megabytes added."""
    import torch

    from dwmri_bidsapp.denoising.denoise import make_model
    from dwmri_bidsapp.denoising.hardware import choose_device, choose_precision
    from dwmri_bidsapp.denoising.losses import make_loss
    from dwmri_bidsapp.options import DenoiseOptions

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    chosen = DenoiseOptions(init="random", **options)
    device = choose_device(device_name)
    on_gpu = device.type == "cuda"
    model = make_model(chosen).to(device, memory_format=torch.channels_last_3d)
    precision = choose_precision(device, chosen.mixed_precision)
    criterion = make_loss(chosen.loss, chosen.alpha, chosen.beta)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    shape = (chosen.batch_size, 9, *[chosen.patch_size] * 3)
    inputs = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last_3d)
    places = torch.rand(chosen.batch_size, 9, 2, device=device)
    target = torch.randn(shape[0], 1, *shape[2:], device=device)

    def peak_kb() -> float:
        if on_gpu:
            return torch.cuda.max_memory_allocated(device) / 1e3
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = peak_kb()
    seconds = []
    for _ in range(n_steps):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        for _ in range(chosen.accumulation_steps):
            with torch.autocast(device.type, precision.autocast, enabled=precision.autocast is not None):
                prediction = model(inputs, places)
            criterion(prediction.float(), target).backward()
        optimizer.step()
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    weights = sum(p.numel() for p in model.parameters() if p.grad is not None)
    return {"weights": weights, "ms": 1e3 * statistics.median(seconds[3:]), "mb": (peak_kb() - before) / 1e3}


def main() -> None:
    """Measure every configuration in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--patch-size", type=int, default=24)
    parser.add_argument("--base-filters", type=int, default=16)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        chosen = json.loads(arguments.only)
        print(json.dumps(measure(chosen, arguments.steps, arguments.threads, arguments.device)))
        return
    common = {"patch_size": arguments.patch_size, "base_filters": arguments.base_filters}
    base: dict[str, float] = {}
    print("| step | weights | ms | of default | MB | of default |\n|---|---|---|---|---|---|")
    for name, options in CONFIGURATIONS.items():
        command = [sys.executable, __file__, "--only", json.dumps({**common, **options})]
        command += ["--steps", str(arguments.steps), "--threads", str(arguments.threads)]
        command += ["--device", arguments.device]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        base = base or found
        print(
            f"| {name} | {found['weights']:,} | {found['ms']:.1f} | {found['ms'] / base['ms']:.2f} | "
            f"{found['mb']:.0f} | {found['mb'] / base['mb']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
