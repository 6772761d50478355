"""The graph of nodes: built and expanded from a dataset without data, every edge checked, nothing run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dwmri_bidsapp.workflows import init_dwmri_wf
from dwmri_bidsapp.workflows.base import run_workflow_name
from dwmri_bidsapp.workflows.execution import _write_graph
from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from nipype.pipeline.engine.utils import generate_expanded_graph

from dwmri_bidsapp import __version__
from dwmri_bidsapp.bids import DwiRun
from dwmri_bidsapp.cli.levels import methods_text
from dwmri_bidsapp.config import Config
from dwmri_bidsapp.options import DenoiseOptions

LABELS = {
    "plain": ["sub-01"],
    "sessions": ["sub-01_ses-test", "sub-01_ses-retest", "sub-02_ses-test"],
    "runs": ["sub-01_run-01", "sub-01_run-02"],
    "everything": ["sub-01_ses-a_acq-b+c_dir-AP_run-1_part-mag"],
}


def _make_run(root: Path, label: str, **given: Path) -> DwiRun:
    """Make empty files: building the graph must not read them."""
    stem = root / f"{label}_dwi"
    for suffix in (".nii.gz", ".bval", ".bvec"):
        stem.with_suffix(suffix).touch()
    subject = label.split("_")[0].removeprefix("sub-")
    return DwiRun(
        dwi=stem.with_suffix(".nii.gz"),
        bval=stem.with_suffix(".bval"),
        bvec=stem.with_suffix(".bvec"),
        entities={"subject": subject},
        **given,  # type: ignore[arg-type]
    )


def _build(tmp_path: Path, labels: list[str], *, given: tuple[str, ...] = (), **settings: Any) -> pe.Workflow:
    files = {name: tmp_path / f"{name}.nii.gz" for name in given}
    for file in files.values():
        file.touch()
    runs = [_make_run(tmp_path, label, **files) for label in labels]
    config = Config(
        bids_dir=tmp_path, out_dir=tmp_path / "out", work_dir=tmp_path / "work", nprocs=2, **settings
    )
    return init_dwmri_wf(config, runs)


def _declared_outputs(node: pe.Node) -> set[str]:
    if isinstance(node.interface, niu.IdentityInterface):
        return set(node.interface._fields)
    return set(node.interface.output_spec().copyable_trait_names())


def _declared_inputs(node: pe.Node) -> set[str]:
    if isinstance(node.interface, niu.IdentityInterface):
        return set(node.interface._fields)
    if isinstance(node.interface, niu.Merge):
        return {f"in{i + 1}" for i in range(node.interface._numinputs)}
    # A sink takes any name, and makes metadata of what it does not know.
    declared = getattr(node.interface, "_static_traits", None)
    return set(declared or node.interface.input_spec().copyable_trait_names())


def _undeclared_edges(workflow: pe.Workflow) -> list[str]:
    """Return the edges that lead from or to a field that the interface does not declare."""
    wrong = []
    for source, target, data in workflow._create_flat_graph().edges(data=True):
        for out_field, in_field in data["connect"]:
            name = out_field[0] if isinstance(out_field, tuple) else out_field
            if name not in _declared_outputs(source) or in_field not in _declared_inputs(target):
                wrong.append(f"{source.fullname}.{name} -> {target.fullname}.{in_field}")
    return wrong


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("given", [(), ("mask",), ("noise_map",), ("mask", "noise_map")])
def test_every_edge_joins_declared_fields(tmp_path: Path, labels: list[str], given: tuple[str, ...]) -> None:
    workflow = _build(tmp_path, labels, given=given)
    assert _undeclared_edges(workflow) == []
    expanded = generate_expanded_graph(workflow._create_flat_graph())
    names = {node.fullname.split(".")[1] for node in expanded.nodes()}
    assert names == {run_workflow_name(_make_run(tmp_path, label)) for label in labels}


@pytest.mark.parametrize("compare", [("mppca",), ("denoiser", "patch2self", "elsewhere")])
def test_edges_of_other_methods_join_declared_fields(tmp_path: Path, compare: tuple[str, ...]) -> None:
    series = tmp_path / "sub-01_desc-x_dwi.nii.gz"
    series.touch()
    run = replace(_make_run(tmp_path, "sub-01"), compared={"elsewhere": series})
    config = Config(bids_dir=tmp_path, out_dir=tmp_path / "out", work_dir=tmp_path / "work", nprocs=2,
                    compare=compare, derivatives={"elsewhere": tmp_path})  # fmt: skip
    workflow = init_dwmri_wf(config, [run])
    assert _undeclared_edges(workflow) == []
    graph = workflow._create_flat_graph()
    names = {node.name for node in graph.nodes()}
    assert {f"ds_{method}_dwi" for method in compare} <= names
    (draw,) = (node for node in graph.nodes() if node.name == "draw_methods")
    assert draw.inputs.methods == ["denoised", *compare]
    assert draw.inputs.trained == ["denoised", *(name for name in compare if name == "denoiser")]
    text = workflow.visit_desc()
    assert {"mppca": "Marchenko", "denoiser": "DenoiserNet"}[compare[0]] in text


def test_a_run_without_a_file_elsewhere_leaves_that_method_out(tmp_path: Path) -> None:
    config = Config(bids_dir=tmp_path, out_dir=tmp_path / "out", work_dir=tmp_path / "work", nprocs=2,
                    compare=("elsewhere", "mppca"), derivatives={"elsewhere": tmp_path})  # fmt: skip
    names = {
        node.name for node in init_dwmri_wf(config, [_make_run(tmp_path, "sub-01")])._create_flat_graph()
    }
    assert "ds_mppca_dwi" in names
    assert "ds_elsewhere_dwi" not in names


def test_the_denoiser_differs_in_network_and_loss_only(tmp_path: Path) -> None:
    method = DenoiseOptions(max_steps=7, block=4)
    workflow = _build(tmp_path, ["sub-01"], method=method, compare=("denoiser",))
    own = workflow.get_node("sub_01_wf.denoise_wf.denoise").inputs
    other = workflow.get_node("sub_01_wf.compare_denoiser_wf.denoise_wf.denoise").inputs
    assert DenoiseOptions(**other.options) == replace(method, init="random", model="denoiser", loss="l1")
    assert own.checkpoint_dir != other.checkpoint_dir


def test_the_check_of_edges_finds_a_wrong_one(tmp_path: Path) -> None:
    workflow = _build(tmp_path, ["sub-01"])
    source = workflow.get_node("sub_01_wf.preparation_wf.outputnode")
    target = workflow.get_node("sub_01_wf.denoise_wf.inputnode")
    workflow.get_node("sub_01_wf").connect(source, "mask_flie", target, "noise_map")
    assert len(_undeclared_edges(workflow)) == 1


@pytest.mark.parametrize("given", [(), ("mask", "noise_map")])
def test_mandatory_inputs_are_connected_or_set(tmp_path: Path, given: tuple[str, ...]) -> None:
    graph = _build(tmp_path, ["sub-01"], given=given)._create_flat_graph()
    for node in graph.nodes():
        connected = {field for _, _, data in graph.in_edges(node, data=True) for _, field in data["connect"]}
        mandatory = set(node.inputs.traits(mandatory=True)) - connected
        unset = [name for name in mandatory if str(getattr(node.inputs, name)) in ("<undefined>", "")]
        assert not unset, f"{node.fullname}: {unset}"


def test_a_given_map_reaches_the_nodes_that_use_it(tmp_path: Path) -> None:
    graph = _build(tmp_path, ["sub-01"], given=("mask", "noise_map"))._create_flat_graph()
    fed = {
        (target.name, field)
        for _, target, data in graph.edges(data=True)
        for _, field in data["connect"]
        if field in ("mask_file", "noise_map")
    }
    assert {("prepare", "mask_file"), ("prepare", "noise_map"), ("denoise", "noise_map")} <= fed
    graph = _build(tmp_path, ["sub-01"])._create_flat_graph()
    fields = {f for _, node, d in graph.edges(data=True) if node.name == "denoise" for _, f in d["connect"]}
    assert fields == {"dwi_file", "gradients_file", "mask_file"}


def test_options_reach_the_denoising_node(tmp_path: Path) -> None:
    method = DenoiseOptions(b0_denoising=False, max_steps=7)
    workflow = _build(tmp_path, ["sub-01"], method=method, omp_nthreads=2)
    node = workflow.get_node("sub_01_wf.denoise_wf.denoise")
    assert DenoiseOptions(**node.inputs.options) == method
    assert (node.n_procs, node.inputs.num_threads, node.is_gpu_node()) == (2, 2, False)


def test_low_memory_means_one_series_at_a_time(tmp_path: Path) -> None:
    for low_mem, expected in ((False, {"denoise": 1, "measure": 1}), (True, {"denoise": 2, "measure": 2})):
        graph = _build(tmp_path, ["sub-01"], low_mem=low_mem, omp_nthreads=1)._create_flat_graph()
        assert {node.name: node.n_procs for node in graph.nodes() if node.name in expected} == expected


def test_other_weights_are_other_inputs(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    hashes = []
    for content in ("old", "new"):
        weights.write_text(content)
        workflow = _build(tmp_path, ["sub-01"], method=DenoiseOptions(init=str(weights)))
        node = workflow.get_node("sub_01_wf.denoise_wf.denoise")
        hashes.append(node.inputs.get_hashval(hash_method="content")[1])
    assert hashes[0] != hashes[1]


def test_another_version_of_the_program_does_everything_anew(tmp_path: Path) -> None:
    nodes = _build(tmp_path, LABELS["plain"], compare=("mppca",))._get_all_nodes()
    found = {
        node.fullname: node.inputs.version
        for node in nodes
        if "version" in node.inputs.copyable_trait_names()
    }
    assert {name.rpartition(".")[2] for name in found} == {
        "prepare",
        "denoise",
        "measure",
        "draw",
        "draw_methods",
    }
    # DIPY's MP-PCA goes by the version of DIPY
    assert {found[name] for name in found if name != "compare_mppca_wf.denoise"} == {__version__}


def test_a_gpu_node_takes_one_slot_whatever_its_threads(tmp_path: Path) -> None:
    workflow = _build(tmp_path, ["sub-01"], device="cuda", gpu_ids=(0, 3), omp_nthreads=2)
    node = workflow.get_node("sub_01_wf.denoise_wf.denoise")
    assert node.is_gpu_node()
    assert node.n_procs == 1
    assert list(node.inputs.gpu_ids) == [0, 3]


def test_crash_files_go_to_the_log_of_the_participant(tmp_path: Path) -> None:
    graph = _build(tmp_path, LABELS["sessions"])._create_flat_graph()
    for node in graph.nodes():
        subject = node.fullname.split(".")[1].split("_")[1]
        expected = tmp_path / "out" / f"sub-{subject}" / "log"
        assert Path(node.config["execution"]["crashdump_dir"]).parent == expected


def test_the_graph_can_be_written_without_graphviz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    _write_graph(_build(tmp_path, ["sub-01"]), tmp_path / "log/graph.dot")
    assert "denoise" in (tmp_path / "log/graph.dot").read_text()


def test_boilerplate_says_what_was_done(tmp_path: Path) -> None:
    text = _build(tmp_path, LABELS["runs"], method=DenoiseOptions(loss="mse")).visit_desc()
    assert "mean squared error" in text
    assert text.count("MultiScaleDetailNet") == 1
    assert "was given" in _build(tmp_path, ["sub-01"], given=("mask",)).visit_desc()


def test_boilerplate_tells_runs_apart_that_were_treated_differently(tmp_path: Path) -> None:
    runs = [_make_run(tmp_path, f"sub-{subject}") for subject in ("01", "02", "03")]
    config = Config(bids_dir=tmp_path, out_dir=tmp_path / "out", work_dir=tmp_path / "work", nprocs=2)
    alike = methods_text(config, runs)
    assert alike == methods_text(config, runs[:1])

    runs[1] = replace(runs[1], mask=tmp_path / "mask.nii.gz")
    intro, of_most, of_one = methods_text(config, runs).split("\n\n")
    assert alike.startswith(intro)
    assert of_most == "**2 of 3 runs, such as sub-01.** " + alike.removeprefix(intro)
    assert of_one.startswith("**1 of 3 runs, such as sub-02.** ")
    assert "mask was given" in of_one


def test_a_file_that_is_gone_is_no_matter_of_the_graph(tmp_path: Path) -> None:
    """Its run fails alone, when its files are opened."""
    run = replace(_make_run(tmp_path, "sub-01"), compared={"elsewhere": tmp_path / "gone.nii.gz"})
    config = Config(bids_dir=tmp_path, out_dir=tmp_path / "out", work_dir=tmp_path / "work", nprocs=2,
                    compare=("elsewhere",), derivatives={"elsewhere": tmp_path})  # fmt: skip
    assert "elsewhere" in methods_text(config, [run])


@pytest.mark.parametrize(
    ("options", "said", "not_said"),
    [
        ({}, ["a single *b*=0 volume", "was denoised without a prediction", "at most 100 steps"], []),
        ({}, ["each shell of more than six diffusion directions"], []),
        ({"b0_denoising": False}, ["(and no *b*=0 volume)"], ["single *b*=0"]),
        ({"blend": False}, ["(but no single *b*=0 volume, which no other volume predicts)"], ["without a prediction"]),
        ({"max_steps": 0}, ["without any training on this run", "trained on simulated runs"], ["steps", "Loss"]),
        ({"max_steps": 0, "init": "random"}, ["random weights", "without any training"], ["trained from", "steps"]),
    ],
)  # fmt: skip
def test_boilerplate_says_no_more_than_was_done(
    tmp_path: Path, options: dict[str, Any], said: list[str], not_said: list[str]
) -> None:
    text = _build(tmp_path, ["sub-01"], method=DenoiseOptions(**options)).visit_desc()
    assert [words for words in said if words not in text] == []
    assert [words for words in not_said if words in text] == []
