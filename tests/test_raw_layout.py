"""``--output-layout raw``: a dataset that the next pipeline takes for a raw one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest

from dwmri_bidsapp.bids import B0Series, DwiRun
from dwmri_bidsapp.derivatives import check_out_dir
from dwmri_bidsapp.errors import InputOutputError, UsageError
from dwmri_bidsapp.raw_layout import DERIVATIVES, write_raw_dataset

SHAPE = (6, 6, 6, 7)


def image(path: Path, shape: tuple[int, ...] = SHAPE[:3], value: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = nb.Nifti1Image(np.full(shape, value, np.float32), np.diag([2.0, 2, 2, 1]))
    data.header.set_zooms((2, 2, 2, 3.0)[: len(shape)])
    data.header.set_xyzt_units("mm", "sec")
    data.to_filename(path)
    return path


def table(stem: Path) -> None:
    Path(f"{stem}.bval").write_text("0 " + "1000 " * 6 + "\n")
    bvecs = np.random.default_rng(0).normal(size=(3, 7))
    bvecs[:, 0] = 0
    np.savetxt(f"{stem}.bvec", bvecs / np.maximum(np.linalg.norm(bvecs, axis=0), 1e-9), fmt="%.5f")


@pytest.fixture
def bids_dir(tmp_path: Path) -> Path:
    """A dataset with everything that must be carried over, and with what must not."""
    bids = tmp_path / "raw data"
    session = bids / "sub-01/ses-a"
    image(session / "anat/sub-01_ses-a_T1w.nii.gz")
    (session / "anat/sub-01_ses-a_T1w.json").write_text("{}")
    image(session / "dwi/sub-01_ses-a_acq-x_dwi.nii.gz", SHAPE)
    image(session / "dwi/sub-01_ses-a_acq-failed_dwi.nii.gz", SHAPE)
    image(session / "dwi/sub-01_ses-a_acq-x_sbref.nii.gz")
    for name in ("acq-x_dwi", "acq-failed_dwi"):
        table(session / f"dwi/sub-01_ses-a_{name}")
    (bids / "dwi.json").write_text('{"EchoTime": 0.1}')
    (session / "sub-01_ses-a_scans.tsv").write_text(
        "filename\tacq_time\nanat/sub-01_ses-a_T1w.nii.gz\t2020-01-01T00:00:00\n"
        "dwi/sub-01_ses-a_acq-x_dwi.nii.gz\t2020-01-01T00:10:00\n"
        "dwi/sub-01_ses-a_acq-failed_dwi.nii.gz\t2020-01-01T00:20:00\n"
    )
    image(bids / "sub-02/anat/sub-02_T1w.nii.gz")
    (bids / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\nsub-02\t31\n")
    (bids / "README").write_text("A study of something.\n")
    description = {"Name": "Study", "BIDSVersion": "1.10.0", "License": "CC0", "Authors": ["A", "B"]}
    (bids / "dataset_description.json").write_text(json.dumps(description))
    return bids


@pytest.fixture
def out_dir(tmp_path: Path, bids_dir: Path) -> Path:
    """The derivatives of the one run that was denoised, and the raw dataset made of it."""
    out = tmp_path / "out"
    folder = out / DERIVATIVES / "sub-01/ses-a/dwi"
    stem = folder / "sub-01_ses-a_acq-x_desc-denoised_dwi"
    image(Path(f"{stem}.nii.gz"), SHAPE, value=7)
    table(stem)
    sidecar = {"EchoTime": 0.1, "PhaseEncodingDirection": "j", "TotalReadoutTime": 0.05, "Sources": ["bids:raw:x"],
               "SkullStripped": False}  # fmt: skip
    Path(f"{stem}.json").write_text(json.dumps(sidecar))
    assert write_raw_dataset(bids_dir, out, [run_of(bids_dir)]) == [
        out / "sub-01/ses-a/dwi/sub-01_ses-a_acq-x_dwi.nii.gz"
    ]
    return out


def run_of(bids_dir: Path) -> DwiRun:
    stem = bids_dir / "sub-01/ses-a/dwi/sub-01_ses-a_acq-x_dwi"
    files = {name: Path(f"{stem}.{name}") for name in ("bval", "bvec")}
    return DwiRun(dwi=Path(f"{stem}.nii.gz"), entities={"subject": "01", "session": "a"}, **files)


def test_the_denoised_series_has_the_name_of_the_acquired_one(out_dir: Path, bids_dir: Path) -> None:
    found = sorted(p.relative_to(out_dir).as_posix() for p in out_dir.glob("sub-*/**/*") if p.is_file())
    dwi = "sub-01/ses-a/dwi/sub-01_ses-a_acq-x"
    assert found == sorted([
        "sub-01/ses-a/anat/sub-01_ses-a_T1w.json", "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
        f"{dwi}_dwi.bval", f"{dwi}_dwi.bvec", f"{dwi}_dwi.json", f"{dwi}_dwi.nii.gz", f"{dwi}_sbref.nii.gz",
        "sub-01/ses-a/sub-01_ses-a_scans.tsv",
    ])  # fmt: skip
    assert nb.load(out_dir / f"{dwi}_dwi.nii.gz").get_fdata().max() == 7
    assert json.loads((out_dir / f"{dwi}_dwi.json").read_text()) == {
        "EchoTime": 0.1, "PhaseEncodingDirection": "j", "TotalReadoutTime": 0.05
    }  # fmt: skip
    scans = (out_dir / "sub-01/ses-a/sub-01_ses-a_scans.tsv").read_text()
    assert "acq-x" in scans
    assert "failed" not in scans
    assert (out_dir / "participants.tsv").read_text() == "participant_id\tage\nsub-01\t30\n"
    readme = (out_dir / "README").read_text()
    assert "were denoised" in readme
    assert "A study of something." in readme
    source = bids_dir / "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz"
    assert source.stat().st_nlink == 1, "a link into the dataset would let others change it"


def test_the_validator_finds_no_error(out_dir: Path) -> None:
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed")
    command = [str(validator), str(out_dir), "--format", "json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_the_look_up_of_qsiprep_finds_it(out_dir: Path) -> None:
    from bids import BIDSLayout
    from bids.layout import Query

    layout = BIDSLayout(str(out_dir), validate=True)
    found = layout.get(
        return_type="file", subject="01", session=Query.OPTIONAL, extension=["nii", "nii.gz"],
        datatype="dwi", part=["mag", None], suffix="dwi",
    )  # fmt: skip
    assert found == [str(out_dir / "sub-01/ses-a/dwi/sub-01_ses-a_acq-x_dwi.nii.gz")]
    assert layout.get_metadata(found[0])["TotalReadoutTime"] == 0.05
    assert Path(layout.get_bval(found[0])).read_text().split()[0] == "0"
    assert layout.get(datatype="anat", suffix="T1w", return_type="file")


def test_writing_again_changes_nothing(out_dir: Path, bids_dir: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out_dir.rglob("*T1w*")}
    write_raw_dataset(bids_dir, out_dir, [run_of(bids_dir)])
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out_dir.rglob("*T1w*")} == before


def test_b0_volumes_of_reversed_phase_encoding_are_copied(out_dir: Path, bids_dir: Path) -> None:
    """The next pipeline corrects distortions with them; an inherited table becomes their own."""
    folder = bids_dir / "sub-01/ses-a/dwi"
    dwi = image(folder / "sub-01_ses-a_dir-PA_dwi.nii.gz", (6, 6, 6, 2))
    bval = bids_dir / "sub-01/sub-01_dir-PA_dwi.bval"
    bval.write_text("0 0\n")
    of_another = image(bids_dir / "sub-02/dwi/sub-02_dwi.nii.gz", (6, 6, 6, 1))
    series = [
        B0Series(dwi=dwi, tables=(bval,), subject="01", metadata={"PhaseEncodingDirection": "j-"}),
        B0Series(dwi=of_another, tables=(), subject="02"),
    ]
    write_raw_dataset(bids_dir, out_dir, [run_of(bids_dir)], series)
    copied = out_dir / "sub-01/ses-a/dwi/sub-01_ses-a_dir-PA_dwi"
    assert Path(f"{copied}.nii.gz").read_bytes() == dwi.read_bytes()
    assert json.loads(Path(f"{copied}.json").read_text()) == {"PhaseEncodingDirection": "j-"}
    assert Path(f"{copied}.bval").read_text() == "0 0\n"
    assert not (out_dir / "sub-02").exists(), "nothing of this participant was denoised"


def test_files_as_studies_have_them(out_dir: Path, bids_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Texts in another encoding, an empty table, an uncompressed series, links whose files were not fetched."""
    session = bids_dir / "sub-01/ses-a"
    (session / "anat/sub-01_ses-a_T2w.nii.gz").symlink_to("../.git/annex/not-here")
    scans = session / "sub-01_ses-a_scans.tsv"
    rows = scans.read_text().replace("acq-x_dwi.nii.gz", "acq-x_dwi.nii")
    scans.write_text(rows + "anat/sub-01_ses-a_T2w.nii.gz\tn/a\n")
    (bids_dir / "README").write_bytes("Universit\xe9\n".encode("latin-1"))
    (bids_dir / "participants.tsv").write_text("")
    write_raw_dataset(bids_dir, out_dir, [run_of(bids_dir)])
    assert (out_dir / "README").read_bytes().endswith(b"Universit\xe9\n")
    assert (out_dir / "participants.tsv").read_text() == ""
    found = (out_dir / scans.relative_to(bids_dir)).read_text()
    assert "dwi/sub-01_ses-a_acq-x_dwi.nii.gz\t2020-01-01T00:10:00" in found
    assert "T2w" not in found
    assert "1 files of sub-01" in caplog.text
    assert "sub-01_ses-a_T2w.nii.gz" in caplog.text


