"""The pages load nothing, show everything, hide no failure, and the tables hold the runs' own numbers."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import nibabel as nb
import numpy as np
import pytest
from scipy import stats

from dwmri_bidsapp.errors import BadDataError, InputOutputError
from dwmri_bidsapp.figures import make_run_figures
from dwmri_bidsapp.gradients import Gradients
from dwmri_bidsapp.metrics import errors_against_truth, fit_tensor, no_reference_metrics
from dwmri_bidsapp.reports import write_group_report, write_subject_report
from dwmri_bidsapp.reports.captions import caption_of
from dwmri_bidsapp.reports.collect import RunRecord, find_records
from dwmri_bidsapp.reports.comparison import compare, comparison_chart
from dwmri_bidsapp.reports.glossary import describe, describe_column, metric_rows
from dwmri_bidsapp.reports.judge import findings_of
from dwmri_bidsapp.reports.render import number, seconds

METRICS = {
    "b0_snr": 21.5,
    "residual_std": 0.98,
    "residual_edge_correlation": 0.01,
    "fa_mean_before": 0.31,
    "fa_mean_after": 0.22,
    "dti_kfold_error_before": 1.10,
    "dti_kfold_error_after": 1.02,
}
PREPARATION = {
    "shape": [12, 14, 10, 10],
    "voxel_size_mm": [2.0, 2.0, 2.5],
    "n_b0": 2,
    "n_directions": 8,
    "shells": [{"b_value": 0.0, "n_volumes": 2}, {"b_value": 1000.0, "n_volumes": 8}],
    "warnings": [],
}
INFO = {
    "device": "cpu",
    "steps": 400,
    "seconds": {"training": 61.0},
    "heldout_loss_start": 1.5,
    "heldout_loss_end": 1.1,
}
CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
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


def write_run(out_dir: Path, label: str, metrics: dict[str, Any] | None = None, **parts: Any) -> Path:
    """Write what a finished run leaves for the reports."""
    entities = dict(part.split("-") for part in label.split("_"))
    folder = out_dir / f"sub-{entities['sub']}"
    folder = folder / f"ses-{entities['ses']}" / "dwi" if "ses" in entities else folder / "dwi"
    folder.mkdir(parents=True, exist_ok=True)
    content = {"metrics": METRICS if metrics is None else metrics, "info": INFO, "preparation": PREPARATION,
               "sources": {"dwi": f"bids:raw:{label}_dwi.nii.gz"}, "versions": {"torch": "2.13"}, **parts}  # fmt: skip
    path = folder / f"{label}_desc-denoised_metrics.json"
    path.write_text(json.dumps(content))
    (folder / f"{label}_desc-denoised_dwi.nii.gz").write_bytes(b"")
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


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real figures of one small run."""
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
    out = tmp_path / "out put"
    for label in ("sub-01_run-1", "sub-01_run-2"):
        write_run(out, label)
        (out / "sub-01" / "figures").mkdir(exist_ok=True)
        for figure in figures:
            shutil.copy(figure, out / "sub-01" / "figures" / figure.name.replace("RUN", label))
    write_run(out, "sub-02_ses-a", {**METRICS, "fa_mean_before": 0.35, "b0_snr": 11.0})
    return out


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


def record_with(tmp_path: Path, **parts: Any) -> RunRecord:
    write_run(tmp_path, "sub-01", **parts)
    return find_records(tmp_path, "01")[0][0]


def test_subject_page_is_self_contained_and_its_links_lead_somewhere(out_dir: Path) -> None:
    write_subject_report(out_dir, "01")
    write_group_report(out_dir)
    path = write_subject_report(out_dir, "sub-01")
    page = Page(path)

    assert path == out_dir / "sub-01.html"
    check_self_contained(page)
    check_links(page, out_dir)
    assert len(page.ids) == len(set(page.ids))
    assert "group.html" in page.links
    assert "sub-01/dwi/sub-01_run-1_desc-denoised_dwi.nii.gz" in page.links


