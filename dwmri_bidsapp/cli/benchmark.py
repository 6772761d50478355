"""``benchmark``: denoisers side by side on simulated runs, or on acquired ones with more noise."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import PACKAGE
from ..errors import RunFailed, UsageError

_PROTOCOLS = ("few", "b1000", "b2500", "shells")
_NOISES = ("rician", "varying", "chi", "zero-filled")
_SEEDS = (101, 102)
_ALL_SEEDS = (101, 102, 103, 104)
_ALL_SNRS = (10.0, 20.0, 40.0)
_ACQUIRED_SNRS = (10.0, 20.0)
_OF_SIMULATED = ("protocol", "family", "shape", "voxel_size", "motion", "full", "quick")


def build_benchmark_parser() -> argparse.ArgumentParser:
    """Return the parser of ``dwmri-bidsapp benchmark``."""
    parser = argparse.ArgumentParser(
        prog=f"{PACKAGE} benchmark",
        description="Put denoisers side by side on simulated runs with known truth, or on acquired runs that noise "
        "is added to: tables and figures in OUT_DIR. Without --acquired, --protocol, --snr and --noise: each protocol, "
        "SNR and kind of noise in turn, the others being 32 directions at b=1000, SNR 20, uneven Rician noise.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("out_dir", type=Path, metavar="OUT_DIR", help="where to write")
    add(
        "--protocol",
        nargs="+",
        metavar="NAME",
        help=f"only these, in every combination: {', '.join(_PROTOCOLS)}, or numbers: 6+60x2500 is 6 b=0 volumes and "
        "60 directions at b=2500",
    )
    add(
        "--acquired",
        nargs="+",
        type=Path,
        metavar="DWI",
        help="instead of simulated runs, these NIfTI files with .bval and .bvec beside them: each stands for the "
        "truth, and noise is added to it; choose series of high SNR (default: b=0 SNR 10 and 20, rician, seed 101)",
    )
    add(
        "--snr",
        nargs="+",
        type=float,
        metavar="SNR",
        help="of b=0 in white matter, of acquired runs that of the median voxel of the brain; every combination",
    )
    add("--noise", nargs="+", choices=_NOISES, help="kinds of noise; every combination")
    add("--seed", nargs="+", type=int, default=None, help="seeds of the anatomies (default: 101 102)")
    add(
        "--family",
        nargs="+",
        choices=("brain", "geometric"),
        default=["brain"],
        help="families of anatomies (default: brain, which no weights were trained on)",
    )
    add(
        "--shape",
        nargs="+",
        default=["36", "44", "24"],
        metavar="N",
        help="voxels along each axis, or brain for a whole brain (default: 36 44 24)",
    )
    add("--voxel-size", type=float, default=2.0, metavar="MM", help="edge of a voxel (default: 2)")
    add("--motion", type=float, default=0.0, metavar="MM", help="misalignment of the volumes (default: 0)")
    add("--method", nargs="+", metavar="NAME", help="only these (default: all that are there)")
    add(
        "--variant",
        action="append",
        default=[],
        metavar="NAME:KEY=VALUE,...",
        help="one more of our own, with these fields of DenoiseOptions; may be given several times",
    )
    add("--threads", type=int, default=2, help="of every method (default: 2)")
    add("--repeats", type=int, default=1, help="runs of each method, whose median time counts (default: 1)")
    add("--full", action="store_true", help="four seeds, every protocol, SNR and noise: many hours")
    add("--quick", action="store_true", help="one tiny case, to see that everything works")
    return parser


def benchmark(arguments: Sequence[str]) -> int:
    """Run the benchmark with its arguments, and return the exit code.

    Raises
    ------
    RunFailed
        A method of ours failed; the others were finished. What others fail at stands in the table.
    """
    namespace = build_benchmark_parser().parse_args(arguments)
    # matplotlib and torch take seconds, which --help should not pay
    from ..benchmark.methods import PEERS
    from ..benchmark.run import run_benchmark

    _check_numbers(namespace)
    rows = run_benchmark(
        namespace.out_dir,
        _cases(namespace),
        _methods(namespace),
        threads=namespace.threads,
        repeats=namespace.repeats,
        call=shlex.join([PACKAGE, "benchmark", *arguments]),
        say=lambda line: print(f"{PACKAGE}: {line}" if "\n" not in line else line, flush=True),
    )
    failed = sorted({row["method"] for row in rows if row["status"] != "done"})
    if not set(failed) <= set(PEERS):
        raise RunFailed(
            f"{', '.join(failed)} failed, the others were finished",
            f"see the status in {namespace.out_dir}/benchmark.tsv",
        )
    note = f", {', '.join(failed)} failed on some cases" if failed else ""
    print(f"{PACKAGE}: done{note}: see {namespace.out_dir}/summary.md")
    return 0


def _check_numbers(namespace: argparse.Namespace) -> None:
    if namespace.threads < 1 or namespace.repeats < 1:
        raise UsageError(
            f"expected at least one thread and one repeat, found {namespace.threads} and {namespace.repeats}"
        )


def _cases(namespace: argparse.Namespace) -> Any:
    """The grid that was asked for."""
    from ..benchmark.cases import default_cases, grid_of_cases, parse_protocol

    if namespace.acquired:
        return _acquired_cases(namespace)
    for protocol in namespace.protocol or ():
        parse_protocol(protocol)
    seeds = namespace.seed or _SEEDS
    if namespace.quick:
        return default_cases(seeds, quick=True)
    if namespace.full:
        seeds = namespace.seed or _ALL_SEEDS
        wanted: tuple[Any, Any, Any] = (_PROTOCOLS, _ALL_SNRS, _NOISES)
    else:
        wanted = (namespace.protocol, namespace.snr, namespace.noise)
    usual = {"shape": _shape(namespace.shape), "voxel_size": namespace.voxel_size, "motion": namespace.motion}
    if not any(wanted):
        cases = default_cases(seeds)
        return [
            dataclasses.replace(case, family=family, **usual) for family in namespace.family for case in cases
        ]
    protocols, snrs, noises = wanted
    return grid_of_cases(
        protocols=protocols or ["b1000"],
        snrs=snrs or [20.0],
        noises=noises or ["varying"],
        seeds=seeds,
        families=namespace.family,
        **usual,
    )


def _acquired_cases(namespace: argparse.Namespace) -> Any:
    from ..benchmark.cases import acquired_cases

    usual = build_benchmark_parser()
    given = [name for name in _OF_SIMULATED if getattr(namespace, name) != usual.get_default(name)]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"--acquired: expected no option of simulated runs beside it, found {options}")
    return acquired_cases(
        namespace.acquired,
        snrs=namespace.snr or _ACQUIRED_SNRS,
        noises=namespace.noise or ["rician"],
        seeds=namespace.seed or _SEEDS[:1],
    )


def _shape(words: Sequence[str]) -> tuple[int, int, int] | None:
    if list(words) == ["brain"]:
        return None
    if len(words) != 3 or not all(word.isdigit() and int(word) > 0 for word in words):
        raise UsageError(f"--shape: expected three numbers or brain, found {' '.join(words)}")
    x, y, z = map(int, words)
    return x, y, z


def _methods(namespace: argparse.Namespace) -> Any:
    """The methods that were asked for, in the order of the table."""
    from ..benchmark.methods import available_methods

    available = available_methods(dict(_variant(text) for text in namespace.variant))
    wanted = namespace.method or list(available)
    unknown = [name for name in wanted if name not in available]
    if unknown:
        raise UsageError(f"--method: {', '.join(unknown)} is not here", f"there are {', '.join(available)}")
    return [
        method for name, method in available.items() if name in wanted or name in _names(namespace.variant)
    ]


def _names(variants: Sequence[str]) -> list[str]:
    return [text.partition(":")[0] for text in variants]


def _variant(text: str) -> tuple[str, dict[str, Any]]:
    """``name:key=value,...`` as a name and fields; values are JSON, or words, several joined by +."""
    from ..options import DenoiseOptions

    name, _, rest = text.partition(":")
    fields = {field.name: field.default for field in dataclasses.fields(DenoiseOptions)}
    options: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if key not in fields or not equals:
            raise UsageError(
                f"--variant: expected NAME:KEY=VALUE, found {text}", f"keys are {', '.join(sorted(fields))}"
            )
        if isinstance(fields[key], tuple):
            options[key] = tuple(value.split("+"))
            continue
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    if not name or not options:
        raise UsageError(f"--variant: expected NAME:KEY=VALUE, found {text}")
    return name, options
