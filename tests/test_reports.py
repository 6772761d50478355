"""The pages load nothing, show everything, hide no failure, and the tables hold the runs' own numbers."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nb
import numpy as np
import pytest
from report_helpers import (
    INFO,
    METRICS,
    PREPARATION,
    Page,
    check_links,
    check_self_contained,
    make_arrays,
    write_run,
)

from dwmri_bidsapp.errors import BadDataError
from dwmri_bidsapp.figures import make_method_figures
from dwmri_bidsapp.interfaces import WriteReport
from dwmri_bidsapp.metrics import errors_against_truth, fit_tensor, no_reference_metrics
from dwmri_bidsapp.reports import write_group_report, write_subject_report
from dwmri_bidsapp.reports.acquisition import metadata_findings, metadata_rows, sphere_data
from dwmri_bidsapp.reports.captions import caption_of
from dwmri_bidsapp.reports.collect import Problem, RunRecord, find_records
from dwmri_bidsapp.reports.glossary import describe, describe_column, metric_rows, shell_of
from dwmri_bidsapp.reports.judge import findings_of
from dwmri_bidsapp.reports.render import number, seconds


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


def test_figures_that_the_latest_call_of_a_run_did_not_draw_are_gone(
    out_dir: Path, figures: list[Path]
) -> None:
    folder = out_dir / "sub-01" / "figures"
    names = sorted(figure.name.removeprefix("RUN_") for figure in figures)
    drawn = [folder / f"sub-01_run-1_{name}" for name in names[1:]]
    old = names[0].removeprefix("desc-").removesuffix("_dwi.svg")

    made = WriteReport(in_files=drawn, out_dir=str(out_dir), subject="01", run="sub-01_run-1").run(
        cwd=str(out_dir)
    )

    page = Page(Path(made.outputs.out_file))
    assert f"sub-01_run-1-{old}" not in page.ids
    assert f"sub-01_run-2-{old}" in page.ids, "another run was not processed again"
    assert sorted(folder.glob("sub-01_run-1_*")) == drawn


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
    assert page.tags.count("script") == 2
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
    other = Page(write_subject_report(out_dir, "02", [], others=["sub-02_ses-c"])).text
    assert "Failed: sub-02_ses-c" in other, "a call for another run says nothing of this one"
    assert "sub-02_ses-b" not in other
    assert "a plain text" not in other
    asked = str(BadDataError("/in/sub-02: no DWI image with session z", "there are: sub-02_ses-d_dwi.nii.gz"))
    assert Problem.of(asked).run == "", "the hint is not about the run that it names"
    assert Page(write_subject_report(out_dir, "02", [])).text.count("Failed") == 0


@pytest.mark.parametrize("seconds_later", [-5, 5])
def test_a_failure_is_forgotten_once_the_run_is_finished(tmp_path: Path, seconds_later: int) -> None:
    """Whatever the times of the files: clocks differ, and copies are as old as the copying."""
    write_run(tmp_path, "sub-01_run-1")
    failed = [
        SimpleNamespace(run=SimpleNamespace(label=f"sub-01_run-{run}"), error=f"killed {run}")
        for run in (2, 3)
    ]
    write_subject_report(tmp_path, "01", failed)

    finished = write_run(tmp_path, "sub-01_run-2")  # of an earlier call, for all that is known
    time = (tmp_path / "sub-01" / "log" / "problems.json").stat().st_mtime + seconds_later
    os.utime(finished, (time, time))
    assert "killed 2" in Page(write_subject_report(tmp_path, "01")).text

    node = WriteReport(in_files=[finished], out_dir=str(tmp_path), subject="01", run="sub-01_run-2")
    assert "killed 2" not in Page(Path(node.run(cwd=str(tmp_path)).outputs.out_file)).text
    group = Page(write_group_report(tmp_path)).text
    assert "killed 2" not in group
    assert "killed 3" in group


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
    assert page.tags.count("script") == 2
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
        (
            {},
            {"heldout_loss_end": 1.6},
            "did not lower the error on held-out voxels: the initial weights were used",
        ),
        ({}, {"warnings": ["the training diverged: …"]}, "diverged"),
        ({"fd_mean": 0.2, "fd_max": 1.4}, {}, "The head moved"),
        ({"fd_mean": 0.6, "fd_max": 0.9}, {}, "The head moved"),
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
            "edge_width_after": 2.05, "fd_mean": 0.2, "fd_max": 0.8}  # fmt: skip

    assert findings_of(record_with(tmp_path, metrics=good)) == []


def test_training_that_was_cut_short_is_noticed(tmp_path: Path) -> None:
    falling, level = (2.0, 1.8, 1.6, 1.4, 1.2, 1.0), (2.0, 1.2, 1.12, 1.11, 1.11, 1.11)
    # from shipped weights, as of a phantom of 288 volumes: small, and the rate has decayed
    from_weights = (1.0146, 1.0069, 1.0060, 1.0053, 1.0053)
    said = []
    for losses in (falling, level, from_weights):
        ends = {"heldout_loss_start": losses[0], "heldout_loss_end": losses[-1]}
        record = record_with(tmp_path, info={**INFO, "stop_reason": "max-steps", **ends})
        path = record.metrics_file.with_name("sub-01_desc-training_timeseries.tsv")
        path.write_text(
            "step\theldout_loss\n" + "".join(f"{i}\t{loss}\n" for i, loss in enumerate(losses)) + "9\tn/a\n"
        )
        said.append([finding.advice for finding in findings_of(record)])

    assert said == [["give it more --max-steps"], [], []]


def test_every_measure_of_this_package_is_in_the_dictionary() -> None:
    run = make_arrays()
    names = no_reference_metrics(run.noisy, run.denoised, run.sigma, run.mask, run.gradients)
    true = errors_against_truth(run.denoised, run.clean, run.gradients, run.mask)

    for name in [
        *names,
        "fd_mean",
        "fd_max",
        *(f"true_{name}_{when}" for name in true for when in ("before", "after")),
    ]:
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


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123456, "0.123"), (-0.5, "−0.5"), (1234.5, "1,234"), (7, "7"), (2.0, "2"), (1.5e-5, "1.5·10⁻⁵"), (None, ""),
     (float("nan"), ""), (123456, "123,456"), ("text", "text")],
)  # fmt: skip
def test_numbers_for_readers(value: Any, text: str) -> None:
    assert number(value) == text


def test_durations_for_readers() -> None:
    assert [seconds(value) for value in (4.26, 61.2, 3725, None)] == ["4.26 s", "1 min 1 s", "1 h 2 min", ""]


def test_other_methods_stand_beside_the_run_and_have_no_section_of_their_own(
    out_dir: Path, tmp_path: Path
) -> None:
    run = make_arrays()
    maps = fit_tensor(run.noisy, run.gradients, run.mask)
    drawn = make_method_figures(
        run.noisy, {"denoised": run.denoised, "mppca": run.noisy}, run.sigma, run.mask, run.gradients,
        np.diag([-2.0, 2, 2, 1]), tensors={"acquired": maps, "denoised": maps, "mppca": maps},
        histories={"denoised": [{"step": 10, "heldout_loss": 1.1}]},
        out_dir=out_dir / "sub-01/figures", prefix="sub-01_run-1",
    )  # fmt: skip
    assert {"methodsB0", "methodsB1000", "methodsTensor", "methodsTraining"} == set(drawn)
    write_run(out_dir, "sub-01_run-1", {**METRICS, "dti_kfold_error_after": 0.99}, method="mppca")
    page = Page(write_subject_report(out_dir, "01"))

    assert "sub-01_run-1_mppca" not in page.ids
    (row,) = (row for row in page.cells if row and row[0].startswith("Error on held-out") and len(row) == 6)
    assert row[2:5] == ["1.1", "1.02", "0.99"]
    assert page.text.count("mppca") >= 2
    (figure,) = (page.source[i:] for i in [page.source.index('id="sub-01_run-1-methodsB1000"')])
    assert "All methods, b=1000" in figure
    check_links(page, out_dir)


def sidecar(tmp_path: Path, **metadata: Any) -> RunRecord:
    record = record_with(tmp_path)
    path = record.metrics_file.with_name("sub-01_desc-denoised_dwi.json")
    path.write_text(json.dumps(metadata))
    return record


def test_missing_and_odd_metadata_are_said_with_what_they_are_needed_for(tmp_path: Path) -> None:
    record = sidecar(tmp_path, EchoTime=89.0, RepetitionTime=3.2, TotalReadoutTime=0.05, SliceTiming=[0, 1])
    rows = dict(metadata_rows(record))
    assert rows["Repetition time"] == "3.2 s"
    assert rows["Slice timing"] == "SliceTiming of 2 slices"
    assert rows["Phase encoding"].startswith("missing (PhaseEncodingDirection): needed for distortion")
    assert [finding.text for finding in metadata_findings(record)] == [
        "Missing metadata: PhaseEncodingDirection.", "Odd metadata: EchoTime is 89.0."
    ]  # fmt: skip
    good = sidecar(tmp_path, EchoTime=0.089, TotalReadoutTime=0.05, PhaseEncodingDirection="j-")
    assert metadata_findings(good) == []


def test_directions_on_the_sphere_stand_in_world_axes(tmp_path: Path) -> None:
    record = record_with(tmp_path)
    stem = record.metrics_file.with_name("sub-01_desc-denoised_dwi")
    affine = np.diag([2.0, 2, 2, 1])  # a positive determinant: FSL's x points to the left
    nb.save(nb.Nifti1Image(np.zeros((4, 4, 4, 4), np.float32), affine), f"{stem}.nii.gz")
    Path(f"{stem}.bval").write_text("0 1000 1000 4000\n")
    Path(f"{stem}.bvec").write_text("0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    found = sphere_data(record)
    assert found is not None
    inner, outer = found["shells"]
    assert inner["points"] == [[-0.5, 0, 0], [0, 0.5, 0]]
    assert inner["volumes"] == [1, 2]
    assert outer["points"] == [[0, 0, 1]]
    Path(f"{stem}.bval").unlink()
    assert sphere_data(record) is None


def test_the_sphere_leaves_out_what_the_user_called_b0(tmp_path: Path) -> None:
    record = record_with(tmp_path, preparation={**PREPARATION, "b0_threshold": 150.0})
    stem = record.metrics_file.with_name("sub-01_desc-denoised_dwi")
    nb.save(nb.Nifti1Image(np.zeros((4, 4, 4, 3), np.float32), np.eye(4)), f"{stem}.nii.gz")
    Path(f"{stem}.bval").write_text("0 100 1000\n")
    Path(f"{stem}.bvec").write_text("0 1 0\n0 0 1\n0 0 0\n")
    found = sphere_data(record)
    assert found is not None
    assert [shell["volumes"] for shell in found["shells"]] == [[2]]


def test_measures_of_one_shell_are_told_from_the_others() -> None:
    names = ("mean_signal_b1000", "residual_std_b0", "b0_snr", "fa_mean", "true_psnr_b2500")
    assert [shell_of(name) for name in names] == ["1000", "0", "", "", "2500"]
