"""Denoisers side by side on simulated runs with known truth: same noisy file, same mask, same threads.

`cases` makes the runs, `methods` knows the denoisers and runs each in a process of its own (`worker` is that process
for those in Python), `scores` measures them, `tables` and `figures` show what came out, `run` ties them together.
"""

from .cases import PROTOCOLS, Case, default_cases, grid_of_cases, parse_protocol
from .methods import PEERS, Method, available_methods
from .run import run_benchmark

__all__ = [
    "PEERS",
    "PROTOCOLS",
    "Case",
    "Method",
    "available_methods",
    "default_cases",
    "grid_of_cases",
    "parse_protocol",
    "run_benchmark",
]
