"""Which GPUs this process sees and how much memory they have, without starting CUDA."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

_QUERY = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
# What CUDA itself takes on a device before the first tensor; the size differs from driver to driver.
_CONTEXT_GB = 0.5


def visible_gpu_memory() -> dict[int, float]:
    """Return the memory of each GPU in GB, by the number that ``cuda:N`` and ``--gpu-ids`` mean.

    The numbers count the devices of ``CUDA_VISIBLE_DEVICES``. Empty where nvidia-smi is not there or
    says nothing that is understood (a part of a GPU, for example).
    """
    try:
        listed = subprocess.run(_QUERY, check=True, capture_output=True, text=True, timeout=20).stdout
        rows = [[cell.strip() for cell in line.split(",")] for line in listed.splitlines() if line.strip()]
        memory = {index: float(mebibytes) * 2**20 / 1e9 for index, _, mebibytes in rows}
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return {int(index): size for index, size in memory.items()}
    found: dict[int, float] = {}
    for number, name in enumerate(word.strip() for word in visible.split(",")):
        # As CUDA does: a beginning of the UUID is enough, and the first unknown name ends the list.
        index = next(
            (i for i, uuid, _ in rows if name in (i,) or (len(name) > 3 and uuid.startswith(name))), None
        )
        if index is None:
            break
        found[number] = memory[index]
    return found


def too_small(needed_gb: Mapping[str, float], gpu_ids: Sequence[int]) -> list[str]:
    """Return a line for each run that may not fit into the smallest GPU that it could get.

    Parameters
    ----------
    needed_gb
        Memory that each run needs, by its name; on a GPU it is no more than on the CPU, and CUDA's own part.
    gpu_ids
        The GPUs in question; all that are visible if empty.
    """
    memory = visible_gpu_memory()
    sizes = {gpu: memory[gpu] for gpu in (gpu_ids or memory) if gpu in memory}
    if not sizes:
        return []
    smallest = min(sizes, key=lambda gpu: sizes[gpu])
    return [
        f"{name}: may need {needed + _CONTEXT_GB:.1f} GB, and GPU {smallest} has {sizes[smallest]:.1f} GB: "
        "use --low-mem, a smaller --batch-size, or --device cpu"
        for name, needed in needed_gb.items()
        if needed + _CONTEXT_GB > sizes[smallest]
    ]
