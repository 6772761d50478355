"""Carpets run from feet to head, however the image is stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report_helpers import make_arrays

from dwmri_bidsapp.figures import charts, make_run_figures


@pytest.mark.parametrize("sign", [1, -1])
def test_the_carpet_begins_at_the_feet_of_images_that_begin_at_the_head_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: int
) -> None:
    run, seen = make_arrays(), []
    height = np.arange(10.0)[::sign, None].astype(np.float32)  # of each slice above the feet
    chart = charts.carpet_chart
    monkeypatch.setattr(
        charts, "carpet_chart", lambda found, *rest: seen.append(found) or chart(found, *rest)
    )
    make_run_figures(
        run.noisy * 0 + height, run.noisy * 0, run.sigma, run.mask, run.gradients,
        np.diag([sign * 2.0, sign * 2.0, sign * 2.0, 1.0]), out_dir=tmp_path, prefix="sub-01",
    )  # fmt: skip
    (found,) = seen
    assert (np.diff(found.carpet[:, 0]) >= 0).all()
    assert found.carpet[0, 0] < found.carpet[-1, 0]
