#!/usr/bin/env python3
"""Writes what the cargo recipes of meta-copal need to know about this workspace, or says that it is stale.

    yocto/scripts/crates.py            writes the files
    yocto/scripts/crates.py --check    changes nothing; fails and names what differs

For each program: `<recipe>-crates.inc` (the registry crates with their checksums, the workspace members it is made of) and
the `<recipe>.lock`, the lock file of a workspace that has those members only. It is cargo's own answer: the features that other
members of the whole workspace turn on must not pull crates into a device's image or into its list of software.
"""

import argparse
import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
RECIPES = REPO / "yocto/meta-copal/recipes-copal"
# Recipe and the member it builds. A new program gets a line here and a recipe that requires the two files.
PROGRAMS = {"copal-agent": "agent", "copal-cli": "cli"}
REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"
# One line: the class of the recipes replaces it with sed.
MEMBERS = re.compile(r"^members = \[[^\]\n]*\]$", re.MULTILINE)


def members(first):
    """The workspace members that building `first` reads, itself first: path dependencies, theirs, and so on."""
    workspace = tomllib.loads((REPO / "Cargo.toml").read_text())["workspace"]["dependencies"]
    found, waiting = [], [first]
    while waiting:
        folder = waiting.pop(0)
        if folder in found:
            continue
        found.append(folder)
        manifest = tomllib.loads((REPO / folder / "Cargo.toml").read_text())
        tables = [manifest, *manifest.get("target", {}).values()]
        for table in tables:
            for kind in ("dependencies", "dev-dependencies", "build-dependencies"):
                for name, wanted in table.get(kind, {}).items():
                    inherited = isinstance(wanted, dict) and wanted.get("workspace")
                    spec = workspace.get(name, {}) if inherited else wanted
                    if isinstance(spec, dict) and "path" in spec:
                        base = REPO if inherited else REPO / folder
                        waiting.append(os.path.relpath((base / spec["path"]).resolve(), REPO))
    return [found[0], *sorted(found[1:])]


def lock_of(folders):
    """The lock file of a workspace of these members: the versions of the whole one, without what they do not need."""
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        listed = ", ".join(f'"{f}"' for f in folders)
        manifest, changed = MEMBERS.subn(f"members = [{listed}]", (REPO / "Cargo.toml").read_text())
        if changed != 1:
            sys.exit("crates.py: the root Cargo.toml has no line 'members = [...]'; copal_cargo.bbclass relies on it")
        (place / "Cargo.toml").write_text(manifest)
        shutil.copy(REPO / "Cargo.lock", place / "Cargo.lock")
        for folder in folders:
            shutil.copytree(REPO / folder, place / folder, ignore=shutil.ignore_patterns("target", "node_modules"))
        before = versions((place / "Cargo.lock").read_text())
        command = ["cargo", "update", "--workspace", "--quiet"]
        for way in (["--offline"], []):
            done = subprocess.run([*command, *way], cwd=place, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                break
        else:
            sys.exit(f"crates.py: cargo could not resolve {listed}: {done.stderr.strip()}")
        lock = (place / "Cargo.lock").read_text()
        # What BitBake's `cargo build --frozen` will ask of it.
        frozen = ["cargo", "metadata", "--locked", "--offline", "--format-version", "1"]
        done = subprocess.run(frozen, cwd=place, capture_output=True, text=True, check=False)
        if done.returncode != 0 and "--locked" in done.stderr:
            sys.exit(f"crates.py: cargo would change the lock file of {listed} again: {done.stderr.strip()}")
        strangers = versions(lock) - before
        if strangers:
            sys.exit(f"crates.py: Cargo.lock of the workspace is not up to date; these are not in it: {sorted(strangers)}")
        return lock


def versions(lock):
    """Name and version of every package of a lock file."""
    return {(p["name"], p["version"]) for p in tomllib.loads(lock)["package"]}


def include(recipe, folders, lock):
    """The text of `<recipe>-crates.inc`."""
    crates = []
    for package in tomllib.loads(lock)["package"]:
        source = package.get("source")
        if source is None:
            continue
        if source != REGISTRY:
            sys.exit(f"crates.py: {package['name']} comes from {source}: the cargo class takes crates.io only")
        crates.append((package["name"], package["version"], package["checksum"]))
    lines = [
        f"# Written by yocto/scripts/crates.py from Cargo.lock; do not edit. {recipe}: {len(crates)} crates.",
        "",
        f'COPAL_MEMBERS = "{" ".join(folders)}"',
        "",
        'SRC_URI += " \\',
        *(f"    crate://crates.io/{name}/{version} \\" for name, version, _ in crates),
        '"',
        "",
        *(f'SRC_URI[{name}-{version}.sha256sum] = "{digest}"' for name, version, digest in crates),
    ]
    return "\n".join(lines) + "\n"


def wanted_files():
    """Path and text of everything this script writes."""
    version = tomllib.loads((REPO / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    for recipe, first in PROGRAMS.items():
        folder = RECIPES / recipe
        if not (folder / f"{recipe}_{version}.bb").exists():
            sys.exit(f"crates.py: the workspace is version {version}, but there is no {recipe}_{version}.bb: rename the recipe")
        folders = members(first)
        lock = lock_of(folders)
        yield folder / f"{recipe}-crates.inc", include(recipe, folders, lock)
        yield folder / recipe / f"{recipe}.lock", lock


def main():
    """Writes or compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a file is stale")
    check = parser.parse_args().check
    stale = False
    for path, text in wanted_files():
        name = str(path.relative_to(REPO))
        old = path.read_text() if path.exists() else ""
        if old == text:
            continue
        if check:
            stale = True
            print(f"stale: {name}; run yocto/scripts/crates.py and commit what it writes")
            for line in list(difflib.unified_diff(old.splitlines(), text.splitlines(), "committed", "now", "", "", 0, ""))[:12]:
                print(f"    {line}")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"wrote {name}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
