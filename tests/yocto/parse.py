#!/usr/bin/env python3
"""Parses meta-copal with BitBake's own parser (the `bb` package of bitbake-setup), without any other layer.

    tests/yocto/parse.py [layer]          every check below, for each machine
    tests/yocto/parse.py --os-json MACHINE        prints the os.json that copal-os makes for it

What stands in for OE-core is a stub made here: a few lines of bitbake.conf, empty classes, empty recipes that our appends
attach to. So this is a gate for syntax, files and conditions; it knows nothing of OE's classes. What the real layers say
about ours stands in yocto/README.md.

Checked: layer.conf (series, dynamic layers), the distribution for each machine, every recipe and append (syntax), every shell
function by BitBake's shell parser and every Python function by the compiler, every file:// by the fetcher, a checksum for
every crate, and that adding the layer changes no other distribution: without our override an append changes nothing.
"""

import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import types
from pathlib import Path

# Machine, and the overrides its configuration brings.
MACHINES = {
    "raspberrypi3-64": "rpi:aarch64:raspberrypi3",
    "raspberrypi4-64": "rpi:aarch64:raspberrypi4",
    "raspberrypi5": "rpi:aarch64:raspberrypi5",
    "qemuarm64": "qemuall:aarch64",
    "qemux86-64": "qemuall:x86-64",
}
CLASSES = "cargo core-image deploy features_check image-artifact-names native nopackages packagegroup systemd image bin_package".split()
# Collections that bring dynamic layers to life.
COLLECTIONS = ("raspberrypi", "virtualization-layer", "balena-common")

BITBAKE_CONF = r"""
B = "${WORKDIR}/build"
BN = "${@os.path.basename(d.getVar('FILE') or '')}"
BPN = "${@d.getVar('PN').removesuffix('-native')}"
DEPLOYDIR = "${WORKDIR}/deploy"
DEPLOY_DIR_IMAGE = "${TOPDIR}/deploy"
DL_DIR = "${TOPDIR}/downloads"
FETCHCMD_wget = "false"
FILESEXTRAPATHS ?= "__default:"
FILESPATH = "${@d.getVar('FILESEXTRAPATHS').replace('__default:', '')}${FILE_DIRNAME}/${BPN}:${FILE_DIRNAME}/files"
FILE_DIRNAME = "${@os.path.dirname(d.getVar('FILE') or '')}"
IMAGE_LINK_NAME = "${PN}-${MACHINE}"
IMAGE_MACHINE_SUFFIX = "-${MACHINE}"
IMAGE_NAME_SUFFIX = ".rootfs"
IMGDEPLOYDIR = "${WORKDIR}/images"
PERSISTENT_DIR = "${TOPDIR}/persist"
PN = "${@bb.parse.vars_from_file(d.getVar('FILE', False), d)[0] or 'defaultpkgname'}"
PV = "${@bb.parse.vars_from_file(d.getVar('FILE', False), d)[1] or '1.0'}"
S = "${UNPACKDIR}/${PN}-${PV}"
T = "${WORKDIR}/temp"
TARGET_ARCH = "${@'x86_64' if d.getVar('MACHINE') == 'qemux86-64' else 'aarch64'}"
THISDIR = "${@os.path.dirname(d.getVar('FILE') or '')}"
TMPDIR = "${TOPDIR}/tmp"
UNPACKDIR = "${WORKDIR}/sources"
WORKDIR = "${TMPDIR}/work/${PN}"
bindir = "/usr/bin"
libdir = "/usr/lib"
libexecdir = "/usr/libexec"
localstatedir = "/var"
nonarch_base_libdir = "/usr/lib"
nonarch_libdir = "/usr/lib"
SDIMG_KERNELIMAGE = "kernel8.img"
sysconfdir = "/etc"
systemd_system_unitdir = "/usr/lib/systemd/system"
systemd_unitdir = "/usr/lib/systemd"
BOOTFILES_DIR_NAME = "bootfiles"
DISTROOVERRIDES ?= "${DISTRO}"
OVERRIDES = "${MACHINEOVERRIDES}:${DISTROOVERRIDES}:pn-${PN}"
include conf/distro/${DISTRO}.conf
"""


def say(text):
    """One finding."""
    print(f"  {text}")