def test_subject_page_shows_every_figure_of_every_run_with_a_caption(
    out_dir: Path, figures: list[Path]
) -> None:
    page = Page(write_subject_report(out_dir, "01"))

    assert page.tags.count("svg") >= 2 * len(figures)
    for label in ("sub-01_run-1", "sub-01_run-2"):
        for figure in figures:
            name = figure.name.removeprefix("RUN_desc-").removesuffix("_dwi.svg")
            assert f"{label}-{name}" in page.ids
            found = caption_of(name)
            assert found is not None, f"the figure {name} has no caption"
            assert found[1] in page.text
            assert found[0].good in page.text
            assert found[0].bad in page.text


def test_a_figure_is_as_wide_as_the_page(out_dir: Path) -> None:
    source = Page(write_subject_report(out_dir, "01")).source

    for head in re.findall(r"<svg[^>]*>", source):
        assert "viewBox=" in head
        assert " width=" not in head


def test_a_page_that_would_grow_too_large_links_to_the_figures_of_later_runs(
    out_dir: Path, figures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(figure.stat().st_size for figure in figures)
    monkeypatch.setattr("dwmri_bidsapp.reports.subject._PAGE_BYTES", int(1.5 * size))

    path = write_subject_report(out_dir, "01")
    page = Page(path)

    assert len(figures) < page.tags.count("svg") < 2 * len(figures)
    assert path.stat().st_size < 1.7 * size
    linked = [link for link in page.links if link.endswith("_dwi.svg")]
    assert linked
    assert all("sub-01_run-2" in link for link in linked)
    check_links(page, out_dir)


def test_measures_of_the_page_are_those_of_the_file(out_dir: Path) -> None:
    page = Page(write_subject_report(out_dir, "02"))
    rows = {row[0].split("\n")[0]: row[2:4] for row in page.cells if len(row) >= 4}

    assert next(v for k, v in rows.items() if k.startswith("Mean FA")) == ["0.35", "0.22"]
    assert next(v for k, v in rows.items() if k.startswith("b=0 signal-to-noise"))[0] == "11"
    assert next(v for k, v in rows.items() if k.startswith("Error on held-out"))[1] == "1.02"


def test_warnings_come_with_advice_and_cannot_inject_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> & only 7 distinct directions"
    write_run(
        tmp_path, "sub-01", preparation={**PREPARATION, "warnings": [evil]}, info={**INFO, "warnings": [evil]}
    )

    page = Page(write_subject_report(tmp_path, "01"))

    assert page.text.count(evil) == 3, "once on top, twice among everything that was recorded"
    assert page.tags.count("script") == 1
    assert "What to do: compare colour FA" in page.text


def test_no_warning_is_said(tmp_path: Path) -> None:
    write_run(tmp_path, "sub-01")

    assert "No warnings." in Page(write_subject_report(tmp_path, "01")).text


def test_failed_runs_are_listed_now_and_by_the_group_level_later(out_dir: Path) -> None:
    error = BadDataError(
        "/in/sub-02/ses-b/dwi/sub-02_ses-b_dwi.nii.gz: expected 4D, found 3D", "leave this <file> out"
    )
    outcome = SimpleNamespace(run=SimpleNamespace(label="sub-02_ses-c"), error="out of memory", exit_code=75)
    fine = SimpleNamespace(run=SimpleNamespace(label="sub-02_ses-a"), error=None, exit_code=0)

    page = Page(write_subject_report(out_dir, "02", [error, outcome, fine, "a plain text"]))
    again = Page(write_subject_report(out_dir, "02"))
    write_subject_report(out_dir, "01")
    group = Page(write_group_report(out_dir))

    for text in (page.text, again.text):
        assert "Failed: sub-02_ses-b" in text
        assert "expected 4D, found 3D" in text
        assert "What to do: leave this <file> out" in text
        assert "Failed: sub-02_ses-c" in text
        assert "a plain text" in text
        assert "3 problems" in text
    assert "sub-02_ses-b" in group.text
    assert "out of memory" in group.text
    assert "3 problems" in group.text
    assert Page(write_subject_report(out_dir, "02", [])).text.count("Failed") == 0


def test_a_failure_is_forgotten_once_the_run_is_finished(tmp_path: Path) -> None:
    write_run(tmp_path, "sub-01_run-1")
    write_subject_report(
        tmp_path, "01", [SimpleNamespace(run=SimpleNamespace(label="sub-01_run-2"), error="killed")]
    )
    assert "killed" in Page(write_subject_report(tmp_path, "01")).text

    finished = write_run(tmp_path, "sub-01_run-2")
    later = (tmp_path / "sub-01" / "log" / "problems.json").stat().st_mtime + 5
    os.utime(finished, (later, later))

    assert "killed" not in Page(write_subject_report(tmp_path, "01")).text
    assert "killed" not in Page(write_group_report(tmp_path)).text


def test_a_participant_without_any_run_gets_a_page_that_says_so(tmp_path: Path) -> None:
    page = Page(write_subject_report(tmp_path, "07", [BadDataError("sub-07: no DWI image")]))

    assert "sub-07: no DWI image" in page.text
    check_self_contained(page)


def test_a_damaged_metrics_file_stops_neither_page_nor_table(out_dir: Path) -> None:
    (out_dir / "sub-01" / "dwi" / "sub-01_run-2_desc-denoised_metrics.json").write_text('{"metrics": ')
    write_run(out_dir, "sub-03").write_text("[]")

    subject = Page(write_subject_report(out_dir, "01"))
    group = Page(write_group_report(out_dir))

    assert "sub-01_run-2_desc-denoised_metrics.json cannot be read" in subject.text
    assert "sub-01_run-2_desc-denoised_metrics.json cannot be read" in group.text
    assert "sub-03_desc-denoised_metrics.json cannot be read" in group.text
    assert "2 finished runs" in group.text


def test_files_of_one_run_are_not_taken_for_those_of_another(tmp_path: Path) -> None:
    write_run(tmp_path, "sub-01")
    write_run(tmp_path, "sub-01_run-1")

    records, _ = find_records(tmp_path, "01")
    names = {record.label: [path.name for path in record.files()] for record in records}

    assert names["sub-01"] == ["sub-01_desc-denoised_dwi.nii.gz", "sub-01_desc-denoised_metrics.json"]


def test_logs_and_crash_files_of_the_latest_call_are_linked(tmp_path: Path) -> None:
    write_run(tmp_path, "sub-01")
    for call in ("20250101-120000_a", "20250102-120000_b"):
        (tmp_path / "sub-01" / "log" / call).mkdir(parents=True)
        (tmp_path / "sub-01" / "log" / call / "crash-#1.txt").write_text("x")
    (tmp_path / "sub-01" / "log" / "20250102-120000_b" / "provenance.json").write_text(
        '{"peak_memory_mb": 1530.0}'
    )

    page = Page(write_subject_report(tmp_path, "01", ["boom"]))

    check_links(page, tmp_path)
    assert "sub-01/log/20250102-120000_b/crash-%231.txt" in page.links
    assert not any("20250101" in link for link in page.links)
    assert "Peak memory: 1.53 GB" in page.text


def test_the_methods_text_of_the_call_is_shown_without_what_could_run_or_load(tmp_path: Path) -> None:
    write_run(tmp_path, "sub-01")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "CITATION.html").write_text(
        '<html><head><link href="http://x/y.css"><style>p{}</style></head><body><h1>Method</h1><script>1</script>'
        '<p>Data were denoised <a href="#k">(K, 2020)</a>.</p><ul><li id="k">K. <a href="https://doi.org/1">doi</a></li>'
        '</ul><img src="http://x/y.png"></body></html>'
    )

    page = Page(write_subject_report(tmp_path, "01"))

    assert "Data were denoised (K, 2020)." in page.text
    assert page.tags.count("script") == 1
    assert page.tags.count("h1") == 1
    assert "https://doi.org/1" in page.links
    check_self_contained(page)
    check_links(page, tmp_path)


