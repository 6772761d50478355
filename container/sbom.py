"""Print what is in this image as a CycloneDX bill of materials: Debian's packages and Python's."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from importlib import metadata
from typing import Any

APPLICATION = "dwmri-bidsapp"


def python_components() -> list[dict[str, Any]]:
    """Return the packages that this interpreter finds, by name."""
    versions = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    return [_component(f"pkg:pypi/{name.lower().replace('_', '-')}@{version}", name, version)
            for name, version in sorted(versions.items(), key=lambda item: item[0].lower())]  # fmt: skip


def debian_components() -> list[dict[str, Any]]:
    """Return the packages that dpkg has installed; none where there is no dpkg."""
    command = ["dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${Architecture}\n"]
    try:
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        return []
    rows = [line.split("\t") for line in listed.splitlines()]
    return [_component(f"pkg:deb/debian/{name}@{version}?arch={arch}", name, version)
            for name, version, arch in rows]  # fmt: skip


def bill_of_materials() -> dict[str, Any]:
    """Return the bill as JSON has it."""
    python = python_components()
    own = next(component for component in python if component["name"] == APPLICATION)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(python))}",
        "version": 1,
        "metadata": {"component": {**own, "type": "application"}},
        "components": [component for component in python if component is not own] + debian_components(),
    }


def _component(purl: str, name: str, version: str) -> dict[str, Any]:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


if __name__ == "__main__":
    json.dump(bill_of_materials(), sys.stdout, indent=1)
