"""The group level: the table holds the runs' own numbers, the page compares methods and hides no failure."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nibabel as nb
import numpy as np
import pytest
from report_helpers import (
    PREPARATION,
    Page,
    check_links,
    check_self_contained,
    data_of,
    make_arrays,
    table_of,
    write_run,
)
from scipy import stats

from dwmri_bidsapp.errors import InputOutputError
from dwmri_bidsapp.gradients import Gradients
from dwmri_bidsapp.metrics import errors_against_truth
from dwmri_bidsapp.outlying import outlying_volumes
from dwmri_bidsapp.reports import write_group_report, write_subject_report
from dwmri_bidsapp.reports.collect import find_records
from dwmri_bidsapp.reports.outliers import LOOKED_AT, distances
from dwmri_bidsapp.reports.pairs import MeasureTable, compare, tabulate


def test_group_table_holds_the_numbers_of_the_files(out_dir: Path) -> None:
    write_run(out_dir, "sub-03_acq-hi_dir-AP", {"b0_snr": 1 / 3, "fa_mean_before": float("nan"), "count": 7})
    write_group_report(out_dir)

    rows = table_of(out_dir / "group_dwi.tsv")
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
    assert (tmp_path / "group_dwi.tsv").read_text().startswith("participant_id\tmethod\t")


@pytest.mark.parametrize(("lowest_b", "b0_threshold"), [(0, 50), (80, 100)])
def test_true_errors_are_measured_on_the_files(tmp_path: Path, lowest_b: float, b0_threshold: float) -> None:
    run, out, raw, truth = make_arrays(), tmp_path / "out", tmp_path / "raw data", tmp_path / "truth"
    gradients = Gradients.from_arrays(
        np.maximum(run.gradients.bvals, lowest_b), run.gradients.bvecs, b0_threshold
    )
    preparation = {**PREPARATION, "b0_threshold": b0_threshold}
    for label in ("sub-01", "sub-02"):
        sources = {"dwi": f"bids:raw:{label}/dwi/{label}_dwi.nii.gz"}
        write_run(out, label, sources=sources, preparation=preparation)
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
    np.savetxt(out / "sub-01/dwi/sub-01_desc-denoised_dwi.bval", gradients.bvals[None])
    np.savetxt(out / "sub-01/dwi/sub-01_desc-denoised_dwi.bvec", gradients.bvecs.T)

    page = Page(write_group_report(out, truth_dir=truth))

    rows = table_of(out / "group_dwi.tsv")
    for when, estimate in (("before", run.noisy), ("after", run.denoised)):
        for name, value in errors_against_truth(estimate, run.clean, gradients, run.mask).items():
            found = rows[0][f"true_{name}_{when}"]
            assert found == "n/a" if value != value else float(found) == pytest.approx(value, rel=1e-5), name
    assert float(rows[0]["true_psnr_dwi_after"]) > float(rows[0]["true_psnr_dwi_before"]) + 5
    assert rows[1]["true_psnr_dwi_after"] == "n/a"
    assert "True PSNR, DWI" in [measure["label"] for measure in data_of(page)["measures"]]
    assert "Not compared with the truth" in page.text
    assert "sub-02_desc-truth_dwi.nii.gz" in page.text


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, "sub-01")
    (tmp_path / "group.html").mkdir()

    with pytest.raises(InputOutputError, match=r"group\.html"):
        write_group_report(tmp_path)


def test_group_page_is_self_contained_and_every_run_leads_to_its_place(out_dir: Path) -> None:
    for subject in ("01", "02"):
        write_subject_report(out_dir, subject)
    page = Page(write_group_report(out_dir))

    check_self_contained(page)
    check_links(page, out_dir)
    assert len(page.ids) == len(set(page.ids))
    runs = data_of(page)["runs"]
    assert [run["label"] for run in runs] == ["sub-01_run-1", "sub-01_run-2", "sub-02_ses-a"]
    for run in runs:
        target, _, anchor = run["page"].partition("#")
        assert unquote(anchor) in Page(out_dir / target).ids


def test_the_page_holds_the_values_of_every_method_and_what_was_acquired(tmp_path: Path) -> None:
    write_run(tmp_path, "sub-01", {"fa_mean_before": 0.4, "fa_mean_after": 0.3, "residual_std": 0.9})
    write_run(tmp_path, "sub-01", {"fa_mean_before": 0.4, "fa_mean_after": 0.2}, method="mppca")
    write_run(tmp_path, "sub-02", {"fa_mean_before": 0.5, "fa_mean_after": 0.35})
    data = data_of(Page(write_group_report(tmp_path)))

    assert data["methods"] == ["acquired", "denoised", "mppca"]
    values = {measure["name"]: data["values"][i] for i, measure in enumerate(data["measures"])}
    assert values["fa_mean"] == [[0.4, 0.5], [0.3, 0.35], [0.2, None]]
    assert values["residual_std"] == [[None, None], [0.9, None], [None, None]]
    assert data["statistics"]["||"]["acquired|denoised"]["fa_mean"][0] == 2
    assert data["statistics"]["||"]["denoised|mppca"]["fa_mean"][:4] == [1, 0.3, 0.2, -0.1]
    assert [row["method"] for row in table_of(tmp_path / "group_dwi.tsv")] == [
        "denoised",
        "mppca",
        "denoised",
    ]


def test_statistics_ride_along_for_every_selection_of_the_filters(tmp_path: Path) -> None:
    shells = [{"b_value": 0.0, "n_volumes": 1}, {"b_value": 3000.0, "n_volumes": 9}]
    write_run(tmp_path, "sub-01_ses-a", {"fa_mean_before": 0.4, "fa_mean_after": 0.3})
    write_run(tmp_path, "sub-01_ses-b_acq-x", {"fa_mean_before": 0.4, "fa_mean_after": 0.2})
    write_run(tmp_path, "sub-02_ses-b", {"fa_mean_before": 0.6, "fa_mean_after": 0.3},
              preparation={**PREPARATION, "shells": shells})  # fmt: skip
    found = data_of(Page(write_group_report(tmp_path)))["statistics"]

    difference = {key: pairs["acquired|denoised"]["fa_mean"][3] for key, pairs in found.items()}
    assert difference["||"] == pytest.approx(np.mean([np.mean([-0.1, -0.2]), -0.3])), (
        "runs of one are averaged"
    )
    assert difference["|ses-a|"] == pytest.approx(-0.1)
    assert difference["3000||"] == pytest.approx(-0.3)
    assert difference["1000|ses-b|acq-x"] == pytest.approx(-0.2)
    assert "3000|ses-a|" not in found, "no run is like that"


def table_with(values_rmk: Any, participants: list[str] | None = None, **changes: Any) -> MeasureTable:
    values = np.asarray(values_rmk, dtype=float)
    labels = [f"sub-{i:03d}" for i in range(len(values))]
    table = MeasureTable(
        labels, participants or labels, ["acquired", "denoised"], ["dti_kfold_error"], values
    )
    return replace(table, **changes)


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    pairs = np.random.default_rng(3).normal([0.3, 0.2], 0.02, (13, 2))
    pairs[12, 1] = np.nan

    pair = compare(table_with(pairs[:, None]), "acquired", "denoised")["dti_kfold_error"]

    known = pairs[:12]
    expected = stats.ttest_rel(known[:, 1], known[:, 0]).confidence_interval(0.95)
    difference = known[:, 1] - known[:, 0]
    assert pair.n == 12
    assert (pair.low, pair.high) == pytest.approx((expected.low, expected.high))
    g = difference.mean() / difference.std(ddof=1) * (1 - 3 / (4 * 11 - 1))
    assert pair.effect == pytest.approx(g)
    assert pair.effect_low is not None
    assert pair.effect_low < g
    assert pair.improved == (difference < 0).sum()


def test_runs_of_a_participant_count_once() -> None:
    values = [[[1, 0.5]], [[1, 0.7]], [[1, np.nan]], [[1, 0.2]]]
    pair = compare(table_with(values, ["a", "a", "a", "b"]), "acquired", "denoised")["dti_kfold_error"]
    assert pair.n == 2
    assert pair.difference == pytest.approx((-0.4 - 0.8) / 2)
    chosen = np.array([True, False, False, False])
    pair = compare(table_with(values, ["a", "a", "a", "b"]), "acquired", "denoised", chosen)[
        "dti_kfold_error"
    ]
    assert (pair.n, pair.difference, pair.low, pair.effect) == (1, -0.5, None, None)


def test_a_measure_without_a_better_direction_has_no_winners(tmp_path: Path) -> None:
    write_run(tmp_path, "sub-01", {"fa_mean_before": 0.3, "fa_mean_after": 0.2})
    records = find_records(tmp_path, "01")[0]
    table = tabulate(records, [record.metrics for record in records])
    assert compare(table, "acquired", "denoised")["fa_mean"].improved is None


@pytest.mark.parametrize("n_runs", [20, 200])  # too few for a covariance, and enough
def test_a_strange_run_is_found_and_ordinary_ones_are_not(n_runs: int) -> None:
    rng = np.random.default_rng(5)
    values = np.full((n_runs, len(LOOKED_AT), 2), np.nan)
    common = rng.normal(size=(n_runs, 1))
    values[:, :, 1] = 5 + common + rng.normal(size=(n_runs, len(LOOKED_AT)))
    values[7, 2, 1] += 15
    table = table_with(values, measures=list(LOOKED_AT))
    found = distances(table, [0] * n_runs)
    outliers = [i for i, distance in enumerate(found) if distance and distance.outlier]
    assert 7 in outliers
    assert len(outliers) <= 1 + n_runs // 50
    assert found[7] is not None
    assert found[7].reasons[0][0] == LOOKED_AT[2]


def test_runs_are_judged_by_those_of_their_own_protocol() -> None:
    values = np.random.default_rng(0).normal(size=(24, len(LOOKED_AT), 2))
    values[10:20] += 100
    table = table_with(values, measures=list(LOOKED_AT))
    found = distances(table, [0] * 10 + [1] * 10 + [2] * 4)
    assert found[20:] == [None] * 4, "four runs do not say what is ordinary"
    assert not any(distance.outlier for distance in found[:20] if distance)


def test_a_method_that_most_runs_have_is_missed_in_the_others(tmp_path: Path) -> None:
    for subject in ("01", "02", "03"):
        write_run(tmp_path, f"sub-{subject}")
        if subject != "02":
            write_run(tmp_path, f"sub-{subject}", method="mppca")
        write_subject_report(tmp_path, subject)
    page = Page(write_group_report(tmp_path))
    assert "Missing sub-02: not denoised by mppca" in " ".join(page.text.split())


def test_a_method_measured_on_other_data_than_the_run_stops_nothing(tmp_path: Path) -> None:
    """Left by an earlier call, before the series was cropped, say: the run's own record tells its protocol."""
    write_run(tmp_path, "sub-01")
    write_run(tmp_path, "sub-01", method="mppca", preparation={**PREPARATION, "shape": [9, 9, 9, 10]})
    write_run(tmp_path, "sub-02")
    write_group_report(tmp_path)
    with (tmp_path / "group_dwi.tsv").open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert [(row["method"], row["protocol"]) for row in rows] == [
        ("denoised", "1"), ("mppca", "1"), ("denoised", "1")
    ]  # fmt: skip


