#!/usr/bin/env python3
"""Validates yocto/kas/*.yml against kas's own schema, and the promises of ours that a schema cannot know.

    tests/yocto/kas_files.py [folder]
"""

import json
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import yaml

REPO = Path(__file__).resolve().parents[2]
MACHINES = {"raspberrypi3-64", "raspberrypi4-64", "raspberrypi5", "qemuarm64", "qemux86-64"}


def main():
    """Checks each file."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else REPO / "yocto/kas"
    schema = jsonschema.Draft7Validator(json.loads((files("kas") / "schema-kas.json").read_text()))
    found, machines = [], set()
    documents = {path.name: yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.yml"))}
    for name, document in documents.items():
        found += [f"{name}: {'/'.join(map(str, e.absolute_path))}: {e.message}" for e in schema.iter_errors(document)]
        for include in document.get("header", {}).get("includes", []):
            if not (folder.parents[1] / include).is_file():
                found.append(f"{name}: includes {include}, which is not in the repository")
        machine = document.get("machine")
        if machine:
            machines.add(machine)
            if name != f"{machine}.yml":
                found.append(f"{name}: builds for {machine}")
        # A branch moves; what was tried is a commit.
        for repo, spec in (document.get("repos") or {}).items():
            if spec and "url" in spec and "commit" not in spec and name != "balena-engine.yml":
                found.append(f"{name}: {repo} is not pinned to a commit")
    readme = (REPO / "yocto/README.md").read_text()
    for spec in documents.get("common.yml", {}).get("repos", {}).values():
        if spec and "commit" in spec and spec["commit"][:12] not in readme:
            found.append(f"common.yml: {spec['url']} at {spec['commit'][:12]} is not what yocto/README.md says was tried")
    if machines != MACHINES:
        found.append(f"there are files for {sorted(machines)}, there must be for {sorted(MACHINES)}")
    for text in found:
        print(text)
    print(f"{len(documents)} files validated")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