@pytest.mark.parametrize(
    ("metrics", "info", "words"),
    [
        ({"residual_std": 1.2}, {}, "More than noise was taken away"),
        ({"residual_std": 0.3}, {}, "Little noise was taken away"),
        ({"residual_edge_correlation": 0.09}, {}, "follows anatomy"),
        ({"mean_signal_b1000_before": 100.0, "mean_signal_b1000_after": 95.0}, {}, "b=1000 changed by -5.0%"),
        ({"edge_width_before": 2.0, "edge_width_after": 2.5}, {}, "Edges became wider"),
        ({}, {"heldout_loss_end": 1.6}, "did not lower the error"),
        ({}, {"warnings": ["the training diverged: …"]}, "diverged"),
    ],
)
def test_numbers_that_should_worry_a_user_are_said_with_a_way_out(
    tmp_path: Path, metrics: dict[str, float], info: dict[str, Any], words: str
) -> None:
    findings = findings_of(record_with(tmp_path, metrics=METRICS | metrics, info=INFO | info))

    assert len(findings) == 1
    assert words in findings[0].text
    assert findings[0].advice


def test_good_numbers_worry_nobody(tmp_path: Path) -> None:
    good = {**METRICS, "mean_signal_b0_before": 100.0, "mean_signal_b0_after": 100.4, "edge_width_before": 2.0,
            "edge_width_after": 2.05}  # fmt: skip

    assert findings_of(record_with(tmp_path, metrics=good)) == []


