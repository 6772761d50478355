"""What the tests of the reports share: runs as the application leaves them, and a reader of pages."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import numpy as np

from dwmri_bidsapp.gradients import Gradients

METRICS = {
    "b0_snr": 21.5,
    "residual_std": 0.98,
    "residual_edge_correlation": 0.01,
    "fa_mean_before": 0.31,
    "fa_mean_after": 0.22,
    "dti_kfold_error_before": 1.10,
    "dti_kfold_error_after": 1.02,
}
PREPARATION: dict[str, Any] = {
    "shape": [12, 14, 10, 10],
    "voxel_size_mm": [2.0, 2.0, 2.5],
    "n_b0": 2,
    "n_directions": 8,
    "shells": [{"b_value": 0.0, "n_volumes": 2}, {"b_value": 1000.0, "n_volumes": 8}],
    "warnings": [],
}
INFO: dict[str, Any] = {
    "device": "cpu",
    "steps": 400,
    "seconds": {"training": 61.0},
    "heldout_loss_start": 1.5,
    "heldout_loss_end": 1.1,
}
LOADING = {
    "script": ("src",), "img": ("src",), "iframe": ("src",), "embed": ("src",), "source": ("src",), "object": ("data",),
    "link": ("href",), "image": ("href", "xlink:href"), "use": ("href", "xlink:href"),
}  # fmt: skip


class Page(HTMLParser):
    """What a page loads, links to, names, and says."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.cells: list[list[str]] = []
        self.text = ""
        self._quiet = 0
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in LOADING.get(tag, ()):
                self.loads.append(value or "")
            if tag == "a" and name in ("href", "xlink:href"):
                self.links.append(value or "")
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th") and self.cells:
            self.cells[-1].append("")
        self._quiet += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._quiet -= tag in ("script", "style")
        if tag == "table":
            self.cells.append([])

    def handle_data(self, data: str) -> None:
        if not self._quiet:
            self.text += data
            if self.cells and self.cells[-1]:
                self.cells[-1][-1] += data


def write_run(
    out_dir: Path, label: str, metrics: dict[str, Any] | None = None, method: str = "denoised", **parts: Any
) -> Path:
    """Write what a finished run leaves for the reports."""
    entities = dict(part.split("-") for part in label.split("_"))
    folder = out_dir / f"sub-{entities['sub']}"
    folder = folder / f"ses-{entities['ses']}" / "dwi" if "ses" in entities else folder / "dwi"
    folder.mkdir(parents=True, exist_ok=True)
    content = {"metrics": METRICS if metrics is None else metrics, "info": INFO, "preparation": PREPARATION,
               "sources": {"dwi": f"bids:raw:{label}_dwi.nii.gz"}, "versions": {"torch": "2.13"}, **parts}  # fmt: skip
    path = folder / f"{label}_desc-{method}_metrics.json"
    path.write_text(json.dumps(content))
    (folder / f"{label}_desc-{method}_dwi.nii.gz").write_bytes(b"")
    return path


def make_arrays(seed: int = 0) -> SimpleNamespace:
    rng = np.random.default_rng(seed)
    bvecs = rng.standard_normal((10, 3))
    gradients = Gradients.from_arrays([0, 0] + [1000] * 8, bvecs / np.linalg.norm(bvecs, axis=1)[:, None])
    shape = (12, 14, 10)
    clean = np.where(gradients.b0, 400.0, 200.0) + rng.uniform(0, 100, (*shape, 1))
    noisy = clean + 10 * rng.standard_normal((*shape, 10))
    denoised = clean + 3 * rng.standard_normal((*shape, 10))
    mask = np.zeros(shape, dtype=bool)
    mask[2:-2, 2:-2, 2:-2] = True
    arrays = {
        name: array.astype(np.float32)
        for name, array in locals().items()
        if name in ("clean", "noisy", "denoised")
    }
    return SimpleNamespace(
        **arrays, gradients=gradients, mask=mask, sigma=np.full(shape, 10, dtype=np.float32)
    )


def check_self_contained(page: Page) -> None:
    assert [target for target in page.loads if not target.startswith(("data:", "#"))] == []
    assert "@import" not in page.source
    assert re.findall(r"url\((?![#'\"]?#|data:)[^)]*\)", page.source) == []
    assert re.findall(r"<[^>]*\son\w+=", page.source) == []


def check_links(page: Page, root: Path) -> None:
    for link in page.links:
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        assert not re.match(r"\w+:", target), link
        if target:
            assert (root / unquote(target)).exists(), link
        if anchor:
            there = page.ids if not target else Page(root / unquote(target)).ids
            assert unquote(anchor) in there, link


def data_of(page: Page) -> dict[str, Any]:
    """Return what the charts and the table of the group page are drawn from."""
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.source, flags=re.DOTALL
    )
    assert found is not None
    return dict(json.loads(found[1]))


def table_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a TSV file."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))
