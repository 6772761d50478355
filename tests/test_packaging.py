"""The tree, its metadata, the lock and the pages agree with each other."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dwmri_bidsapp

ROOT = Path(__file__).resolve().parents[1]
SOURCE_FOLDERS = {"dwmri_bidsapp": ROOT / "dwmri_bidsapp", "dwmri_bidsapp.workflows": ROOT / "workflows"}
TEXT_SUFFIXES = {
    ".py",
    ".cfg",
    ".toml",
    ".md",
    ".yml",
    ".yaml",
    ".cff",
    ".lock",
    ".j2",
    ".html",
    ".json",
    ".def",
    ".in",
}
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
MARKDOWN_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def lock() -> dict[str, str]:
    pins: dict[str, str] = {}
    for line in (ROOT / "requirements.lock").read_text().split():
        name, _, version = line.partition("==")
        pins[canonicalize_name(name)] = version
    return pins


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def files_of_the_tree() -> list[Path]:
    """Every text file that belongs to the project, tracked or about to be."""
    folders = ["dwmri_bidsapp", "workflows", "tests", "docs", "benchmarks", ".ci"]
    inside = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    top = [*ROOT.iterdir(), *inside]
    return [path for path in top if path.is_file() and (path.suffix in TEXT_SUFFIXES or not path.suffix)]


def installed_name(path: Path) -> str:
    """The place of a source file inside the wheel."""
    for package, folder in SOURCE_FOLDERS.items():
        if path.is_relative_to(folder):
            return f"{package.replace('.', '/')}/{path.relative_to(folder).as_posix()}"
    raise AssertionError(f"{path} is in no package")


def source_files() -> list[Path]:
    """Every file of the packages that users must get."""
    found = [path for folder in SOURCE_FOLDERS.values() for path in folder.rglob("*") if path.is_file()]
    return [path for path in found if "__pycache__" not in path.parts]


def run_python(code: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter whose HOME is an empty folder."""
    home = tmp_path / "home"
    home.mkdir()
    # What conftest.py sets is taken back: the application must do it itself.
    hidden = {"TEMPLATEFLOW_HOME", "NO_ET", "NIPYPE_NO_ET", "MPLBACKEND"}
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    env |= {"HOME": str(home), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )


def test_setup_cfg_lists_every_package_folder(setup_cfg: configparser.ConfigParser) -> None:
    listed = set(lines_of(setup_cfg["options"]["packages"]))
    present = {
        ".".join([package, *init.parent.relative_to(folder).parts])
        for package, folder in SOURCE_FOLDERS.items()
        for init in folder.rglob("__init__.py")
    }
    assert listed == present


def test_every_module_stands_in_a_package() -> None:
    orphans = [
        path for path in source_files() if path.suffix == ".py" and not (path.parent / "__init__.py").exists()
    ]
    assert not orphans


def test_wheel_holds_every_source_file_under_its_installed_name(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in SOURCE_FOLDERS.values():
        shutil.copytree(folder, tree / folder.name, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(tmp_path),
    ]
    subprocess.run([sys.executable, "-m", *command, str(tree)], check=True, capture_output=True)

    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {installed_name(path) for path in source_files()}


def test_one_version_everywhere(setup_cfg: configparser.ConfigParser) -> None:
    version = setup_cfg["metadata"]["version"]
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    newest_change = re.search(r"^## (\S+)", (ROOT / "CHANGES.md").read_text(), flags=re.MULTILINE)
    assert cited is not None
    assert newest_change is not None
    assert {dwmri_bidsapp.__version__, cited[1], newest_change[1]} == {version}


def test_lock_pins_exactly_and_without_local_versions() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    loose = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)]
    assert not loose
    assert "torch==2.13.0" in lines
    assert len({canonicalize_name(line.partition("==")[0]) for line in lines}) == len(lines)


@pytest.mark.parametrize("group", ["install_requires", "test", "dev"])
def test_lock_satisfies_setup_cfg(
    group: str, setup_cfg: configparser.ConfigParser, lock: dict[str, str]
) -> None:
    runtime = group == "install_requires"
    text = setup_cfg["options"][group] if runtime else setup_cfg["options.extras_require"][group]
    for line in lines_of(text):
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        assert name in lock, f"{line} of setup.cfg is not locked"
        assert requirement.specifier.contains(lock[name]), f"{line} does not admit {lock[name]}"