def stub(place, layer):
    """Writes what stands in for OE-core and the other layers; returns the build folder."""
    core = place / "core"
    (core / "conf").mkdir(parents=True)
    for folder in ("classes", "classes-recipe", "classes-global", "recipes"):
        (core / folder).mkdir()
    (core / "conf/layer.conf").write_text(
        'BBPATH .= ":${LAYERDIR}"\nBBFILES += "${LAYERDIR}/recipes/*.bb"\nBBFILE_COLLECTIONS += "core"\n'
        'BBFILE_PATTERN_core = "^${LAYERDIR}/"\nLAYERSERIES_CORENAMES = "wrynose"\nLAYERSERIES_COMPAT_core = "wrynose"\n'
    )
    (core / "conf/bitbake.conf").write_text(BITBAKE_CONF)
    (core / "classes-global/base.bbclass").write_text('def make_dtb_boot_files(d):\n    return "board.dtb"\n')
    for name in CLASSES:
        (core / f"classes-recipe/{name}.bbclass").write_text("")
    # What appends attach to. The functions are there so that `do_x:append` has something before it.
    for append in layer.glob("**/*.bbappend"):
        name = append.stem.replace("%", "1.0")
        (core / f"recipes/{name}.bb").write_text(
            'SRC_URI = ""\n' + "".join(f"do_{task}() {{\n    :\n}}\n" for task in ("compile", "install", "deploy"))
        )
    layers = [core]
    for collection in COLLECTIONS:
        other = place / collection
        (other / "conf").mkdir(parents=True)
        (other / "conf/layer.conf").write_text(
            f'BBPATH .= ":${{LAYERDIR}}"\nBBFILE_COLLECTIONS += "{collection}"\nBBFILE_PATTERN_{collection} = "^${{LAYERDIR}}/"\n'
            f'LAYERSERIES_COMPAT_{collection} = "wrynose"\n'
        )
        layers.append(other)
    build = place / "build"
    (build / "conf").mkdir(parents=True)
    listed = " ".join(str(path) for path in [*layers, layer])
    (build / "conf/bblayers.conf").write_text(f'BBPATH = "${{TOPDIR}}"\nBBFILES ?= ""\nBBLAYERS = "{listed}"\n')
    return build


class Heard(logging.Handler):
    """Keeps what BitBake complains about."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage().strip())


class Layer:
    """The layer under one machine and distribution."""

    def __init__(self, build, machine, distro):
        import bb.cookerdata

        os.chdir(build)
        config = bb.cookerdata.CookerConfiguration()
        config.env = {"PATH": os.environ["PATH"], "BBPATH": str(build)}
        before = build / "conf/before.conf"
        before.write_text(f'MACHINE = "{machine}"\nMACHINEOVERRIDES = "{MACHINES[machine]}:{machine}"\nDISTRO = "{distro}"\n')
        config.prefile = [str(before)]
        self.builder = bb.cookerdata.CookerDataBuilder(config, False)
        self.builder.parseBaseConfiguration()
        self.data = self.builder.data
        files = [Path(f) for pattern in self.data.getVar("BBFILES").split() for f in sorted(Path("/").glob(pattern[1:]))]
        self.recipes = [f for f in files if f.suffix == ".bb"]
        self.appends = [f for f in files if f.suffix == ".bbappend"]

    def parse(self, recipe, appended=True):
        """Each variant's variables."""
        mine = []
        for append in self.appends if appended else []:
            name, _, version = append.stem.partition("_")
            parts = recipe.stem.partition("_")
            if name == parts[0] and version in ("", "%", parts[2]):
                mine.append(str(append))
        return self.builder.parseRecipeVariants(str(recipe), mine, mc="", layername="copal")


def functions(data):
    """Name, kind and expanded text of each function of our own."""
    for key in sorted(data.keys()):
        if data.getVarFlag(key, "func", False):
            kind = "python" if data.getVarFlag(key, "python", False) else "shell"
            yield key, kind, data.getVar(key, kind == "shell")


def check_recipe(data, name, ours):
    """Findings about one parsed variant."""
    import bb.codeparser
    import bb.fetch2

    found = []
    if data.getVar("__SKIPPED"):
        return found
    for key, kind, text in functions(data):
        if text is None:
            continue
        try:
            if kind == "python":
                compile("def f(d):\n" + "".join(f" {line}\n" for line in text.splitlines()), key, "exec")
            else:
                bb.codeparser.ShellParser(key, logging.getLogger("BitBake")).parse_shell(text)
        except Exception as error:  # the parsers have many kinds of errors; each is a finding
            found.append(f"{name}: {key} ({kind}): {error}")
    for uri in (data.getVar("SRC_URI") or "").split():
        if uri.startswith("file://"):
            with contextlib.suppress(bb.fetch2.FetchError):
                path = bb.fetch2.Fetch([uri], data, cache=False).localpath(uri)
                if path and os.path.exists(path):
                    continue
            found.append(f"{name}: {uri} is in none of {data.getVar('FILESPATH')}")
        elif uri.startswith("crate://"):
            _, _, _, crate, version = uri.split("/")
            if not data.getVarFlag("SRC_URI", f"{crate}-{version}.sha256sum", False):
                found.append(f"{name}: {uri} has no checksum")
        elif ours:
            found.append(f"{name}: {uri} is fetched from outside; the layer takes everything from this repository and crates.io")
    return found


def same_without_us(layer):
    """Findings about appends that act although the distribution is not ours."""
    found = []
    for recipe in layer.recipes:
        if recipe.parent.parent.name != "core":
            continue
        plain, appended = (layer.parse(recipe, with_us)[""] for with_us in (False, True))
        for key in sorted(set(plain.keys()) | set(appended.keys())):
            if key.startswith("__") or key.endswith(":copal") or key in ("BBINCLUDED", "FILESEXTRAPATHS", "FILESPATH"):
                continue
            if plain.getVar(key) != appended.getVar(key):
                found.append(f"{recipe.stem}: {key} is changed for every distribution: the append lacks `:copal`")
        if plain.getVar("FILESPATH") != appended.getVar("FILESPATH"):
            found.append(f"{recipe.stem}: FILESEXTRAPATHS is changed for every distribution")
    return found


