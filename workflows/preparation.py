"""Check a run before anything is computed."""

from __future__ import annotations

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from .. import __version__
from ..interfaces import PrepareRun


def init_preparation_wf(
    *, b0_threshold: float, given_mask: bool, given_noise_map: bool, name: str = "preparation_wf"
) -> Workflow:
    """Check image and gradient table, and find the brain.

    Parameters
    ----------
    b0_threshold
        b-values up to this are b=0 (s/mm²).
    given_mask, given_noise_map
        Whether these inputs will be set.
    name
        Unique name of this workflow.

    Inputs
    ------
    dwi_file
        Diffusion-weighted series.
    bval_file, bvec_file
        b-values (s/mm²) and directions (frame of FSL).
    mask_file, noise_map
        Brain mask, and noise standard deviation in signal units, if given.

    Outputs
    -------
    gradients_file
        Checked gradient table (npz).
    mask_file
        Brain mask.
    preparation_file
        Facts and warnings (JSON).
    bval_file, bvec_file
        Copies, byte for byte.
    """
    workflow = Workflow(name=name)
    made = "was made from the mean *b*=0 volume (`median_otsu` of *DIPY* [@garyfallidis2014; @otsu1979])"
    workflow.__desc__ = (
        f"The gradient table was checked and grouped into shells, volumes up to *b*={b0_threshold:g} s/mm² being "
        f"taken as *b*=0. The brain mask {'was given' if given_mask else made}. "
    )
    inputs = ["dwi_file", "bval_file", "bvec_file", "mask_file", "noise_map"]
    outputs = ["gradients_file", "mask_file", "preparation_file", "bval_file", "bvec_file"]
    inputnode = pe.Node(niu.IdentityInterface(fields=inputs), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=outputs), name="outputnode")
    prepare = pe.Node(PrepareRun(b0_threshold=b0_threshold, version=__version__), name="prepare", mem_gb=1.0)

    absent = {"mask_file": not given_mask, "noise_map": not given_noise_map}
    workflow.connect([
        (inputnode, prepare, [(field, field) for field in inputs if not absent.get(field)]),
        (prepare, outputnode, [(field, field) for field in outputs]),
    ])  # fmt: skip
    return workflow