def test_training_that_was_cut_short_is_noticed(tmp_path: Path) -> None:
    record = record_with(tmp_path, info={**INFO, "stop_reason": "max-steps"})
    path = record.metrics_file.with_name("sub-01_desc-training_timeseries.tsv")
    falling, level = (2.0, 1.8, 1.6, 1.4, 1.2, 1.0), (2.0, 1.2, 1.12, 1.11, 1.11, 1.11)
    said = []
    for losses in (falling, level):
        path.write_text(
            "step\theldout_loss\n" + "".join(f"{i}\t{loss}\n" for i, loss in enumerate(losses)) + "9\tn/a\n"
        )
        said.append([finding.advice for finding in findings_of(record)])

    assert said == [["give it more --max-steps"], []]


def test_every_measure_of_this_package_is_in_the_dictionary() -> None:
    run = make_arrays()
    names = no_reference_metrics(run.noisy, run.denoised, run.sigma, run.mask, run.gradients)
    true = errors_against_truth(run.denoised, run.clean, run.gradients, run.mask)

    for name in [*names, *(f"true_{name}_{when}" for name in true for when in ("before", "after"))]:
        entry = describe_column(name)
        assert entry["Description"], name
        assert "{" not in entry["LongName"]


def test_an_unknown_measure_is_spelled_out() -> None:
    assert describe("some_new_measure").label == "Some new measure"
    assert describe("mean_signal_b2500").label == "Mean signal, b=2500"
    rows = metric_rows({"mean_signal_b1000": 9.0, "mean_signal_b700": 8.0})
    assert [row.name for row in rows] == ["mean_signal_b700", "mean_signal_b1000"]
    rows = metric_rows({"zzz": 1.0, "b0_snr": 2.0, "fa_mean_before": 3.0, "fa_mean_after": 4.0})
    assert [(row.name, row.before, row.after) for row in rows] == [
        ("b0_snr", None, 2.0), ("fa_mean", 3.0, 4.0), ("zzz", None, 1.0)
    ]  # fmt: skip


