"""Root files of the derivatives, written by many jobs at once, and the methods text."""

from __future__ import annotations

import json
import os
import re
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dwmri_bidsapp.boilerplate import bibliography, cited_keys, markdown_to_html, references
from dwmri_bidsapp.config import Config
from dwmri_bidsapp.derivatives import (
    BIDSIGNORE,
    atomic_write,
    check_out_dir,
    dataset_description,
    write_boilerplate,
    write_config,
    write_provenance,
    write_root_files,
)
from dwmri_bidsapp.errors import UsageError


@pytest.fixture
def config(tmp_path: Path) -> Config:
    bids = tmp_path / "my study"
    bids.mkdir()
    raw = {"Name": "Study", "BIDSVersion": "1.9.0", "License": "CC0", "DatasetDOI": "doi:10.1/x"}
    (bids / "dataset_description.json").write_text(json.dumps(raw))
    links = {"qsiprep": tmp_path / "q", "truth": tmp_path / "t"}
    return Config(bids_dir=bids, out_dir=tmp_path / "out", derivatives=links)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_dataset_description_says_where_all_came_from(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "DWMRI_BIDSAPP_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    description = dataset_description(config)
    assert description["DatasetType"] == "derivative"
    assert description["License"] == "CC0"
    assert description["GeneratedBy"][0]["Name"] == "dwmri-bidsapp"
    assert "Container" not in description["GeneratedBy"][0]
    assert description["SourceDatasets"] == [{"URL": config.bids_dir.as_uri(), "DOI": "doi:10.1/x"}]
    assert set(description["DatasetLinks"]) == {"raw", "qsiprep"}
    assert description["DatasetLinks"]["raw"].endswith("/my%20study")


@pytest.mark.parametrize(
    ("variable", "value", "container"),
    [
        ("APPTAINER_CONTAINER", "/images/app.sif", {"Type": "apptainer", "Tag": "app.sif"}),
        ("DWMRI_BIDSAPP_IMAGE", "dwmri-bidsapp:1.0", {"Type": "docker", "Tag": "dwmri-bidsapp:1.0"}),
    ],
)
def test_container_is_named(
    config: Config, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, container: dict[str, str]
) -> None:
    monkeypatch.setenv(variable, value)
    assert dataset_description(config)["GeneratedBy"][0]["Container"] == container


def test_root_files_keep_what_the_user_wrote(config: Config) -> None:
    config.out_dir.mkdir()
    (config.out_dir / "README").write_text("mine")
    (config.out_dir / ".bidsignore").write_text("my_notes.txt\nlogs\n")
    for _ in range(2):
        write_root_files(config)
    assert (config.out_dir / "README").read_text() == "mine"
    lines = (config.out_dir / ".bidsignore").read_text().splitlines()
    assert lines[:2] == ["my_notes.txt", "logs"]
    assert sorted(lines) == sorted({"my_notes.txt", *BIDSIGNORE})
    assert sorted(path.name for path in config.out_dir.iterdir()) == [
        ".bidsignore",
        "README",
        "dataset_description.json",
    ]


def test_out_dir_of_another_dataset_is_refused(config: Config) -> None:
    check_out_dir(config.out_dir)  # does not exist yet
    write_root_files(config)
    check_out_dir(config.out_dir)
    with pytest.raises(UsageError, match="not a derivative"):
        check_out_dir(config.bids_dir)
    description = config.out_dir / "dataset_description.json"
    description.write_text(json.dumps({"GeneratedBy": [{"Name": "qsiprep"}]}))
    with pytest.raises(UsageError, match="qsiprep"):
        check_out_dir(config.out_dir)


def test_readers_never_see_a_part(tmp_path: Path) -> None:
    path = tmp_path / "shared.json"
    texts = [json.dumps({"writer": i, "long": [i] * 20000}) for i in range(4)]
    atomic_write(path, texts[0])
    stop = threading.Event()

    def write(text: str) -> None:
        while not stop.is_set():
            atomic_write(path, text)

    writers = [threading.Thread(target=write, args=(text,)) for text in texts]
    for writer in writers:
        writer.start()
    seen: set[str] = set()
    enough = time.monotonic() + 0.5
    # a busy machine may not let a writer run at once
    while time.monotonic() < enough or (len(seen) < 2 and time.monotonic() < enough + 20):
        seen.add(path.read_text())
    stop.set()
    for writer in writers:
        writer.join()
    assert seen <= set(texts)
    assert len(seen) > 1, "the writers were not at work"
    assert list(tmp_path.iterdir()) == [path]


def test_files_can_be_read_by_the_group(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = atomic_write(tmp_path / "new" / "file", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_file_with_the_same_content_is_left_alone(tmp_path: Path) -> None:
    path = atomic_write(tmp_path / "file", "ä")
    os.utime(path, (1, 1))
    atomic_write(path, "ä")
    assert path.stat().st_mtime == 1
    atomic_write(path, "b")
    assert path.read_text() == "b"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = atomic_write(tmp_path / "file", "old")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_records_of_a_call(config: Config) -> None:
    assert Config.from_toml(write_config(config, "01")) == config
    record = read(write_provenance(config, "01", {"seconds": 2.5, "failures": ["x"]}))
    assert record["run_uuid"] == config.run_uuid
    assert record["failures"] == ["x"]
    assert record["versions"]["numpy"] == __import__("numpy").__version__
    assert set(config.out_dir.rglob("*.*")) == {
        config.log_dir("01") / "config.toml", config.log_dir("01") / "provenance.json",
    }  # fmt: skip


def test_bibliography_has_all_that_a_reference_needs() -> None:
    assert len(references()) == bibliography().count("\n@") + 1
    for key, entry in references().items():
        assert {"author", "title", "year"} <= set(entry), key
        assert "doi" in entry or "url" in entry, key
        assert key.endswith(entry["year"]), key


def test_everything_that_the_workflows_cite_is_there() -> None:
    import dwmri_bidsapp.workflows

    folder = Path(dwmri_bidsapp.workflows.__file__).parent
    cited = {
        key for file in folder.glob("*.py") for key in re.findall(r"@([a-z]+\d{4}[a-z]?)", file.read_text())
    }
    assert "garyfallidis2014" in cited
    assert cited <= set(references())


def test_methods_text_becomes_a_page(tmp_path: Path) -> None:
    text = "# Methods\n\nWith *DIPY* [@garyfallidis2014; @basser1994],\nas b < 50 & more; @batson2019 did.\n\nEnd."
    markdown, page, bib = write_boilerplate(tmp_path, text)
    assert markdown.read_text() == text + "\n"
    assert bib.read_text() == bibliography()
    html = page.read_text()
    assert "<h1>Methods</h1>" in html
    assert "<em>DIPY</em> (" in html
    assert "b &lt; 50 &amp; more" in html
    assert ">Garyfallidis et al., 2014</a>; <a" in html
    assert "<p>End.</p>" in html
    assert re.findall(r'<li id="(\w+)"', html) == ["basser1994", "batson2019", "garyfallidis2014"]
    assert set(re.findall(r'href="#(\w+)"', html)) == {"basser1994", "batson2019", "garyfallidis2014"}
    assert "<link" not in html
    assert "<script" not in html


def test_unknown_citation_is_an_error() -> None:
    assert cited_keys("[@a2000; @b2001] @a2000") == ["a2000", "b2001"]
    weights = "from *weights* `me@lab.pt`, `@lab.pt` and `x-@lab*.pt*`"
    assert cited_keys(weights) == []
    page = markdown_to_html(weights)
    assert (
        "<em>weights</em> <code>me@lab.pt</code>, <code>@lab.pt</code> and <code>x-@lab*.pt*</code>" in page
    )
    with pytest.raises(KeyError, match="nobody1900"):
        markdown_to_html("[@nobody1900]")