def test_links_to_folders_are_followed_and_hidden_folders_are_left_out(
    out_dir: Path, bids_dir: Path, tmp_path: Path
) -> None:
    store = image(tmp_path / "store/sub-01_ses-b_magnitude1.nii.gz").parent
    (store / "back").symlink_to(store)  # a loop
    (bids_dir / "sub-01/ses-b").mkdir()
    for name in ("fmap", "extra"):
        (bids_dir / "sub-01/ses-b" / name).symlink_to(store)
    (bids_dir / "sub-01/.git").mkdir()
    (bids_dir / "sub-01/.git/config").write_text("[remote]\n")
    write_raw_dataset(bids_dir, out_dir, [run_of(bids_dir)])
    for name in ("fmap", "extra"):
        assert [path.name for path in (out_dir / "sub-01/ses-b" / name).iterdir()] == [
            "sub-01_ses-b_magnitude1.nii.gz"
        ]
    assert not (out_dir / "sub-01/.git").exists()


@pytest.mark.parametrize(
    ("intended", "expected"),
    [
        ("ses-a/dwi/sub-01_ses-a_acq-x_dwi.nii", "ses-a/dwi/sub-01_ses-a_acq-x_dwi.nii.gz"),
        (
            ["bids::sub-01/ses-a/dwi/sub-01_ses-a_acq-x_dwi.nii", "ses-a/func/sub-01_ses-a_bold.nii"],
            ["bids::sub-01/ses-a/dwi/sub-01_ses-a_acq-x_dwi.nii.gz", "ses-a/func/sub-01_ses-a_bold.nii"],
        ),
        (["ses-a/dwi/sub-01_ses-a_acq-x_dwi.nii.gz"], None),
    ],
)
def test_fieldmaps_are_intended_for_the_compressed_series(
    out_dir: Path, bids_dir: Path, intended: str | list[str], expected: str | list[str] | None
) -> None:
    sidecar = bids_dir / "sub-01/ses-a/fmap/sub-01_ses-a_phasediff.json"
    sidecar.parent.mkdir()
    sidecar.write_text(json.dumps({"Site": "Zürich", "IntendedFor": intended}, indent=1))
    write_raw_dataset(bids_dir, out_dir, [run_of(bids_dir)])
    copied = out_dir / sidecar.relative_to(bids_dir)
    if expected is None:
        assert copied.read_bytes() == sidecar.read_bytes()
    else:
        assert json.loads(copied.read_text()) == {"Site": "Zürich", "IntendedFor": expected}