def test_lock_is_closed(setup_cfg: configparser.ConfigParser, lock: dict[str, str]) -> None:
    """Whatever a locked package requires is locked too, at a version that it admits."""
    for name in lock:
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            needed = canonicalize_name(requirement.name)
            if re.match(r"nvidia-|cuda-|triton", needed):
                continue
            assert needed in lock, f"{name} needs {text}"
            assert requirement.specifier.contains(lock[needed]), f"{name} needs {text}, locked {lock[needed]}"


def test_every_import_is_declared(setup_cfg: configparser.ConfigParser) -> None:
    declared = {
        canonicalize_name(Requirement(line).name)
        for line in lines_of(setup_cfg["options"]["install_requires"])
    }
    distributions = importlib.metadata.packages_distributions()
    missing = {}
    for path in source_files():
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules = [node.module]
            else:
                continue
            for module in {name.partition(".")[0] for name in modules}:
                if module in sys.stdlib_module_names or module == "dwmri_bidsapp":
                    continue
                owners = {canonicalize_name(owner) for owner in distributions.get(module, [module])}
                if not owners & declared:
                    missing[path.relative_to(ROOT).as_posix()] = module
    assert not missing


def test_importing_the_package_is_cheap(tmp_path: Path) -> None:
    heavy = {"torch", "nipype", "numpy", "bids", "matplotlib"}
    result = run_python(f"import sys, dwmri_bidsapp; print({heavy!r} & set(sys.modules))", tmp_path)
    assert result.stdout.strip() == "set()", result.stderr


def test_console_script_tells_its_version_at_once(tmp_path: Path) -> None:
    code = """
import sys
from dwmri_bidsapp.cli import main
print({"torch", "nipype", "bids", "niworkflows", "dipy"} & set(sys.modules) or main(["--version"]))
"""
    result = run_python(code, tmp_path)
    assert result.stdout.split() == ["dwmri-bidsapp", dwmri_bidsapp.__version__, "0"], result.stderr


def test_imports_of_the_application_leave_home_alone(tmp_path: Path) -> None:
    code = """
from dwmri_bidsapp.config import Config
from dwmri_bidsapp.machine import set_environment
set_environment(Config(bids_dir="bids", out_dir="out", work_dir="work"))
import dwmri_bidsapp.reports, dwmri_bidsapp.workflows
"""
    result = run_python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert not list((tmp_path / "home").iterdir())


def test_torch_library_imports_nothing_from_above(tmp_path: Path) -> None:
    code = "import sys, dwmri_bidsapp.denoising; print({'nipype', 'bids', 'niworkflows'} & set(sys.modules))"
    result = run_python(code, tmp_path)
    assert result.stdout.strip() == "set()", result.stderr


def test_readme_code_runs(tmp_path: Path) -> None:
    blocks = PYTHON_BLOCK.findall((ROOT / "README.md").read_text())
    assert any("MultiScaleDetailNet" in block and "EdgeAwareLoss" in block for block in blocks)
    result = run_python("\n".join(blocks), tmp_path)
    assert result.returncode == 0, result.stderr


def test_links_between_the_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGES.md", *(ROOT / "docs").glob("*.md")]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in MARKDOWN_LINK.findall(page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken


def test_usage_page_has_every_option_and_no_other() -> None:
    from dwmri_bidsapp.cli.benchmark import build_benchmark_parser
    from dwmri_bidsapp.cli.parser import build_parser, build_subcommand_parser

    datasets = [build_subcommand_parser(command) for command in ("demo", "simulate")]
    parsers = [build_parser(), build_benchmark_parser(), *datasets]
    actions = [action for parser in parsers for action in parser._actions if action.option_strings]
    explained = set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", (ROOT / "docs" / "usage.md").read_text()))
    forgotten = [action.option_strings for action in actions if not explained & set(action.option_strings)]
    known = {option for action in actions for option in action.option_strings}
    assert not forgotten
    assert {option for option in explained if option.startswith("--")} <= known


def test_no_file_names_a_path_of_one_machine() -> None:
    private = [r"/(?:root|home/\w+|Users/\w+)/"]
    if len(ROOT.parts) > 2 and ROOT.parts[1] != "tmp":
        private.append(re.escape(f"/{ROOT.parts[1]}/{ROOT.parts[2]}/"))
    pattern = re.compile("|".join(private))
    named = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in files_of_the_tree()
        if (match := pattern.search(path.read_text(errors="replace")))
    ]
    assert not named
