"""Which runs are found in a dataset, and what belongs to each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
import pytest

from dwmri_bidsapp.bids import DwiRun, find_runs
from dwmri_bidsapp.config import Config
from dwmri_bidsapp.errors import BadDataError, UsageError

TABLE = (".nii.gz", ".bval", ".bvec")


def make_dataset(root: Path, *names: str) -> Path:
    """Make files, each with its own path as content; ``sub-01/dwi/sub-01_dwi`` stands for image and table."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.9.0"}))
    for name in names:
        for extension in ("",) if "." in Path(name).name else TABLE:
            path = root / f"{name}{extension}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}" if path.suffix == ".json" else str(path))
    return root


def config_for(bids_dir: Path, **settings: Any) -> Config:
    return Config(bids_dir=bids_dir, out_dir=bids_dir / "derivatives" / "out", **settings)


def labels(bids_dir: Path, **settings: Any) -> list[str]:
    """Labels of the runs, where nothing may be wrong."""
    runs, problems, _ = find_runs(config_for(bids_dir, **settings))
    assert problems == []
    return [run.label for run in runs]


def only_run(bids_dir: Path, **settings: Any) -> DwiRun:
    runs, problems, _ = find_runs(config_for(bids_dir, **settings))
    assert problems == []
    assert len(runs) == 1
    return runs[0]


