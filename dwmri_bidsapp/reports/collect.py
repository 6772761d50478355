"""What OUT_DIR holds: finished runs, failed ones, and their files. The reports read nothing else."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..gradients import B0_THRESHOLD, Gradients, load_gradients
from .render import write_text

ENTITIES = {
    "sub": "participant_id",
    "ses": "session_id",
    "acq": "acquisition",
    "rec": "reconstruction",
    "dir": "direction",
    "run": "run",
    "part": "part",
    "chunk": "chunk",
}
"""BIDS entities of a run, and the columns of the group table that hold them."""

PROBLEMS_FILE = "problems.json"
_METRICS = "_metrics.json"
# in the name of the file that a message begins with, not in the hint
_RUN_IN_TEXT = re.compile(r"[^:]*?(sub-[A-Za-z0-9]+(?:_[a-z]+-[A-Za-z0-9]+)*)_dwi\.")


@dataclass(frozen=True)
class Problem:
    """Something that went wrong and kept a run from being finished.

    Attributes
    ----------
    message
        What happened.
    hint
        The way out; may be empty.
    run
        The run's label; empty when it concerns the participant.
    """

    message: str
    hint: str = ""
    run: str = ""

    @classmethod
    def of(cls, source: Any) -> Problem:
        """Make one from an error of this package, the outcome or the failure of a run, or a text."""
        if isinstance(source, cls):
            return source
        run = getattr(source, "run", "")
        run = getattr(run, "label", run)
        error = getattr(source, "error", None)
        if error is not None:
            source = error
        message = str(getattr(source, "message", source))
        named = _RUN_IN_TEXT.match(message)
        return cls(message, str(getattr(source, "hint", "")), run or (named[1] if named else ""))

    @classmethod
    def all_of(cls, sources: Iterable[Any]) -> list[Problem]:
        """Make one from each; outcomes of runs that went well are none."""
        return [cls.of(source) for source in sources if getattr(source, "error", source) is not None]


@dataclass(frozen=True)
class RunRecord:
    """One run with one method, as its files tell.

    Attributes
    ----------
    label
        ``sub-01_ses-test_run-1``.
    method
        The ``desc`` entity of its files: ``denoised``.
    entities
        Values with their prefixes by column of the group table: ``{"participant_id": "sub-01"}``.
    metrics
        Flat names and numbers.
    info, preparation, sources, versions
        The other parts of the metrics file.
    metrics_file
        Where that was read.
    """

    label: str
    method: str
    entities: dict[str, str]
    metrics: dict[str, Any]
    info: dict[str, Any]
    preparation: dict[str, Any]
    sources: dict[str, Any]
    versions: dict[str, Any]
    metrics_file: Path
    out_dir: Path = field(repr=False)

    @property
    def subject(self) -> str:
        """Label of the participant, without ``sub-``."""
        return self.entities["participant_id"].removeprefix("sub-")

    @property
    def warnings(self) -> list[str]:
        """Warnings of the preparation and of the denoising, each once."""
        found = [*self.preparation.get("warnings", ()), *self.info.get("warnings", ())]
        return list(dict.fromkeys(str(warning) for warning in found))

    def figures(self) -> dict[str, Path]:
        """Return the figure files by name."""
        folder = self.out_dir / f"sub-{self.subject}" / "figures"
        start = f"{self.label}_desc-"
        return {
            path.name.removeprefix(start).partition("_")[0]: path
            for path in sorted(folder.glob(f"{start}*_dwi.svg"))
        }

    def files(self) -> list[Path]:
        """Return the files of the run beside its metrics, those of other runs left out."""
        start = f"{self.label}_"
        return [
            path
            for path in sorted(self.metrics_file.parent.glob(f"{start}*"))
            if path.name.removeprefix(start).partition("-")[0] not in ENTITIES
        ]

    def metadata(self) -> dict[str, Any]:
        """Return the sidecar of the denoised series, which holds the metadata of the input; empty without one."""
        path = self.metrics_file.parent / f"{self.label}_desc-{self.method}_dwi.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def gradients(self, n_volumes: int) -> Gradients:
        """Read the gradient table with the threshold of b=0 that the run was denoised with.

        Raises
        ------
        BadDataError, InputOutputError
            As of :func:`~dwmri_bidsapp.gradients.load_gradients`.
        """
        stem = self.metrics_file.parent / f"{self.label}_desc-{self.method}_dwi"
        b0_threshold = self.preparation.get("b0_threshold", B0_THRESHOLD)
        return load_gradients(f"{stem}.bval", f"{stem}.bvec", n_volumes, b0_threshold)

    def history(self) -> list[dict[str, float]]:
        """Return the rows of the training time series; none when there was no training."""
        desc = "training" if self.method == "denoised" else self.method
        path = self.metrics_file.parent / f"{self.label}_desc-{desc}_timeseries.tsv"
        if not path.is_file():
            return []
        with path.open(encoding="utf-8", newline="") as stream:
            return [{k: _number(v) for k, v in row.items()} for row in csv.DictReader(stream, delimiter="\t")]


def find_subjects(out_dir: Path) -> list[str]:
    """Return the labels of the participants with a folder in OUT_DIR, without ``sub-``."""
    return sorted(path.name.removeprefix("sub-") for path in out_dir.glob("sub-*") if path.is_dir())


def find_records(out_dir: Path, subject: str) -> tuple[list[RunRecord], list[Problem]]:
    """Read the finished runs of one participant; files that cannot be read become problems."""
    records, problems = [], []
    folder = out_dir / f"sub-{subject}"
    for path in sorted([*folder.glob(f"dwi/*{_METRICS}"), *folder.glob(f"ses-*/dwi/*{_METRICS}")]):
        try:
            records.append(_read_record(path, out_dir))
        except (OSError, ValueError, TypeError) as error:
            label = path.name.partition("_desc-")[0]
            hint = "run this participant again: finished runs are not repeated"
            problems.append(Problem(f"{path.relative_to(out_dir)} cannot be read: {error}", hint, label))
    return records, problems


def save_problems(out_dir: Path, subject: str, problems: Iterable[Problem]) -> None:
    """Keep what went wrong, so that the group level and later reports know of it.

    Raises
    ------
    InputOutputError
        The file could not be written.
    """
    content = {"problems": [asdict(problem) for problem in problems]}
    write_text(_problems_path(out_dir, subject), json.dumps(content, indent=2) + "\n")


def read_problems(out_dir: Path, subject: str) -> list[Problem]:
    """Return what :func:`save_problems` kept."""
    path = _problems_path(out_dir, subject)
    if not path.is_file():
        return []
    try:
        return [Problem(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))["problems"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        return [Problem(f"{path.relative_to(out_dir)} cannot be read: {error}")]


def log_files(out_dir: Path, subject: str) -> list[Path]:
    """Return the files of the participant's latest call: configuration, provenance, crash files."""
    logs = sorted(path for path in (out_dir / f"sub-{subject}" / "log").glob("*") if path.is_dir())
    return sorted(path for path in logs[-1].iterdir() if path.is_file()) if logs else []


