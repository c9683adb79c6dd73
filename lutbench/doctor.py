"""``lutbench doctor``: what is wrong with an installation, and the line that mends it.

Nothing of the suite that computes is imported here: torch and what stands on it are tried in a process of their own, so that a library
that cannot be imported, or that ends the process, is a finding and not a crash.
"""

import fcntl
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, requires
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
"""The clone, where the suite is run from one."""

OLDEST_PYTHON = (3, 11)
ROOM = 2 * 10**9
"""Bytes that have to be free for runs and results: what suite ``tiny`` writes, and as much again (our choice)."""

PATIENCE = 300.0
"""Seconds that the libraries may take to be imported, on a slow disk."""

PROBES: Mapping[str, str] = {
    "torch": "import torch; found = [torch.__version__, torch.version.cuda or torch.version.hip or '']",
    "GPU": "found = [f'{p.name}, {p.total_memory / 2**30:.0f} GiB' for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))]",
    "torchvision": "import torchvision; torchvision.ops.nms; found = [torchvision.__version__]",
    "timm": "import timm; found = [timm.__version__]",
    "MMSegmentation": "import mmseg; from mmseg.models.backbones import MAE; found = [mmseg.__version__]",
}
"""What is tried of each library, in this order; ``found`` is what is told of it."""

PROBE = """
import json, sys
for name, code in json.loads(sys.argv[1]).items():
    try:
        exec(code)
        print(json.dumps([name, found, ""]), flush=True)
    except BaseException as error:
        print(json.dumps([name, [], f"{type(error).__name__}: {error}"]), flush=True)
"""


@dataclass(frozen=True)
class Finding:
    """What was found of one thing."""

    about: str
    status: Literal["ok", "note", "wrong"]
    """``note``: nothing that stops a run of ``tiny``, and worth to know."""
    text: str
    mend: str = ""
    """The line that mends it."""


def examine(data_root: Path, runs: Path, results: Path) -> Iterator[Finding]:
    """Yield what is found of Python, packages, libraries, GPU, disk and folders, in this order."""
    yield python_finding(sys.version_info[:2])
    needed = requirements()
    installed = {normalised(one.metadata["Name"]): one.version for one in distributions() if one.metadata["Name"]}
    yield from package_findings(needed, installed)
    constraints = ROOT / "constraints.txt"
    if constraints.is_file():
        yield constraint_finding(constraints.read_text(encoding="utf-8"), needed, installed)
    yield from library_findings(probed(PROBES), driver_present(), segmentation="onedl-mmsegmentation" in installed)
    for option, folder in (("--runs", runs), ("--results", results), ("--data-root", data_root)):
        yield from folder_findings(option, folder)


def python_finding(version: tuple[int, int]) -> Finding:
    """Return whether this Python is new enough."""
    told = f"{platform.python_version()}, {sys.executable}"
    if version >= OLDEST_PYTHON:
        return Finding("Python", "ok", told)
    wanted = ".".join(map(str, OLDEST_PYTHON))
    mend = f"uv venv --python {wanted} .venv && uv pip install --python .venv -c constraints.txt -e '.[segmentation]'"
    return Finding("Python", "wrong", f"{told}: the suite needs {wanted} or newer.", mend)


def requirements() -> list[str]:
    """Return what the suite requires, as pyproject.toml of the clone or the installed package has it, extras left out."""
    project = ROOT / "pyproject.toml"
    if project.is_file():
        found: list[str] = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
        return found
    try:
        return [line for line in requires("lutbench") or [] if "extra ==" not in line]
    except PackageNotFoundError:
        return []


def normalised(name: str) -> str:
    """Return a package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def package_findings(needed: Iterable[str], installed: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the packages that are missing or of another version than is required; or that there are none."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield Finding("packages", "wrong", "packaging is missing, which tells versions.", install("."))
        return
    wrong = []
    count = 0
    for count, line in enumerate(needed, 1):  # noqa: B007
        requirement = Requirement(line)
        version = installed.get(normalised(requirement.name))
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, needed is {requirement.specifier}")
    if wrong:
        yield Finding("packages", "wrong", f"{'; '.join(wrong)}.", install("."))
    else:
        yield Finding("packages", "ok", f"all {count} that the suite needs")


def constraint_finding(constraints: str, needed: Iterable[str], installed: Mapping[str, str]) -> Finding:
    """Return which of the needed packages have other versions than those that the tests are run with."""
    tested = dict(re.findall(r"(?m)^([\w.-]+)==([^\s;]+)", constraints))
    names = [normalised(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in needed]
    others = [
        f"{name} {installed[name]} ({tested[name]})"
        for name in names
        if name in installed and name in tested and installed[name].split("+")[0] != tested[name]
    ]
    if not others:
        return Finding("versions", "ok", "those of constraints.txt")
    text = f"Not those that the tests are run with (in brackets), so that last digits may differ: {', '.join(others)}."
    return Finding("versions", "note", text, install("."))


def install(what: str) -> str:
    """Return the line that installs the suite, with an extra such as ``.[segmentation]``, into this environment."""
    constrained = "-c constraints.txt -e " if (ROOT / "constraints.txt").is_file() else ""
    target = what if constrained else what.replace(".", "lutbench", 1)
    with_pip = find_spec("pip") is not None  # uv makes environments without
    program = f"{sys.executable} -m pip install" if with_pip else f"uv pip install --python {sys.executable}"
    return f'{program} {constrained}"{target}"'


def probed(probes: Mapping[str, str]) -> dict[str, tuple[list[str], str]]:
    """Return by library what it says of itself, and the error if it cannot be imported; without those after which the process ended."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE, json.dumps(dict(probes))],
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        lines, ended = done.stdout, f"the process ended with status {done.returncode} while it was imported"
    except subprocess.TimeoutExpired as slow:
        lines = slow.stdout.decode() if isinstance(slow.stdout, bytes) else slow.stdout or ""
        ended = f"it was not imported within {PATIENCE:.0f} seconds"
    answers: dict[str, tuple[list[str], str]] = {}
    for line in lines.splitlines():
        try:
            name, found, error = json.loads(line)
        except ValueError:
            continue  # what a library prints when it is imported
        answers[name] = (found, error)
    for name in probes:
        if name not in answers:
            answers[name] = ([], ended)
            break
    return answers


