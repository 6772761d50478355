"""Denoise a run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, Str, TraitedSpec, isdefined, traits

from ..options import DenoiseOptions
from ..preparation import load_noise_map, open_series, read_gradients
from ..series import copy_series
from ..stopping import signals_wait_for_checkpoint
from .base import RunInterface, save_image, write_json, write_tsv


class _DenoiseRunInputSpec(BaseInterfaceInputSpec):
    dwi_file = File(exists=True, mandatory=True, desc="diffusion-weighted series")
    gradients_file = File(exists=True, mandatory=True, desc="checked gradient table (npz)")
    mask_file = File(exists=True, mandatory=True, desc="brain mask")
    noise_map = File(exists=True, desc="noise standard deviation in signal units, estimated where not given")
    options = traits.Dict(Str, mandatory=True, desc="fields of DenoiseOptions")
    weights_file = File(
        exists=True, desc="the weights of the options: denoised anew when their content changes"
    )
    version = Str(desc="version of the program: another one denoises anew")
    output_dtype = Str("float32", usedefault=True, desc="data type of the denoised series")
    use_gpu = traits.Bool(False, usedefault=True, desc="takes one of the GPU slots")
    gpu_ids = traits.List(traits.Int, nohash=True, desc="CUDA devices that may be taken")
    lock_dir = Str(nohash=True, desc="folder of the locks that say which CUDA device is taken")
    checkpoint_dir = Str(nohash=True, desc="folder where an interrupted training is continued from")
    low_mem = traits.Bool(False, usedefault=True, nohash=True, desc="keep the values of the run in files")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="CPU threads")


class _DenoiseRunOutputSpec(TraitedSpec):
    denoised_file = File(exists=True, desc="denoised series")
    sigma_file = File(exists=True, desc="noise standard deviation, in signal units")
    uncertainty_file = File(exists=True, desc="standard deviation of the error that is left, in signal units")
    timeseries_file = File(exists=True, desc="course of the training (TSV)")
    info_file = File(exists=True, desc="how it went (JSON)")


class DenoiseRun(RunInterface):
    """Denoise a run: see :func:`dwmri_bidsapp.denoising.denoise`."""

    input_spec = _DenoiseRunInputSpec
    output_spec = _DenoiseRunOutputSpec

    def _work(self, folder: Path) -> dict[str, Any]:
        import torch

        from ..denoising import denoise

        inputs = self.inputs
        torch.set_num_threads(inputs.num_threads)
        image = open_series(Path(inputs.dwi_file))
        mask_xyz = np.asanyarray(nb.load(inputs.mask_file).dataobj) > 0
        sigma_xyz = load_noise_map(Path(inputs.noise_map), image) if isdefined(inputs.noise_map) else None
        with self._device() as device, progress_bar() as progress, signals_wait_for_checkpoint():
            # Not compressed: the sink compresses once, and the next nodes read it volume by volume.
            denoised_file = folder / "denoised.nii"
            denoised = denoise(
                copy_series(image, Path(inputs.dwi_file), denoised_file, inputs.output_dtype),
                read_gradients(Path(inputs.gradients_file)),
                mask_xyz,
                DenoiseOptions(**inputs.options),
                sigma_xyz=sigma_xyz,
                device=device,
                checkpoint_dir=self._checkpoint_dir(),
                progress=progress,
                overwrite=True,
                scratch_dir=folder if inputs.low_mem else None,
            )
        return {
            "denoised_file": str(denoised_file),
            "sigma_file": str(save_image(denoised.sigma_xyz, image, folder / "sigma.nii")),
            "uncertainty_file": str(save_image(denoised.uncertainty_xyz, image, folder / "uncertainty.nii")),
            "timeseries_file": str(write_tsv(denoised.history, folder / "timeseries.tsv")),
            "info_file": str(write_json(denoised.info, folder / "info.json")),
        }

    def _checkpoint_dir(self) -> Path | None:
        """Return a folder for these very inputs: a training never goes on with other ones."""
        if not isdefined(self.inputs.checkpoint_dir):
            return None
        _, key = self.inputs.get_hashval(hash_method="content")
        return Path(self.inputs.checkpoint_dir) / key

    def _device(self) -> contextlib.AbstractContextManager[str]:
        if not self.inputs.use_gpu:
            return contextlib.nullcontext("cpu")
        # Each node may be a job of its own, on a machine of its own, where cuda:0 is another device.
        place = f"{platform.node()}-{os.environ.get('SLURM_JOB_ID', '')}"
        return gpu_slot(self.inputs.gpu_ids, Path(self.inputs.lock_dir) / place)


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[int, int, float], None]]:
    """Yield what a training tells its progress to; shown on terminals only."""
    from tqdm import tqdm

    with tqdm(desc="denoising", unit="step", disable=None, leave=False) as bar:

        def show(step: int, n_steps: int, heldout_loss: float) -> None:
            bar.total = n_steps
            bar.set_postfix(heldout_loss=f"{heldout_loss:.4f}", refresh=False)
            bar.update(step - bar.n)

        yield show


@contextlib.contextmanager
def gpu_slot(gpu_ids: list[int], lock_dir: Path) -> Iterator[str]:
    """Take the first CUDA device that no other node of this workflow uses, and give it back.

    Nipype only counts GPU nodes; which device one gets is decided here. The lock belongs to
    the process, so that a killed one gives its device back too.

    Yields
    ------
    str
        Such as ``"cuda:1"``.
    """
    lock_dir = _with_locks(lock_dir)
    with contextlib.ExitStack() as locks:
        streams = {gpu: locks.enter_context(open(lock_dir / f"cuda-{gpu}.lock", "w")) for gpu in gpu_ids}
        while True:
            for gpu, stream in streams.items():
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield f"cuda:{gpu}"
                return
            time.sleep(0.2)


def _with_locks(folder: Path) -> Path:
    """Make the folder, or one of its name for temporary files where its file system (Lustre, NFS) knows no locks."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with open(folder / "try.lock", "w") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        # The devices are those of this machine, and so may the locks be.
        folder = Path(tempfile.gettempdir()) / f"dwmri-bidsapp-{folder.parent.name}-{folder.name}"
        folder.mkdir(exist_ok=True)
    return folder
