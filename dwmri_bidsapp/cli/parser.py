"""The options. Only what stands on the command line enters the namespace: nothing has a default here.

The defaults live in :class:`Config` and :class:`DenoiseOptions`; so the configuration file can
tell what the user typed (it wins) from what nobody said.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import LABELS, PACKAGE, Config
from ..options import AUTOMATIC, LEARNING_RATES, MANY_VOLUMES, PARTS, STEPS, DenoiseOptions

SUBCOMMANDS = {
    "demo": "simulate a small dataset with known truth in OUT_DIR, and run both levels on it",
    "simulate": "write a simulated BIDS dataset with known truth to OUT_DIR",
}

_EPILOG = f"""
other commands:
  {PACKAGE} demo OUT_DIR        {SUBCOMMANDS["demo"]}
  {PACKAGE} simulate OUT_DIR    {SUBCOMMANDS["simulate"]}
  {PACKAGE} benchmark OUT_DIR   put denoisers side by side on simulated runs
  {PACKAGE} train-weights FILE  make weights for --init, from simulated runs and from your own

exit codes: 0 done, 1 a run failed (the others were finished), 2 bad arguments, 64 usage,
65 bad data, 70 the workflow could not be built, 74 input/output, 75 try again (out of memory),
130 interrupted, 137 killed by the kernel for memory. The last line says what happened and
where to look.
"""


class _Group:
    """Adds options of one group, with the default of the matching field in the help."""

    def __init__(self, parser: argparse.ArgumentParser, title: str, defaults: type) -> None:
        self._group = parser.add_argument_group(title)
        self._defaults = defaults

    def add(self, *flags: str, help: str, **settings: Any) -> None:
        """Add an option; ``settings`` are those of ``add_argument``."""
        key = settings.get("dest") or flags[-1].lstrip("-").replace("-", "_")
        default = getattr(self._defaults, key, None)
        if settings.get("action") is not argparse.BooleanOptionalAction and default not in (
            None,
            (),
            0,
            AUTOMATIC,
        ):
            help += f" (default: {default})"
        self._group.add_argument(*flags, default=argparse.SUPPRESS, help=help, **settings)

    def switch(self, flag: str, *, help: str, **settings: Any) -> None:
        """Add an option that can be switched on and off."""
        key = settings.get("dest") or flag.lstrip("-").replace("-", "_")
        on = getattr(self._defaults, key)
        self.add(flag, help=f"{help} (default: {'yes' if on else 'no'})",
                 action=argparse.BooleanOptionalAction, **settings)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``dwmri-bidsapp BIDS_DIR OUT_DIR LEVEL``."""
    parser = argparse.ArgumentParser(
        prog=PACKAGE,
        usage="%(prog)s [options] BIDS_DIR OUT_DIR {participant,group} [{participant,group}]",
        description="Removes noise from diffusion-weighted MRI: a network is trained on each run.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("bids_dir", type=Path, metavar="BIDS_DIR", help="the dataset; it is only read")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="folder of the derivatives")
    parser.add_argument(
        "levels", nargs="+", choices=("participant", "group"), metavar="LEVEL",
        help="participant (denoise), group (compare over participants), or both",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"{PACKAGE} {__version__}")
    _add_bids_options(_Group(parser, "what to process", Config))
    _add_method_options(_Group(parser, "method", DenoiseOptions))
    _add_machine_options(_Group(parser, "machine", Config))
    _add_run_options(_Group(parser, "run", Config))
    return parser


def build_subcommand_parser(command: str) -> argparse.ArgumentParser:
    """Return the parser of ``dwmri-bidsapp demo`` or ``dwmri-bidsapp simulate``."""
    parser = argparse.ArgumentParser(
        prog=f"{PACKAGE} {command}", description=SUBCOMMANDS[command], allow_abbrev=False
    )
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="where to write")
    parser.add_argument("--n-participants", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("--snr", type=float, default=20.0, help="b0 signal-to-noise ratio (default: 20)")
    if command == "demo":
        parser.epilog = "Any option of the participant level can follow, such as --max-steps 100."
        parser.set_defaults(simulation_seed=7)
        return parser
    parser.add_argument("--voxel-size", type=float, default=2.0, help="edge of a voxel, in mm (default: 2)")
    parser.add_argument("--n-b0", type=int, default=6, help="b=0 volumes (default: 6)")
    parser.add_argument(
        "--shell", nargs=2, type=int, action="append", metavar=("B", "N"),
        help="N directions at a b-value, in s/mm²; once per shell (default: 1000 60)",
    )  # fmt: skip
    parser.add_argument(
        "--noise", choices=("rician", "chi", "zero-filled"), default="rician", help="kind (default: rician)"
    )
    parser.add_argument(
        "--sigma-spread",
        type=float,
        default=0.5,
        help="unevenness of the noise, about (highest - lowest) / mean (default: 0.5)",
    )
    parser.add_argument(
        "--family",
        choices=("brain", "geometric"),
        default="brain",
        help="what the anatomies are: brains, or random geometry (default: brain)",
    )
    parser.add_argument(
        "--lesions",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="lesions in the brains' white matter (default: yes)",
    )
    parser.add_argument(
        "--motion", type=float, default=0.0, metavar="MM",
        help="misalignment of the volumes, with eddy-like distortion (default: 0)",
    )  # fmt: skip
    parser.add_argument("--random-seed", type=int, default=0, dest="simulation_seed", help="(default: 0)")
    return parser


def _label(prefix: str) -> Any:
    def label(text: str) -> str:
        return text.removeprefix(f"{prefix}-")

    label.__name__ = "label"
    return label


def _add_bids_options(group: _Group) -> None:
    for key, prefix in LABELS.items():
        group.add(f"--{key.replace('_', '-')}", nargs="+", metavar="LABEL", type=_label(prefix),
                  help=f"only these, with or without {prefix}- (default: all)")  # fmt: skip
    group.add("--bids-filter-file", type=Path, metavar="FILE",
              help='JSON such as {"dwi": {"session": null, "run": "*"}}: null = absent, "*" = any')  # fmt: skip
    group.add("--bids-database-dir", type=Path, metavar="DIR",
              help="pybids database: made if absent, used again without a look at the dataset if present")  # fmt: skip
    group.switch("--skip-bids-validation", help="accept names and a dataset_description.json that break BIDS")
    group.add("-d", "--derivatives", nargs="+", action="extend", metavar="NAME=PATH",
              help="BIDS derivatives with masks (desc-brain_mask) or noise maps (param-sigma_dwimap) of "
                   "the runs; truth=PATH: noise-free images that the group level compares with")  # fmt: skip
    group.add("--b0-threshold", type=float, metavar="B", help="b-values up to B s/mm² count as b=0")
    group.add("--mask", type=Path, metavar="FILE", help="brain mask, for one run")
    group.add("--noise-map", type=Path, metavar="FILE", help="noise standard deviation, for one run")


def _add_method_options(group: _Group) -> None:
    group.add("--model", choices=("multiscale", "denoiser"), help="network")
    group.add("--loss", choices=("edge-aware", "l1", "mse"), help="loss")
    group.add("--alpha", type=float, metavar="W", help="weight of the edge term of the loss")
    group.add("--beta", type=float, metavar="W", help="weight of the gradient term of the loss")
    group.add("--base-filters", type=int, metavar="N", help="features at full resolution")
    group.add("--init", metavar="{pretrained,random,PATH}", help="weights to start from")
    group.add("--max-steps", type=int, metavar="N",
              help="most steps of training; 0: none at all "
                   f"(default: {STEPS['pretrained']}, or {STEPS['random']} with --init random)")  # fmt: skip
    group.add("--batch-size", type=int, metavar="N", help="patches of one forward pass")
    group.add("--block", type=int, metavar="N",
              help="edge of a block of the blind local PCA, in voxels (default: 2, "
                   f"and 3 from {MANY_VOLUMES} volumes on)")  # fmt: skip
    group.add("--patch-size", type=int, metavar="N", help="edge of a patch, in voxels")
    group.add("--accumulation-steps", type=int, metavar="N", help="forward passes of one step")
    group.add("--learning-rate", type=float, metavar="RATE",
              help=f"highest learning rate (default: {LEARNING_RATES['pretrained']:g}, "
                   f"or {LEARNING_RATES['random']:g} with --init random)")  # fmt: skip
    group.add("--schedule", choices=("one-cycle", "plateau"), help="course of the learning rate")
    group.switch("--mixed-precision", help="16-bit arithmetic where the device gains by it")
    group.add("--compare", nargs="+", metavar="METHOD",
              help="other methods beside: mppca, patch2self, denoiser, or NAMEs of --derivatives that hold "
                   "the runs denoised elsewhere")  # fmt: skip
    group.switch("--b0-denoising", help="denoise b=0 volumes too")
    group.add("--bias-correction", choices=("none", "rician"), help="remove the noise floor")
    group.switch("--blend", help="give each voxel back the share of its measurement that helps")
    group.add("--leave-out", nargs="+", choices=list(PARTS), metavar="PART",
              help=f"do without these, to see what they are worth: {', '.join(PARTS)}")  # fmt: skip
    group.add("--random-seed", type=int, metavar="N", help="seed of everything random")


def _add_machine_options(group: _Group) -> None:
    group.add(
        "--device", metavar="{auto,cpu,cuda,cuda:N}", help="an absent device is an error, never a CPU run"
    )
    group.add("--gpu-ids", nargs="+", type=int, metavar="N", help="CUDA devices to share among the runs")
    group.add("--nprocs", "--n-cpus", dest="nprocs", type=int, metavar="N", help="CPUs in all (default: all)")
    group.add("--omp-nthreads", type=int, metavar="N", help="CPUs of one step (default: up to 8)")
    group.add(
        "--mem", "--mem-mb", dest="mem_mb", type=int, metavar="MB", help="memory in all (default: 90%%)"
    )
    group.switch("--low-mem", help="one run at a time, in smaller batches")
    group.add("--use-plugin", type=Path, metavar="FILE", help="Nipype plugin settings (YAML)")
    group.switch("--stop-on-first-crash", help="stop everything when one run fails")


def _add_run_options(group: _Group) -> None:
    group.add("-w", "--work-dir", type=Path, metavar="DIR", help="intermediate files, outside BIDS_DIR")
    group.add("--config-file", type=Path, metavar="FILE", help="TOML with any of these; command line wins")
    group.add("--output-layout", choices=("derivatives", "raw"), help="what OUT_DIR is")
    group.add("--output-dtype", choices=("float32", "float64"), help="data type of the denoised series")
    group.switch("--reports-only", help="write the reports of earlier results anew")
    group.switch("--boilerplate-only", help="write the methods text only")
    group.switch("--write-graph", help="write the workflow's graph too")
    group.switch("--dry-run", help="list what would be processed, with the memory and time to expect")
    group.switch("--clean-workdir", help="remove the intermediate files of each run that succeeded")
    group.switch("--sloppy", help="a few steps of a small network: to try things out, never for data")
    group.add("-v", "--verbose", action="count", help="more messages; -vv for debugging")
