#!/usr/bin/env python3
"""Compares the layer's wic files with the partition tables that the machine of `tests/os` and the agent use.

    tests/yocto/wks.py [layer]

For each images/os/layout/*.table: the same partitions at the same places, of the same sizes and types, by the same names
where the table has names; the boot state's copies and the data mark at their raw places; and the sizes that the layer makes
file systems of (conf/copal/*.inc).
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
# Of the boot state and of the mark copal-data looks for, in MiB.
STATES = (4, 8)
MARK = 12


def options(line):
    """The options of one `part` line; those without a value are True."""
    words = shlex.split(line)[1:]
    found = {}
    while words:
        name, equals, value = words.pop(0).partition("=")
        if equals:
            found[name] = value
            continue
        found[name] = words.pop(0) if words and not words[0].startswith("--") else True
    return found


def mib(text):
    """`1024M` or `4K` in KiB."""
    number, unit = re.fullmatch(r"(\d+)([KM])", text).groups()
    return int(number) * (1024 if unit == "M" else 1)


def aligned(start, unit):
    """The next multiple of `unit` (KiB), as wic places what has --align; a logical partition has its record before it."""
    return -(-start // unit) * unit


def compare(table, wks):
    """Findings about one pair."""
    rows = subprocess.run([REPO / "images/os/layout/table.sh", "rows", table], capture_output=True, text=True, check=True).stdout
    label = re.search(r"^label (\w+)", (REPO / f"images/os/layout/{table}.table").read_text(), re.MULTILINE)[1]
    wanted = [row.split() for row in rows.splitlines()]
    # wic makes the extended partition by itself when there are more than four.
    if label == "dos":
        wanted = [row for row in wanted if row[4] != "f"]
    lines = [line for line in wks.splitlines() if not line.startswith("#")]
    parts = [options(line) for line in lines if line.startswith("part ")]
    found = []
    if f"--ptable {'msdos' if label == 'dos' else 'gpt'}" not in wks:
        found.append(f"the table is {label}, the wks file is not")
    real = [part for part in parts if "--no-table" not in part]
    if len(real) != len(wanted):
        found.append(f"{len(real)} partitions, the table has {len(wanted)}")
    end = 0
    for part, (number, name, start, size, kind, _) in zip(real, wanted):
        logical = label == "dos" and int(number) > 4
        if logical and "--offset" in part:
            found.append(f"{name} is a logical partition with --offset: wic makes the extended one too small; use --align")
        place = mib(part["--offset"]) if "--offset" in part else aligned(end + (1 if logical else 0), int(part["--align"]))
        end = place + mib(part["--fixed-size"])
        if place != int(start) * 1024:
            found.append(f"{name} (number {number}) begins at {place / 1024:g}M, in the table at {start}M")
        if mib(part["--fixed-size"]) != int(size) * 1024:
            found.append(f"{name} has {part['--fixed-size']}, in the table {size}M")
        if label == "dos" and int(part.get("--system-id", "0"), 16) != int(kind, 16):
            found.append(f"{name} has type {part.get('--system-id')}, in the table {kind}")
        if label == "gpt" and (part.get("--part-name"), part.get("--part-type")) != (name, kind):
            found.append(f"{name} is {part.get('--part-name')} of type {part.get('--part-type')}, in the table {name} of {kind}")
        source = part.get("--sourceparams", "")
        holds = {"root-a": ".ext4", "boot-a": ".bootfat", "boot": ".firstfat", "autoboot": ".firstfat"}.get(name)
        if holds and not source.endswith(holds):
            found.append(f"{name} is filled from {source or 'nothing'}, not from the image's {holds}")
        if not holds and part["--source"] != "empty":
            found.append(f"{name} must be empty: slot b is not valid and data is made at the first boot")
    raw = {mib(part["--offset"]) // 1024: part["--sourceparams"].rsplit(".", 1)[1] for part in parts if "--no-table" in part}
    must = {MARK: "virgin", **({at: "bootstate" for at in STATES} if table == "uboot" else {})}
    if raw != must:
        found.append(f"raw blocks are {raw}, they must be {must}")
    return found


def sizes(table, include, rows):
    """Findings about the sizes in conf/copal/<table>.inc."""
    names = {"COPAL_FIRST_MIB": ("boot", "autoboot"), "COPAL_BOOT_MIB": ("boot-a", "boot-b"), "COPAL_SLOT_MIB": ("root-a", "root-b")}
    found = []
    for key, value in re.findall(r'^(COPAL_\w+_MIB) = "(\d+)"', include, re.MULTILINE):
        for _, name, _, size, _, _ in rows:
            if name in names[key] and size != value:
                found.append(f"{key} is {value}, {name} has {size}M in the table")
    return found


def main():
    """Compares all tables."""
    layer = Path(sys.argv[1]) if len(sys.argv) > 1 else REPO / "yocto/meta-copal"
    bad = 0
    tables = sorted(path.stem for path in (REPO / "images/os/layout").glob("*.table"))
    if not tables:
        print("no tables in images/os/layout")
        return 1
    script = (layer / "recipes-copal/copal-os/copal-os/copal-data.sh").read_text()
    if f"MARK_BLOCK={MARK * 256}\n" not in script:
        print(f"copal-data.sh does not look for the mark at {MARK} MiB")
        bad += 1
    for table in tables:
        rows = subprocess.run([REPO / "images/os/layout/table.sh", "rows", table], capture_output=True, text=True, check=True).stdout
        found = compare(table, (layer / f"files/wic/copal-{table}.wks.in").read_text())
        found += sizes(table, (layer / f"conf/copal/{table}.inc").read_text(), [row.split() for row in rows.splitlines()])
        for text in found:
            print(f"copal-{table}.wks.in: {text}")
        bad += len(found)
    print(f"{len(tables)} tables compared")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
