"""True errors of simulated runs, where the noise-free series is known."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote, urlparse

import nibabel as nb
import numpy as np
from numpy.typing import NDArray

from ..errors import BadDataError, DwmriError
from ..images import IMAGE_ERRORS
from .collect import Problem, RunRecord


def true_errors(record: RunRecord, truth_dir: Path) -> tuple[dict[str, float], Problem | None]:
    """Measure a run before and after against the truth.

    Parameters
    ----------
    record
        A finished run; its acquired series is found through its sources.
    truth_dir
        Root of the derivatives that hold ``*_desc-truth_dwi.nii.gz``.

    Returns
    -------
    dict of str to float
        :func:`~dwmri_bidsapp.metrics.errors_against_truth` as ``true_<name>_before`` and ``_after``.
    Problem or None
        Why nothing could be measured.
    """
    # DIPY takes a second to import, and most groups have no truth.
    from ..metrics import errors_against_truth, fit_tensor

    folder = record.metrics_file.parent
    known = truth_dir / folder.relative_to(record.out_dir)
    denoised = folder / f"{record.label}_desc-{record.method}_dwi.nii.gz"
    try:
        truth = _load(known / f"{record.label}_desc-truth_dwi.nii.gz")
        mask = _load(known / f"{record.label}_desc-brain_mask.nii.gz") > 0
        after = _load(denoised)
        gradients = record.gradients(truth.shape[3])
        before = _load(_acquired(record))
        ideal = fit_tensor(truth, gradients, mask)
        errors = {
            f"true_{name}_{when}": value
            for when, estimate in (("before", before), ("after", after))
            for name, value in errors_against_truth(
                estimate, truth, gradients, mask, tensor_truth=ideal
            ).items()
        }
    except DwmriError as error:
        return {}, Problem(error.message, error.hint, record.label)
    return errors, None


def _load(path: Path) -> NDArray[np.float32]:
    try:
        return np.asarray(nb.load(path).dataobj, dtype=np.float32)
    except IMAGE_ERRORS as error:
        raise BadDataError(
            f"{path}: cannot be read: {error}", "give the folder that holds the truth"
        ) from error


def _acquired(record: RunRecord) -> Path:
    """Find the acquired series: a BIDS URI and the links of the dataset's description."""
    uri = str(record.sources.get("dwi", ""))
    if uri.startswith("file:"):
        return Path(unquote(urlparse(uri).path))
    _, _, rest = uri.partition("bids:")
    name, _, relative = rest.partition(":")
    try:
        description = json.loads((record.out_dir / "dataset_description.json").read_text(encoding="utf-8"))
        root = Path(unquote(urlparse(description["DatasetLinks"][name]).path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadDataError(
            f"{record.metrics_file}: expected the source of the run, found {uri!r} and no such dataset link",
            "keep dataset_description.json of OUT_DIR as it was written",
        ) from error
    return root / relative