def test_the_runs_own_record_says_what_was_acquired(tmp_path: Path) -> None:
    write_run(tmp_path, "sub-01", {"fa_mean_before": 0.4, "fa_mean_after": 0.3})
    write_run(tmp_path, "sub-01", {"fa_mean_before": 0.9, "md_mean_before": 0.7}, method="mppca")
    data = data_of(Page(write_group_report(tmp_path)))
    acquired = {measure["name"]: data["values"][i][0] for i, measure in enumerate(data["measures"])}
    assert acquired == {"fa_mean": [0.4], "md_mean": [0.7]}


def test_data_in_the_page_cannot_end_its_element(tmp_path: Path) -> None:
    write_run(tmp_path, "sub-01", {"</script><b>": 1.0})
    page = Page(write_group_report(tmp_path))
    assert "<b>" not in page.source.split('id="data"')[1].split("</script>")[0]
    assert [measure["name"] for measure in data_of(page)["measures"]] == ["</script><b>"]


def test_a_volume_far_from_its_shell_stands_out() -> None:
    shell = np.repeat([0, 1, 2], [3, 20, 20])
    values = 100 + np.random.default_rng(1).normal(size=(1, 43)) + 50 * shell
    values[0, 0] = 0  # of a shell too small to tell
    values[0, 30] *= 0.85
    assert np.flatnonzero(outlying_volumes(values, shell)).tolist() == [30]