def test_group_table_holds_the_numbers_of_the_files(out_dir: Path) -> None:
    write_run(out_dir, "sub-03_acq-hi_dir-AP", {"b0_snr": 1 / 3, "fa_mean_before": float("nan"), "count": 7})
    write_group_report(out_dir)

    with (out_dir / "group_dwi.tsv").open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    dictionary = json.loads((out_dir / "group_dwi.json").read_text())

    assert [row["participant_id"] for row in rows] == ["sub-01", "sub-01", "sub-02", "sub-03"]
    assert [row["run"] for row in rows] == ["1", "2", "n/a", "n/a"]
    assert [row["session_id"] for row in rows] == ["n/a", "n/a", "ses-a", "n/a"]
    assert rows[3]["acquisition"] == "hi"
    assert rows[3]["direction"] == "AP"
    for row, label in zip(
        rows, ("sub-01_run-1", "sub-01_run-2", "sub-02_ses-a", "sub-03_acq-hi_dir-AP"), strict=True
    ):
        path = next(out_dir.glob(f"**/{label}_desc-denoised_metrics.json"))
        for name, value in json.loads(path.read_text())["metrics"].items():
            assert row[name] == "n/a" if value != value else float(row[name]) == value
    assert rows[3]["residual_std"] == "n/a"
    assert set(dictionary) == set(rows[0])
    assert all(entry["Description"] for name, entry in dictionary.items() if name != "count")
    assert dictionary["dti_kfold_error_after"]["Units"] == "σ"


def test_group_page_is_self_contained_and_every_run_leads_to_its_place(out_dir: Path) -> None:
    for subject in ("01", "02"):
        write_subject_report(out_dir, subject)
    page = Page(write_group_report(out_dir))

    check_self_contained(page)
    check_links(page, out_dir)
    assert len(page.ids) == len(set(page.ids))
    points = [link for link in page.links if link.startswith("sub-01.html#sub-01_run-2")]
    assert len(points) == 3, "one in the table, one in each of the two panels"
    assert page.source.count("<title>sub-01_run-2</title>") == 2


def test_group_page_lists_what_is_missing_and_what_differs(out_dir: Path) -> None:
    (out_dir / "sub-09").mkdir()
    write_run(out_dir, "sub-04", preparation={**PREPARATION, "voxel_size_mm": [1.5, 1.5, 1.5]})
    for subject in ("01", "02", "04"):
        write_subject_report(out_dir, subject)
    page = Page(write_group_report(out_dir))

    assert "Missing sub-09" in " ".join(page.text.split())
    assert "4 participants, 4 finished runs, 1 problem" in page.text
    assert "2 kinds of acquisition" in page.text
    assert "1.5 × 1.5 × 1.5 mm" in page.text
    check_links(page, out_dir)


def test_group_level_of_an_empty_folder_says_so(tmp_path: Path) -> None:
    page = Page(write_group_report(tmp_path))

    assert "No finished run." in page.text
    assert (tmp_path / "group_dwi.tsv").read_text() == "participant_id\tmethod\n"


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(3)
    pairs = rng.normal([0.3, 0.2], 0.02, (12, 2))
    tables: list[dict[str, Any]] = [
        {"dti_kfold_error_before": b, "dti_kfold_error_after": a} for b, a in pairs
    ]
    tables.append({"dti_kfold_error_before": 0.3})

    (line,) = compare(tables)

    expected = stats.ttest_rel(pairs[:, 1], pairs[:, 0]).confidence_interval(0.95)
    assert line.n == 12
    assert line.interval == f"{number(float(expected.low))} to {number(float(expected.high))}"
    difference = pairs[:, 1] - pairs[:, 0]
    assert line.effect == pytest.approx(difference.mean() / difference.std(ddof=1))
    assert line.improved == f"{(difference < 0).sum()} of 12"