@pytest.fixture(scope="module")
def skeleton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset as niworkflows makes them: two participants, sessions, anatomy and functions beside."""
    from niworkflows.utils.testing import generate_bids_skeleton

    def files(**entities: str) -> list[dict[str, Any]]:
        metadata = [{"metadata": {"EchoTime": 0.1}}, {}, {}]
        return [
            {**entities, "suffix": "dwi", "extension": extension, **extra}
            for extension, extra in zip(TABLE, metadata, strict=True)
        ]

    def session(name: str) -> dict[str, Any]:
        dwi = [*files(acq="hi", dir="AP", run="01"), *files(acq="hi", dir="AP", run="02"), *files(dir="PA")]
        return {
            "session": name,
            "dwi": dwi,
            "anat": [{"suffix": "T1w"}],
            "func": [{"task": "x", "suffix": "bold"}],
        }

    root = tmp_path_factory.mktemp("bids") / "skeleton"
    generate_bids_skeleton(str(root), {"01": [session("a"), session("b")], "02": [session("a")]})
    return root


ALL_OF_SESSION_A = [
    "sub-01_ses-a_acq-hi_dir-AP_run-01", "sub-01_ses-a_acq-hi_dir-AP_run-02", "sub-01_ses-a_dir-PA",
]  # fmt: skip


def test_all_runs_with_their_entities(skeleton: Path) -> None:
    runs, problems, _ = find_runs(config_for(skeleton))
    assert problems == []
    assert len(runs) == 9
    assert [run.label for run in runs[:3]] == ALL_OF_SESSION_A
    first = runs[0]
    assert first.subject == "01"
    assert first.entities == {
        "subject": "01", "session": "a", "acquisition": "hi", "direction": "AP", "run": "01",
    }  # fmt: skip
    assert first.metadata == {"EchoTime": 0.1}
    for run in runs:
        assert run.bval == Path(str(run.dwi).replace(".nii.gz", ".bval"))
        assert run.bvec == Path(str(run.dwi).replace(".nii.gz", ".bvec"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"participant_label": ("01",), "session_label": ("a",)}, ALL_OF_SESSION_A),
        ({"participant_label": ("02",), "run_label": ("1",)}, ["sub-02_ses-a_acq-hi_dir-AP_run-01"]),
        ({"participant_label": ("02",), "run_label": ("02",)}, ["sub-02_ses-a_acq-hi_dir-AP_run-02"]),
        ({"session_label": ("b",), "acquisition_label": ("hi",)},
         ["sub-01_ses-b_acq-hi_dir-AP_run-01", "sub-01_ses-b_acq-hi_dir-AP_run-02"]),
    ],
)  # fmt: skip
def test_labels_select(skeleton: Path, settings: dict[str, Any], expected: list[str]) -> None:
    assert labels(skeleton, **settings) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"acquisition": None}, ["sub-02_ses-a_dir-PA"]),
        ({"acquisition": "*", "run": 1}, ["sub-02_ses-a_acq-hi_dir-AP_run-01"]),
        ({"direction": ["PA", "LR"], "suffix": "dwi"}, ["sub-02_ses-a_dir-PA"]),
        (
            {"session": "ses-a", "run": ["run-1", None]},
            ["sub-02_ses-a_acq-hi_dir-AP_run-01", "sub-02_ses-a_dir-PA"],
        ),
        ({"run": [None, "02"]}, ["sub-02_ses-a_acq-hi_dir-AP_run-02", "sub-02_ses-a_dir-PA"]),
    ],
)
def test_filter_file_selects(
    skeleton: Path, tmp_path: Path, query: dict[str, Any], expected: list[str]
) -> None:
    file = tmp_path / "filter.json"
    file.write_text(json.dumps({"dwi": query, "t1w": {"session": "x"}}))
    assert labels(skeleton, participant_label=("02",), bids_filter_file=file) == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"dwi": {"sessoin": "a"}}', "session"),
        ('{"bold": {"session": "a"}}', "dwi"),
        ('{"dwi": {"part": "phase"}}', "magnitude"),
        ("[]", "JSON object"),
        ("{", "JSON"),
    ],
)
def test_bad_filter_file(skeleton: Path, tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "filter.json"
    file.write_text(text)
    with pytest.raises((UsageError, BadDataError), match=named) as caught:
        find_runs(config_for(skeleton, bids_filter_file=file))
    assert str(file) in str(caught.value)


def test_database_gives_the_same_runs(skeleton: Path, tmp_path: Path) -> None:
    database = tmp_path / "database"
    for _ in range(2):  # made, and used again
        assert labels(skeleton, bids_database_dir=database) == labels(skeleton)
        assert labels(skeleton, bids_database_dir=database, participant_label=("02",)) == labels(
            skeleton, participant_label=("02",)
        )
    other = make_dataset(tmp_path / "other", "sub-01/dwi/sub-01_dwi")
    with pytest.raises(UsageError, match="another dataset"):
        find_runs(config_for(other, bids_database_dir=database))
    with pytest.raises(UsageError, match="inside BIDS_DIR"):
        find_runs(config_for(other, bids_database_dir=other / "database"))


def test_unknown_participant_names_those_present(skeleton: Path) -> None:
    with pytest.raises(UsageError, match=r"--participant-label 7.*01, 02"):
        find_runs(config_for(skeleton, participant_label=("01", "7")))


def test_only_magnitude_images(tmp_path: Path) -> None:
    names = [f"sub-01/dwi/sub-01_acq-x_part-{part}_dwi" for part in ("mag", "phase", "real", "imag")]
    root = make_dataset(tmp_path / "d", *names, "sub-01/dwi/sub-01_dwi", "sub-01/dwi/sub-01_sbref.nii.gz")
    assert labels(root) == ["sub-01_acq-x_part-mag", "sub-01"]


def test_tables_are_inherited_from_the_nearest_folder(tmp_path: Path) -> None:
    root = make_dataset(
        tmp_path / "d",
        "dwi.bval", "dwi.bvec", "dwi.json",
        "sub-01/ses-a/dwi/sub-01_ses-a_dwi.nii.gz",
        "sub-02/sub-02_dwi.bvec", "sub-02/sub-02_dwi.json",
        "sub-02/ses-a/dwi/sub-02_ses-a_run-1_dwi.nii.gz",
        "sub-02/ses-a/dwi/sub-02_ses-a_run-1_dwi.bval",
        "sub-02/ses-a/dwi/sub-02_ses-a_run-2_dwi.nii.gz",
    )  # fmt: skip
    (root / "dwi.json").write_text('{"EchoTime": 0.1, "FlipAngle": 90}')
    (root / "sub-02/sub-02_dwi.json").write_text('{"EchoTime": 0.2}')
    runs, problems, _ = find_runs(config_for(root))
    assert problems == []
    sub_01, run_1, run_2 = runs
    assert (sub_01.bval, sub_01.bvec) == (root / "dwi.bval", root / "dwi.bvec")
    assert sub_01.metadata == {"EchoTime": 0.1, "FlipAngle": 90}
    assert run_1.bval == root / "sub-02/ses-a/dwi/sub-02_ses-a_run-1_dwi.bval"
    assert run_2.bval == root / "dwi.bval"
    assert run_1.bvec == run_2.bvec == root / "sub-02/sub-02_dwi.bvec"
    assert run_1.metadata == {"EchoTime": 0.2, "FlipAngle": 90}


def test_the_table_of_another_acquisition_is_not_taken(tmp_path: Path) -> None:
    """``BIDSLayout.get_bvec`` would take it."""
    root = make_dataset(tmp_path / "d", "sub-01/dwi/sub-01_acq-x_dwi", "sub-01/dwi/sub-01_dwi.nii.gz")
    runs, problems, _ = find_runs(config_for(root))
    assert [run.label for run in runs] == ["sub-01_acq-x"]
    assert [problem.subject for problem in problems] == ["01"]
    assert str(root / "sub-01/dwi/sub-01_dwi.nii.gz") in problems[0].message


def test_the_folder_of_the_dataset_has_no_say(tmp_path: Path) -> None:
    """pybids reads entities from the absolute path, too."""
    root = make_dataset(tmp_path / "sub-99" / "ses-9_run-7" / "dwi", "sub-01/dwi/sub-01_run-1_dwi")
    run = only_run(root)
    assert run.entities == {"subject": "01", "run": "1"}
    assert labels(root, run_label=("1",)) == ["sub-01_run-1"]


def test_a_missing_table_is_a_problem_of_its_run_alone(tmp_path: Path) -> None:
    root = make_dataset(
        tmp_path / "d", "sub-01/dwi/sub-01_dwi", "sub-02/dwi/sub-02_dwi", "sub-03/dwi/sub-03_dwi"
    )
    (root / "sub-01/dwi/sub-01_dwi.bvec").unlink()
    (root / "sub-03/dwi/sub-03_dwi.bval").unlink()
    runs, problems, _ = find_runs(config_for(root))
    assert [run.label for run in runs] == ["sub-02"]
    assert "sub-01_dwi.bvec" in problems[0].message
    assert "sub-03_dwi.bval" in problems[1].message
    assert {problem.exit_code for problem in problems} == {65}


def test_series_of_b0_volumes_alone_are_left_as_they_are(tmp_path: Path) -> None:
    """Of reversed phase encoding, say; not where nothing else is there to denoise."""
    root = make_dataset(
        tmp_path / "d", "sub-01/dwi/sub-01_dir-AP_dwi", "sub-01/dwi/sub-01_dir-PA_dwi",
        "sub-01/dwi/sub-01_acq-rev_dwi.nii.gz", "sub-01/sub-01_acq-rev_dwi.bval", "sub-02/dwi/sub-02_dwi",
    )  # fmt: skip
    dwi = root / "sub-01/dwi"
    for name, n_volumes in (
        ("sub-01/dwi/sub-01_dir-PA", 3),
        ("sub-01/dwi/sub-01_acq-rev", 1),
        ("sub-02/dwi/sub-02", 2),
    ):
        nb.Nifti1Image(np.zeros((2, 2, 2, n_volumes)), np.eye(4)).to_filename(root / f"{name}_dwi.nii.gz")
    (dwi / "sub-01_dir-PA_dwi.bval").write_text("0 5 50\n")
    (dwi / "sub-01_dir-PA_dwi.bvec").write_text("0 0 0\n0 0 0\n0 0 0\n")
    (root / "sub-01/sub-01_acq-rev_dwi.bval").write_text("0\n")
    (root / "sub-01/sub-01_dwi.bvec").write_text("0 1\n0 0\n0 0\n")  # of another image
    (root / "dwi.json").write_text('{"EchoTime": 0.1}')
    (root / "sub-02/dwi/sub-02_dwi.bval").write_text("0 0\n")
    found = find_runs(config_for(root))
    assert [run.label for run in found.runs] == ["sub-01_dir-AP"]
    assert ["holds b=0 volumes only" in problem.message for problem in found.problems] == [True]
    assert [(series.dwi, series.tables, series.subject) for series in found.b0_series] == [
        (dwi / "sub-01_acq-rev_dwi.nii.gz", (root / "sub-01/sub-01_acq-rev_dwi.bval",), "01"),
        (
            dwi / "sub-01_dir-PA_dwi.nii.gz",
            (dwi / "sub-01_dir-PA_dwi.bval", dwi / "sub-01_dir-PA_dwi.bvec"),
            "01",
        ),
    ]
    assert [series.metadata for series in found.b0_series] == [{"EchoTime": 0.1}] * 2
    (dwi / "sub-01_dir-PA_dwi.bval").write_text("0 5\n")
    assert len(find_runs(config_for(root)).b0_series) == 1, (
        "a table of fewer volumes says nothing of the image"
    )
    (dwi / "sub-01_dir-PA_dwi.bval").write_text("0 5 50\n")
    lower = find_runs(config_for(root, b0_threshold=10.0))
    assert [run.label for run in lower.runs] == ["sub-01_dir-AP", "sub-01_dir-PA"]


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    root = make_dataset(
        tmp_path / "d", "sub-01/dwi/sub-01_dwi", "sub-01/dwi/sub-01_dwi.nii", "sub-02/dwi/sub-02_dwi",
        "sub-03/dwi/sub-03_dwi", "sub-04/dwi/sub-04_run-1_acq-x_dwi", "sub-05/dwi/sub-05_dwi",
        "sub-05/dwi/sub-05_dwi.json",
    )  # fmt: skip
    (root / "sub-02/dwi/sub-02_dwi.nii.gz").unlink()
    (root / "sub-02/dwi/sub-02_dwi.nii.gz").symlink_to("../../.git/annex/objects/not-here")
    (root / "sub-05/dwi/sub-05_dwi.json").write_text("{")
    runs, problems, _ = find_runs(config_for(root))
    assert [run.label for run in runs] == ["sub-03"]
    texts = {problem.subject: str(problem) for problem in problems}
    assert "twice" in texts["01"]
    assert "datalad get" in texts["02"]
    assert "breaks the rules" in texts["04"]
    assert "sub-05_dwi.json" in texts["05"]
    assert "sub-04_run-1_acq-x" in {
        run.label for run in find_runs(config_for(root, skip_bids_validation=True))[0]
    }


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'\xef\xbb\xbf{"EchoTime": 0.1}', {"EchoTime": 0.1}),
        (b'{"InstitutionName": "Universit\xe9"}', {"InstitutionName": "Universit\xe9"}),
        (b'{"EchoTime": NaN, "List": [1, -Infinity]}', {"EchoTime": None, "List": [1, None]}),
    ],
)
def test_sidecars_as_converters_leave_them(tmp_path: Path, content: bytes, expected: dict[str, Any]) -> None:
    root = make_dataset(tmp_path / "d", "sub-01/dwi/sub-01_dwi")
    (root / "sub-01/dwi/sub-01_dwi.json").write_bytes(content)
    assert only_run(root).metadata == expected


def test_names_that_the_outputs_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    names = "sub-01/dwi/sub-01_echo-1_dwi", "sub-01/dwi/sub-01_echo-2_dwi", "sub-01/dwi/sub-01_acq-x_dwi"
    root = make_dataset(tmp_path / "d", *names)
    found = find_runs(config_for(root, skip_bids_validation=True))
    assert [run.label for run in found.runs] == ["sub-01_acq-x"]
    assert ["echo in the name" in problem.message for problem in found.problems] == [True, True]


def test_images_of_one_file_name_are_refused_by_name(tmp_path: Path) -> None:
    names = "sub-01/ses-1/dwi/sub-01_dwi", "sub-01/ses-2/dwi/sub-01_dwi", "sub-02/dwi/sub-02_dwi"
    root = make_dataset(tmp_path / "d", *names)
    found = find_runs(config_for(root, skip_bids_validation=True))
    assert [run.label for run in found.runs] == ["sub-02"]
    assert [problem.subject for problem in found.problems] == ["01", "01"]
    assert str(root / "sub-01/ses-2/dwi/sub-01_dwi.nii.gz") in found.problems[1].message
    assert "ses-" in found.problems[1].hint


def test_an_interrupted_database_is_none(
    skeleton: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bids.layout import BIDSLayoutIndexer

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    database = tmp_path / "database"
    with monkeypatch.context() as patch:
        patch.setattr(BIDSLayoutIndexer, "__call__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            find_runs(config_for(skeleton, bids_database_dir=database))
    assert labels(skeleton, bids_database_dir=database) == labels(skeleton)
    assert [path.name for path in tmp_path.iterdir()] == ["database"]


def test_a_participant_that_the_database_does_not_know(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "d", "sub-01/dwi/sub-01_dwi")
    database = tmp_path / "database"
    assert labels(root, bids_database_dir=database) == ["sub-01"]
    make_dataset(root, "sub-02/dwi/sub-02_dwi", "sub-03/anat/sub-03_T1w.nii.gz")
    found = find_runs(config_for(root, bids_database_dir=database))
    assert [run.label for run in found.runs] == ["sub-01"]
    (problem,) = found.problems
    assert "sub-02: --bids-database-dir" in problem.message and "older" in problem.message
    assert problem.hint == "remove that folder"


def test_a_database_made_by_another_path_to_the_dataset(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "d", "sub-01/dwi/sub-01_dwi")
    link = tmp_path / "link"
    link.symlink_to(root)
    database = tmp_path / "database"
    for folder in (link, root):
        run = only_run(folder, bids_database_dir=database)
        assert run.dwi == folder / "sub-01/dwi/sub-01_dwi.nii.gz"


def test_a_participant_without_dwi(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "d", "sub-01/anat/sub-01_T1w.nii.gz", "sub-02/dwi/sub-02_dwi")
    assert labels(root) == ["sub-02"], "nobody asked for participant 01"
    runs, problems, _ = find_runs(config_for(root, participant_label=("01", "02")))
    assert len(runs) == 1
    assert str(root / "sub-01") in problems[0].message
    with pytest.raises(BadDataError, match="no DWI image"):
        find_runs(config_for(make_dataset(tmp_path / "e", "sub-01/anat/sub-01_T1w.nii.gz")))


def test_a_filter_that_nothing_matches(skeleton: Path) -> None:
    _, problems, _ = find_runs(config_for(skeleton, session_label=("z",), participant_label=("01",)))
    assert "session z" in problems[0].message
    assert "sub-01_ses-a_acq-hi_dir-AP_run-01_dwi.nii.gz" in problems[0].hint


def test_datasets_that_are_none(tmp_path: Path) -> None:
    empty = make_dataset(tmp_path / "empty")
    with pytest.raises(BadDataError, match="no participant"):
        find_runs(config_for(empty))
    undescribed = make_dataset(tmp_path / "undescribed", "sub-01/dwi/sub-01_dwi")
    description = undescribed / "dataset_description.json"
    for text, message in (('{"Name": "x"}', "BIDSVersion"), ("{", "JSON"), (None, "no such file")):
        description.unlink()
        if text is not None:
            description.write_text(text)
        with pytest.raises(BadDataError, match=message) as caught:
            find_runs(config_for(undescribed))
        assert str(description) in str(caught.value)
        assert labels(undescribed, skip_bids_validation=True) == ["sub-01"]
        description.touch()


def test_derivatives_inside_the_dataset_are_no_input(tmp_path: Path) -> None:
    root = make_dataset(
        tmp_path / "d", "sub-01/dwi/sub-01_dwi", "derivatives/x/sub-01/dwi/sub-01_desc-denoised_dwi",
        "out/sub-01/dwi/sub-01_desc-denoised_dwi", "work/sub-01/dwi/sub-01_dwi", "sourcedata/sub-01/dwi/sub-01_dwi",
    )  # fmt: skip
    assert labels(root) == ["sub-01"]
    assert labels(root, bids_database_dir=tmp_path / "database") == ["sub-01"]


def test_masks_and_noise_maps_of_derivatives(tmp_path: Path) -> None:
    root = make_dataset(
        tmp_path / "d", "sub-01/dwi/sub-01_run-1_dwi", "sub-01/dwi/sub-01_run-2_dwi", "sub-02/dwi/sub-02_dwi"
    )
    deriv = make_dataset(
        tmp_path / "deriv",
        "sub-01/dwi/sub-01_desc-brain_mask.nii.gz",
        "sub-01/dwi/sub-01_run-2_desc-brain_mask.nii.gz",
        "sub-01/dwi/sub-01_run-1_space-T1w_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_run-1_desc-brain_mask.nii.gz",
        "sub-01/dwi/sub-01_run-1_desc-lesion_mask.nii.gz",
        "sub-01/dwi/sub-01_run-1_model-noise_param-sigma_dwimap.nii.gz",
        "sub-01/dwi/sub-01_run-2_model-noise_param-uncertainty_dwimap.nii.gz",
    )
    runs, problems, _ = find_runs(config_for(root, derivatives={"x": deriv}))
    assert problems == []
    run_1, run_2, sub_02 = runs
    folder = deriv / "sub-01/dwi"
    assert run_1.mask == folder / "sub-01_desc-brain_mask.nii.gz"
    assert run_2.mask == folder / "sub-01_run-2_desc-brain_mask.nii.gz"
    assert run_1.noise_map == folder / "sub-01_run-1_model-noise_param-sigma_dwimap.nii.gz"
    assert run_2.noise_map is None
    assert (sub_02.mask, sub_02.noise_map) == (None, None)
    truth, *_ = find_runs(config_for(root, derivatives={"truth": deriv}))
    assert [run.mask for run in truth] == [None] * 3, "the truth is never an input"
    _, problems, _ = find_runs(config_for(root, derivatives={"x": deriv, "y": deriv}))
    assert {problem.subject for problem in problems} == {"01"}


def test_a_mask_behind_a_link_to_a_folder_is_found(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "d", "sub-01/ses-1/dwi/sub-01_ses-1_dwi")
    store = make_dataset(tmp_path / "store", "dwi/sub-01_ses-1_desc-brain_mask.nii.gz")
    (tmp_path / "deriv/sub-01").mkdir(parents=True)
    (tmp_path / "deriv/sub-01/ses-1").symlink_to(store)
    mask = tmp_path / "deriv/sub-01/ses-1/dwi/sub-01_ses-1_desc-brain_mask.nii.gz"
    assert only_run(root, derivatives={"x": tmp_path / "deriv"}).mask == mask


def test_mask_and_noise_map_files_are_for_one_run(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "d", "sub-01/dwi/sub-01_dwi", "sub-02/dwi/sub-02_dwi")
    mask = tmp_path / "mask.nii.gz"
    assert only_run(root, participant_label=("02",), mask=mask).mask == mask
    assert only_run(root, participant_label=("02",), noise_map=mask).noise_map == mask
    with pytest.raises(UsageError, match="one run"):
        find_runs(config_for(root, mask=mask))


def test_nothing_is_written_to_the_dataset(skeleton: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in skeleton.rglob("*")}
    find_runs(config_for(skeleton))
    assert {path: path.stat().st_mtime_ns for path in skeleton.rglob("*")} == before


def test_other_participants_are_not_walked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_dataset(tmp_path / "d", *(f"sub-{i:03d}/dwi/sub-{i:03d}_dwi" for i in range(20)))
    import bids.layout.index

    indexed: list[str] = []
    make_bidsfile = bids.layout.index.make_bidsfile

    def noted(path: Any) -> Any:
        indexed.append(str(path))
        return make_bidsfile(path)

    monkeypatch.setattr(bids.layout.index, "make_bidsfile", noted)
    assert labels(root, participant_label=("007",)) == ["sub-007"]
    assert len(indexed) == len(TABLE)
