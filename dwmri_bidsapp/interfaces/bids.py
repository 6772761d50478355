"""The sink of all derivatives, with the names of this application."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

from nipype.interfaces.base import File, InputMultiObject
from niworkflows.interfaces.bids import DerivativesDataSink as NiworkflowsDataSink

from .base import recorded_errors

_IO_SPEC = json.loads(
    (resources.files("dwmri_bidsapp") / "data" / "io_spec.json").read_text(encoding="utf-8")
)


class _SinkInputSpec(NiworkflowsDataSink.input_spec):
    source_file = InputMultiObject(
        File(exists=False),
        hash_files=False,
        mandatory=True,
        desc="run whose entities name the output; only its name counts, and every sink would read gigabytes to hash it",
    )


class DerivativesDataSink(NiworkflowsDataSink):
    """Write a file under its BIDS name, with the entities of its source.

    Unlike niworkflows', it writes straight into ``base_directory``, keeps ``part`` (magnitude and
    phase would get one name), knows ``dwimap``, metrics and time series, leaves headers alone, does not
    read its source, and replaces each file in one move.
    """

    input_spec = _SinkInputSpec
    out_path_base = ""
    _config_entities = frozenset(entity["name"] for entity in _IO_SPEC["entities"])
    _config_entities_dict = _IO_SPEC["entities"]
    _file_patterns = tuple(_IO_SPEC["default_path_patterns"])

    def __init__(self, **inputs: Any) -> None:
        # The check would change time units and orientation codes.
        super().__init__(check_hdr=False, **inputs)

    def _run_interface(self, runtime: Any) -> Any:
        out_dir = Path(self.inputs.base_directory)
        with recorded_errors(Path(runtime.cwd)):
            out_dir.mkdir(parents=True, exist_ok=True)
            # Inside, because only within one file system is a move a single step; named after the node, which finds
            # again what it left when it was killed.
            partial = out_dir / f".partial-{hashlib.sha256(os.fsencode(runtime.cwd)).hexdigest()[:16]}"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                self.inputs.base_directory = str(partial)
                runtime = super()._run_interface(runtime)
                for file in [path for path in partial.rglob("*") if path.is_file()]:
                    target = out_dir / file.relative_to(partial)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, target)
            finally:
                self.inputs.base_directory = str(out_dir)
                shutil.rmtree(partial, ignore_errors=True)
            self._results["out_file"] = [
                str(out_dir / Path(file).relative_to(partial)) for file in self._results["out_file"]
            ]
            self._results.pop("out_meta", None)  # of the partial folder; nothing asks for it
        return runtime