def test_each_point_leads_to_its_own_run_even_when_others_lack_the_measure() -> None:
    tables = [
        {},
        {"fa_mean_before": 0.1, "fa_mean_after": 0.1},
        {"fa_mean_before": 0.3, "fa_mean_after": 0.2},
    ]
    drawn = comparison_chart(compare(tables), [("A", "a.html"), ("B", "b.html"), ("C", "c.html")])

    points = re.findall(
        r'<a href="(\w).html"[^>]*><title>(\w)</title>.*?x="([\d.]+)"', drawn, flags=re.DOTALL
    )
    assert [(page, label) for page, label, _ in points] == [("b", "B"), ("c", "C")]
    assert float(points[0][2]) < float(points[1][2])


def test_a_single_run_has_no_interval() -> None:
    (line,) = compare([{"fa_mean_before": 0.3, "fa_mean_after": 0.2}])

    assert (line.n, line.interval, line.effect, line.improved) == (1, "", None, "")


def test_true_errors_are_measured_on_the_files(tmp_path: Path) -> None:
    run, out, raw, truth = make_arrays(), tmp_path / "out", tmp_path / "raw data", tmp_path / "truth"
    for label in ("sub-01", "sub-02"):
        write_run(out, label, sources={"dwi": f"bids:raw:{label}/dwi/{label}_dwi.nii.gz"})
    (out / "dataset_description.json").write_text(json.dumps({"DatasetLinks": {"raw": raw.as_uri()}}))
    images = {
        raw / "sub-01/dwi/sub-01_dwi.nii.gz": run.noisy,
        out / "sub-01/dwi/sub-01_desc-denoised_dwi.nii.gz": run.denoised,
        truth / "sub-01/dwi/sub-01_desc-truth_dwi.nii.gz": run.clean,
        truth / "sub-01/dwi/sub-01_desc-brain_mask.nii.gz": run.mask.astype(np.uint8),
    }
    for path, array in images.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        nb.save(nb.Nifti1Image(array, np.diag([-2.0, 2, 2, 1])), path)
    np.savetxt(out / "sub-01/dwi/sub-01_desc-denoised_dwi.bval", run.gradients.bvals[None])
    np.savetxt(out / "sub-01/dwi/sub-01_desc-denoised_dwi.bvec", run.gradients.bvecs.T)

    page = Page(write_group_report(out, truth_dir=truth))

    with (out / "group_dwi.tsv").open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    for when, estimate in (("before", run.noisy), ("after", run.denoised)):
        for name, value in errors_against_truth(estimate, run.clean, run.gradients, run.mask).items():
            found = rows[0][f"true_{name}_{when}"]
            assert found == "n/a" if value != value else float(found) == pytest.approx(value, rel=1e-5), name
    assert float(rows[0]["true_psnr_dwi_after"]) > float(rows[0]["true_psnr_dwi_before"]) + 5
    assert rows[1]["true_psnr_dwi_after"] == "n/a"
    assert "True PSNR, DWI" in page.text
    assert "Not compared with the truth" in page.text
    assert "sub-02_desc-truth_dwi.nii.gz" in page.text


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, "sub-01")
    (tmp_path / "group.html").mkdir()

    with pytest.raises(InputOutputError, match=r"group\.html"):
        write_group_report(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123456, "0.123"), (-0.5, "−0.5"), (1234.5, "1,234"), (7, "7"), (2.0, "2"), (1.5e-5, "1.5·10⁻⁵"), (None, ""),
     (float("nan"), ""), (123456, "123,456"), ("text", "text")],
)  # fmt: skip
def test_numbers_for_readers(value: Any, text: str) -> None:
    assert number(value) == text


def test_durations_for_readers() -> None:
    assert [seconds(value) for value in (4.26, 61.2, 3725, None)] == ["4.26 s", "1 min 1 s", "1 h 2 min", ""]