def check_machine(build, machine, layer_path):
    """Findings about the layer for one machine."""
    layer = Layer(build, machine, "copal")
    found = []
    backend = layer.data.getVar("COPAL_BACKEND")
    if backend not in ("tryboot", "uboot", "grub"):
        found.append(f"COPAL_BACKEND is {backend!r}")
    wks = layer.data.getVar("WKS_FILE") or ""
    # wrynose looks for wks files there and nowhere else.
    if not (layer_path / "files/wic" / wks).is_file():
        found.append(f"WKS_FILE {wks!r} is not in files/wic")
    for key in sorted(layer.data.keys()):
        if key.startswith("COPAL_") and "${" in (layer.data.getVar(key) or ""):
            found.append(f"{key} is not expanded: {layer.data.getVar(key)}")
    count = 0
    for recipe in layer.recipes:
        ours = recipe.is_relative_to(layer_path)
        try:
            variants = layer.parse(recipe)
        except Exception as error:  # as above
            found.append(f"{recipe.name}: {type(error).__name__}: {error}")
            continue
        count += 1
        for data in variants.values():
            found += check_recipe(data, recipe.name, ours)
    return count, len(layer.appends), found


def os_json(build, machine, layer_path):
    """What copal-os's do_compile writes."""
    import bb.utils

    layer = Layer(build, machine, "copal")
    recipe = next(layer_path.glob("recipes-copal/copal-os/*.bb"))
    data = layer.parse(recipe)[""]
    text = data.getVar("do_compile", False)
    place = {"d": data, "bb": bb, "os": os}
    exec("def do_compile(d):\n" + "".join(f" {line}\n" for line in text.splitlines()), place)  # noqa: S102
    place["do_compile"](data)
    return json.loads((Path(data.getVar("B")) / "os.json").read_text())


def check_os_json(config, machine, repo):
    """Findings: the fields are those of agent/src/os/config.rs, the partitions those of the table."""
    source = (repo / "agent/src/os/config.rs").read_text()
    known = set(re.findall(r"^    pub ([a-z_]+):", source.split("pub struct OsConfig")[1].split("\n}")[0], re.MULTILINE))
    found = [f"os.json of {machine}: the agent knows no field {key!r}" for key in sorted(set(config) - known)]
    table = repo / "images/os/layout" / f"{config['backend']}.table"
    rows = subprocess.run([repo / "images/os/layout/table.sh", "rows", table.stem], capture_output=True, text=True, check=True)
    names = {row.split()[1]: int(row.split()[0]) for row in rows.stdout.splitlines()}
    wanted = {"rootfs": "root", "boot": "boot"}
    for slot, devices in config["slots"].items():
        for payload, device in devices.items():
            name = f"{wanted[payload]}-{slot}"
            tail = f"-{names[name]:02d}" if "partuuid" in device else name
            if not device.endswith(tail):
                found.append(f"os.json of {machine}: slot {slot} {payload} is {device}, but {name} is number {names[name]} of {table.name}")
    return found


def main():
    """Runs the checks."""
    repo = Path(__file__).resolve().parents[2]
    wanted = None
    arguments = sys.argv[1:]
    if arguments[:1] == ["--os-json"]:
        wanted = arguments[1]
        arguments = arguments[2:]
    layer_path = Path(arguments[0]).resolve() if arguments else repo / "yocto/meta-copal"
    # The wheel has BitBake's library without its servers, which nothing here starts.
    for name in ("hashserv", "hashserv.client", "prserv", "prserv.serv"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["prserv"].serv = sys.modules["prserv.serv"]

    import bb
    import bb.msg

    heard = Heard()
    logging.getLogger("BitBake").addHandler(heard)
    bad = 0
    with tempfile.TemporaryDirectory() as place:
        build = stub(Path(place), layer_path)
        if wanted:
            with contextlib.redirect_stdout(io.StringIO()):
                config = os_json(build, wanted, layer_path)
            print(json.dumps(config, indent=2))
            return 0
        for machine in MACHINES:
            recipes, appends, found = 0, 0, []
            try:
                recipes, appends, found = check_machine(build, machine, layer_path)
                found += check_os_json(os_json(build, machine, layer_path), machine, repo)
                if machine == "raspberrypi4-64":
                    found += same_without_us(Layer(build, machine, "another"))
            except Exception as error:  # whatever stops the parser is a finding
                found.append(f"{type(error).__name__}: {error}")
            found += heard.texts
            heard.texts = []
            print(f"{machine}: {recipes} recipes, {appends} appends, {len(found)} findings")
            for text in dict.fromkeys(found):
                say(text)
            bad += len(found)
        os.chdir("/")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