def driver_present() -> bool:
    """Return whether this machine has a driver of NVIDIA's or AMD's GPUs."""
    return any(Path(path).exists() for path in ("/dev/nvidia0", "/dev/kfd"))


def library_findings(
    answers: Mapping[str, tuple[list[str], str]], driver: bool, segmentation: bool
) -> Iterator[Finding]:
    """Yield what :func:`probed` found; ``driver`` says whether a GPU should be seen, ``segmentation`` whether MMSegmentation is installed."""
    nothing: tuple[list[str], str] = ([], "not tried, after the one before")
    (torch, *_), error = answers.get("torch", nothing)[0] or [""], answers.get("torch", nothing)[1]
    if error:
        yield Finding("torch", "wrong", f"It cannot be imported. {shortened(error)}", install("."))
        return
    yield Finding("torch", "ok", torch)
    gpus, error = answers.get("GPU", nothing)
    if gpus:
        yield Finding("GPU", "ok", "; ".join(gpus))
    elif driver:
        cuda = (answers["torch"][0][1:] or [""])[0]
        built = f"is built for CUDA {cuda}, which may be newer than the driver" if cuda else "is built for CPUs"
        mend = "nvidia-smi    # shows the driver's CUDA; https://pytorch.org/get-started has the line for it"
        yield Finding(
            "GPU",
            "wrong",
            f"There is a driver, and torch sees no GPU: torch {torch} {built}. {shortened(error)}".strip(),
            mend,
        )
    else:
        yield Finding("GPU", "note", "None: runs are on the CPU. Suite tiny needs no more.")
    for name in ("torchvision", "timm"):
        (version, *_), error = answers.get(name, nothing)[0] or [""], answers.get(name, nothing)[1]
        if error:
            yield Finding(name, "wrong", f"It cannot be imported. {shortened(error)}", install("."))
        else:
            yield Finding(name, "ok", version)
    found, error = answers.get("MMSegmentation", nothing)
    if not error:
        yield Finding("MMSegmentation", "ok", found[0])
    elif segmentation:
        yield Finding(
            "MMSegmentation", "wrong", f"It cannot be imported. {shortened(error)}", install(".[segmentation]")
        )
    else:
        yield Finding(
            "MMSegmentation", "note", "Not installed: tasks of kind segmentation need it.", install(".[segmentation]")
        )


def shortened(error: str) -> str:
    """Return the first line of an error."""
    return (error.strip().splitlines() or [""])[0][:300]


def folder_findings(option: str, folder: Path) -> Iterator[Finding]:
    """Yield whether a folder can be written and locked, and whether there is room; a folder that is not there is made by a run."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    about = f"{option} {folder}"
    if not there.is_dir():
        yield Finding(about, "wrong", f"{there} is a file.", f"mv {there} {there}.old")
        return
    owned = option != "--data-root"
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"lutbench")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError:
        status: Literal["note", "wrong"] = "wrong" if owned else "note"
        why = (
            "" if owned else " Sets that the suite builds, and caches, need that; images that are there are only read."
        )
        yield Finding(
            about,
            status,
            f"{there} cannot be written.{why}",
            f"lutbench run tiny {option} FOLDER    # one that you may write",
        )
        return
    except OSError as error:
        mend = f"lutbench run tiny {option} FOLDER    # one on another disk; Lustre has to be mounted with flock"
        yield Finding(about, "wrong", f"In {there} a file cannot be written and locked: {error.strerror}.", mend)
        return
    free = shutil.disk_usage(there).free
    room = f"{free / 1e9:,.1f} GB free"
    if owned and free < ROOM:
        text = f"{room} in {there}: suite tiny and its checkpoints want {ROOM / 1e9:.0f} GB."
        yield Finding(about, "wrong", text, f"lutbench run tiny {option} FOLDER    # one on a disk with more room")
    else:
        absent = "" if folder.exists() else ", not there yet"
        yield Finding(about, "ok", f"can be written{absent}, {room}")


SIGNS = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}


def show(findings: Iterable[Finding]) -> bool:
    """Print findings as they come, with the lines that mend them; return whether all is well."""
    wrong = 0
    for finding in findings:
        wrong += finding.status == "wrong"
        print(f"{SIGNS[finding.status]}  {finding.about}: {finding.text}", flush=True)
        if finding.mend:
            print(f"       {'mend' if finding.status == 'wrong' else 'if you want'}: {finding.mend}", flush=True)
    print("Nothing is wrong." if not wrong else f"{wrong} thing{'s are' if wrong > 1 else ' is'} wrong.")
    return not wrong
