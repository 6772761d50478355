"""Figures of images that are stored, or masked, in an unusual way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from report_helpers import make_arrays

from dwmri_bidsapp.figures import charts, make_method_figures, make_run_figures
from dwmri_bidsapp.figures.slices import plan_slices
from dwmri_bidsapp.figures.statistics import RunStatistics
from dwmri_bidsapp.gradients import Gradients
from dwmri_bidsapp.metrics import fit_tensor


@pytest.mark.parametrize("sign", [1, -1])
def test_the_carpet_begins_at_the_feet_of_images_that_begin_at_the_head_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: int
) -> None:
    run, seen = make_arrays(), []
    height = np.arange(10.0)[::sign, None].astype(np.float32)  # of each slice above the feet
    chart = charts.carpet_chart

    def noted(found: RunStatistics, gradients: Gradients) -> Figure:
        seen.append(found)
        return chart(found, gradients)

    monkeypatch.setattr(charts, "carpet_chart", noted)
    make_run_figures(
        run.noisy * 0 + height, run.noisy * 0, run.sigma, run.mask, run.gradients,
        np.diag([sign * 2.0, sign * 2.0, sign * 2.0, 1.0]), out_dir=tmp_path, prefix="sub-01",
    )  # fmt: skip
    (found,) = seen
    assert (np.diff(found.carpet[:, 0]) >= 0).all()
    assert found.carpet[0, 0] < found.carpet[-1, 0]


def test_a_mask_of_two_slabs_gets_no_slice_from_between_them(tmp_path: Path) -> None:
    run, affine = make_arrays(), np.diag([-2.0, 2, 2, 1])
    run.mask[:, :, 4:6] = False
    maps = fit_tensor(run.noisy, run.gradients, run.mask)
    drawn = make_method_figures(
        run.noisy, {"denoised": run.denoised}, run.sigma, run.mask, run.gradients, affine,
        tensors={"acquired": maps, "denoised": maps}, histories={}, out_dir=tmp_path, prefix="sub-01",
    )  # fmt: skip
    assert {"methodsB0", "methodsB1000", "methodsTensor"} == set(drawn)
    assert run.mask[:, :, plan_slices(run.mask, affine).indices["axial"]].any(axis=(0, 1)).all()