def test_what_is_inherited_and_series_of_b0_are_intended_for_the_compressed_series_too(
    out_dir: Path, bids_dir: Path
) -> None:
    acquired = "ses-a/dwi/sub-01_ses-a_acq-x_dwi.nii"
    of_others = "ses-a/dwi/sub-02_ses-a_dwi.nii"
    inherited = bids_dir / "phasediff.json"
    inherited.write_text(json.dumps({"IntendedFor": [acquired, f"bids::sub-01/{acquired}", of_others]}))
    dwi = image(bids_dir / "sub-01/ses-a/dwi/sub-01_ses-a_dir-PA_dwi.nii", (6, 6, 6, 1))
    series = B0Series(dwi=dwi, tables=(), subject="01", metadata={"IntendedFor": acquired})
    write_raw_dataset(bids_dir, out_dir, [run_of(bids_dir)], [series])
    assert json.loads((out_dir / inherited.name).read_text()) == {
        "IntendedFor": [f"{acquired}.gz", f"bids::sub-01/{acquired}.gz", of_others]
    }
    sidecar = out_dir / "sub-01/ses-a/dwi/sub-01_ses-a_dir-PA_dwi.json"
    assert json.loads(sidecar.read_text()) == {"IntendedFor": f"{acquired}.gz"}
    assert (sidecar.with_suffix(".nii")).exists()


def test_tables_know_no_quotes_and_may_have_blank_lines(out_dir: Path, bids_dir: Path) -> None:
    scans = bids_dir / "sub-01/ses-a/sub-01_ses-a_scans.tsv"
    row = 'anat/sub-01_ses-a_T1w.nii.gz\t"coil 12" long'
    scans.write_text(f"filename\tnote\n{row}\nanat/sub-01_ses-a_T1w.json\tn/a\n")
    (bids_dir / "participants.tsv").write_text("age\tparticipant_id\n30\tsub-01\n31\tsub-02\n\n")
    write_raw_dataset(bids_dir, out_dir, [run_of(bids_dir)])
    assert (out_dir / scans.relative_to(bids_dir)).read_text() == scans.read_text()
    assert (out_dir / "participants.tsv").read_text() == "age\tparticipant_id\n30\tsub-01\n"


def test_the_two_layouts_do_not_mix(out_dir: Path) -> None:
    check_out_dir(out_dir, "raw")
    with pytest.raises(UsageError, match="other layout"):
        check_out_dir(out_dir, "derivatives")


def test_a_lost_derivative_is_named(out_dir: Path, bids_dir: Path) -> None:
    lost = next((out_dir / DERIVATIVES).rglob("*_dwi.json"))
    lost.unlink()
    with pytest.raises(InputOutputError, match=lost.name):
        write_raw_dataset(bids_dir, out_dir, [run_of(bids_dir)])