def read_provenance(files: Iterable[Path]) -> dict[str, Any]:
    """Return the content of provenance.json among the files of a call; nothing when it cannot be read."""
    for path in files:
        if path.name == "provenance.json":
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                # It only adds to the page: a call that was killed while writing has none.
                return {}
            return content if isinstance(content, dict) else {}
    return {}


def _problems_path(out_dir: Path, subject: str) -> Path:
    return out_dir / f"sub-{subject}" / "log" / PROBLEMS_FILE


def _read_record(path: Path, out_dir: Path) -> RunRecord:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, Mapping) or not isinstance(content.get("metrics"), Mapping):
        raise ValueError("expected an object with the key metrics")
    label, _, rest = path.name.partition("_desc-")
    entities = {}
    for part in label.split("_"):
        prefix, _, value = part.partition("-")
        if prefix in ENTITIES:
            entities[ENTITIES[prefix]] = f"{prefix}-{value}" if prefix in ("sub", "ses") else value
    parts = {
        key: dict(content.get(key) or {}) for key in ("metrics", "info", "preparation", "sources", "versions")
    }
    return RunRecord(
        label=label,
        method=rest.removesuffix(_METRICS),
        entities=entities,
        metrics_file=path,
        out_dir=out_dir,
        **parts,
    )


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
