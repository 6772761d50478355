"""Settings that must stand before anything heavy is imported, and keep the tests off the user's HOME."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

_HOME = Path(tempfile.mkdtemp(prefix="dwmri-tests-home-"))


def _isolate_environment(home: Path) -> None:
    # templateflow fills an empty home at import (11 s) and leaves one that holds a file alone.
    templateflow_home = home / "templateflow"
    templateflow_home.mkdir()
    (templateflow_home / "README").write_text("A stub: the tests use no templates.\n")
    for name in [name for name in os.environ if name.startswith("XDG_")]:
        del os.environ[name]
    os.environ.update(
        HOME=str(home),
        TEMPLATEFLOW_HOME=str(templateflow_home),
        MPLBACKEND="Agg",
        NO_ET="1",
        NIPYPE_NO_ET="1",
        OMP_NUM_THREADS="2",
        GOMP_SPINCOUNT="3000",
        TQDM_DISABLE="1",
    )


_isolate_environment(_HOME)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the temporary HOME."""
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def figures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real figures of one small run."""
    import numpy as np
    from report_helpers import make_arrays

    from dwmri_bidsapp.figures import make_run_figures
    from dwmri_bidsapp.metrics import fit_tensor

    run = make_arrays()
    maps = fit_tensor(run.noisy, run.gradients, run.mask)
    drawn = make_run_figures(
        run.noisy, run.denoised, run.sigma, run.mask, run.gradients, np.diag([-2.0, 2, 2, 1]),
        history=[{"step": 10, "heldout_loss": 1.1, "training_loss": 1.2, "learning_rate": 1e-3}],
        tensors_before=maps, tensors_after=maps, uncertainty_xyz=run.sigma,
        out_dir=tmp_path_factory.mktemp("figures"), prefix="RUN",
    )  # fmt: skip
    return list(drawn.values())


@pytest.fixture
def out_dir(tmp_path: Path, figures: list[Path]) -> Path:
    """Two participants: one with two runs and figures, one with a session."""
    from report_helpers import METRICS, write_run

    out = tmp_path / "out put"
    for label in ("sub-01_run-1", "sub-01_run-2"):
        write_run(out, label)
        (out / "sub-01" / "figures").mkdir(exist_ok=True)
        for figure in figures:
            shutil.copy(figure, out / "sub-01" / "figures" / figure.name.replace("RUN", label))
    write_run(out, "sub-02_ses-a", {**METRICS, "fa_mean_before": 0.35, "b0_snr": 11.0})
    return out