PROBE = """
<script>
window.addEventListener("load", () => {
  const seen = {loaded: performance.getEntriesByType("resource").map((entry) => entry.name)};
  const figure = document.querySelector("figure.flicker");
  if (figure) {
    const [before, after] = figure.querySelectorAll(".controls button");
    const top = figure.querySelector(".foreground-svg");
    const look = () => [figure.dataset.shown, getComputedStyle(top).visibility, before.ariaPressed, after.ariaPressed];
    seen.start = look();
    before.click();
    seen.before = look();
    figure.querySelector("svg").dispatchEvent(new MouseEvent("click"));
    seen.clicked = look();
    before.dispatchEvent(new KeyboardEvent("keydown", {key: "b", bubbles: true}));
    seen.key = look();
    seen.widths = [...document.querySelectorAll("figure svg")].map((svg) => svg.getBoundingClientRect().width);
    seen.page = document.documentElement.scrollWidth - window.innerWidth;
  }
  const table = document.querySelector("table.sortable");
  if (table) {
    const order = () => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[0].innerText);
    const heading = [...table.tHead.rows[0].cells].find((cell) => cell.innerText.startsWith("b=0 signal"));
    const button = heading.querySelector("button");
    button.click();
    seen.up = [order(), heading.ariaSort];
    button.click();
    seen.down = [order(), heading.ariaSort];
    const search = document.querySelector("input[type=search]");
    search.value = "SUB-01 run-2";
    search.dispatchEvent(new Event("input"));
    seen.found = [order(), document.getElementById("count-runs").innerText];
  }
  const result = document.createElement("script");
  result.type = "application/json";
  result.id = "seen";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
});
</script>
"""


def browse(path: Path, folder: Path) -> dict[str, Any]:
    """Open a copy of a page with a probe in a real browser; console messages are errors."""
    assert CHROMIUM is not None
    probed = path.with_name(f"probed-{path.name}")
    probed.write_text(
        path.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8"
    )
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--window-size=1200,900",
        "--virtual-time-budget=2000", "--dump-dom", probed.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    found = re.search(
        r'<script type="application/json" id="seen">(.*?)</script>', done.stdout, flags=re.DOTALL
    )
    assert found is not None, "the page's scripts did not run to their end"
    return dict(json.loads(found[1]))


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_subject_page_works_in_a_browser(out_dir: Path, tmp_path: Path) -> None:
    seen = browse(write_subject_report(out_dir, "01"), tmp_path)

    assert seen["loaded"] == []
    assert seen["start"] == ["after", "visible", "false", "true"]
    assert seen["before"] == ["before", "hidden", "true", "false"]
    assert seen["clicked"] == ["after", "visible", "false", "true"]
    assert seen["key"] == ["before", "hidden", "true", "false"]
    assert min(seen["widths"]) > 1000
    assert seen["page"] <= 0, "the page must not scroll sideways"


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_group_page_works_in_a_browser(out_dir: Path, tmp_path: Path) -> None:
    # Two negative numbers: as text they would be sorted the other way round.
    for label, metrics in {
        "sub-01_run-1": {"b0_snr": -2.0}, "sub-01_run-2": {"b0_snr": -5.0}, "sub-02_ses-a": {"b0_snr": 11.0},
        "sub-03": {"residual_std": 1.0},
    }.items():  # fmt: skip
        write_run(out_dir, label, metrics)
    for subject in ("01", "02", "03"):
        write_subject_report(out_dir, subject)

    seen = browse(write_group_report(out_dir), tmp_path)

    assert seen["loaded"] == []
    assert seen["up"] == [["sub-01_run-2", "sub-01_run-1", "sub-02_ses-a", "sub-03"], "ascending"]
    assert seen["down"][0][-1] == "sub-03", "what is missing stays last"
    assert seen["down"][0][0] == "sub-02_ses-a"
    assert seen["found"] == [["sub-01_run-2"], "1 of 4 runs"]
