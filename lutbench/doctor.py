"""``lutbench doctor``: check an installation, and print a command that fixes each problem.

torch and the libraries on top of it are imported in a separate process, so that a library that cannot be imported, or that ends the
process, is reported instead of crashing this command.
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
"""Bytes that must be free for runs and results: twice what suite ``tiny`` writes (our choice)."""

PATIENCE = 300.0
"""Time limit for the imports in seconds; disks can be slow."""

PROBES: Mapping[str, str] = {
    "torch": "import torch; found = [torch.__version__, torch.version.cuda or torch.version.hip or '']",
    "GPU": "found = [f'{p.name}, {p.total_memory / 2**30:.0f} GiB' for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))]",
    "torchvision": "import torchvision; torchvision.ops.nms; found = [torchvision.__version__]",
    "timm": "import timm; found = [timm.__version__]",
    "MMSegmentation": "import mmseg; from mmseg.models.backbones import MAE; found = [mmseg.__version__]",
}
"""Code that tests each library, in this order; ``found`` is what is shown."""

SYSTEM_LIBRARIES = (
    "apt-get install libgl1 libglib2.0-0 libxcb1    # what OpenCV needs; other systems than Debian have other names"
)
"""For a library of the operating system that is missing: OpenCV's, which slim images of containers lack."""

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
    """The result of one check."""

    about: str
    status: Literal["ok", "note", "wrong"]
    """``note``: does not stop a run of ``tiny``, but worth knowing."""
    text: str
    mend: str = ""
    """The command that fixes it."""


def examine(data_root: Path, runs: Path, results: Path) -> Iterator[Finding]:
    """Check Python, packages, libraries, GPU, disk and folders, in this order."""
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
    version_text = f"{platform.python_version()}, {sys.executable}"
    if version >= OLDEST_PYTHON:
        return Finding("Python", "ok", version_text)
    wanted = ".".join(map(str, OLDEST_PYTHON))
    mend = f"uv venv --python {wanted} .venv && uv pip install --python .venv -c constraints.txt -e '.[segmentation]'"
    return Finding("Python", "wrong", f"{version_text}: {wanted} or newer is required.", mend)


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
        yield Finding(
            "packages", "wrong", "The package 'packaging', which compares versions, is missing.", install(".")
        )
        return
    wrong = []
    count = 0
    for count, line in enumerate(needed, 1):  # noqa: B007
        requirement = Requirement(line)
        version = installed.get(normalised(requirement.name))
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, but {requirement.specifier} is required")
    if wrong:
        yield Finding("packages", "wrong", f"{'; '.join(wrong)}.", install("."))
    else:
        yield Finding("packages", "ok", f"all {count} required packages are installed")


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
        return Finding("versions", "ok", "as in constraints.txt")
    text = f"Different from the tested versions (in brackets), so the last digits of results may differ: {', '.join(others)}."
    return Finding("versions", "note", text, install("."))


def install(what: str) -> str:
    """Return the line that installs the suite, with an extra such as ``.[segmentation]``, into this environment."""
    constrained = "-c constraints.txt -e " if (ROOT / "constraints.txt").is_file() else ""
    target = what if constrained else what.replace(".", "lutbench", 1)
    with_pip = find_spec("pip") is not None  # uv makes environments without
    program = f"{sys.executable} -m pip install" if with_pip else f"uv pip install --python {sys.executable}"
    return f'{program} {constrained}"{target}"'


def probed(probes: Mapping[str, str]) -> dict[str, tuple[list[str], str]]:
    """Return the result and the error of each test, up to the one that ended the process."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE, json.dumps(dict(probes))],
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        lines, ended = done.stdout, f"the process ended with exit status {done.returncode} during the import"
    except subprocess.TimeoutExpired as slow:
        lines = slow.stdout.decode() if isinstance(slow.stdout, bytes) else slow.stdout or ""
        ended = f"the import took longer than {PATIENCE:.0f} seconds"
    answers: dict[str, tuple[list[str], str]] = {}
    for line in lines.splitlines():
        try:
            name, found, error = json.loads(line)
        except ValueError:
            continue  # printed by a library during its import
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
    nothing: tuple[list[str], str] = ([], "not tested, because the library before it failed")
    answers = {name: answers.get(name, nothing) for name in PROBES}

    def imported(name: str, package: str = ".") -> Finding:
        found, error = answers[name]
        if error:
            opencv = name == "MMSegmentation" and "cannot open shared object file" in error
            mend = SYSTEM_LIBRARIES if opencv else install(package)
            return Finding(name, "wrong", f"cannot be imported: {shortened(error)}", mend)
        return Finding(name, "ok", found[0])

    yield imported("torch")
    if answers["torch"][1]:
        return
    yield _gpu_finding(answers["torch"][0], *answers["GPU"], driver)
    yield imported("torchvision")
    yield imported("timm")
    if answers["MMSegmentation"][1] and not segmentation:
        yield Finding(
            "MMSegmentation", "note", "Not installed. Tasks of kind segmentation need it.", install(".[segmentation]")
        )
    else:
        yield imported("MMSegmentation", ".[segmentation]")


def _gpu_finding(torch: list[str], gpus: list[str], error: str, driver: bool) -> Finding:
    """Return which GPUs torch found; ``torch`` is its version and, if it is built for GPUs, that of CUDA or ROCm."""
    if gpus:
        return Finding("GPU", "ok", "; ".join(gpus))
    if not driver:
        return Finding("GPU", "note", "None found; runs use the CPU. That is enough for suite tiny.")
    version, cuda = [*torch, ""][:2]
    built = f"is built for CUDA {cuda}, which may be newer than the driver supports" if cuda else "is built for CPUs"
    return Finding(
        "GPU",
        "wrong",
        f"A driver is installed, but torch finds no GPU: torch {version} {built}. {shortened(error)}".strip(),
        "nvidia-smi    # shows the driver's CUDA version; https://pytorch.org/get-started has the matching pip command",
    )


def shortened(error: str) -> str:
    """Return the first line of an error."""
    return (error.strip().splitlines() or [""])[0][:300]


def folder_findings(option: str, folder: Path) -> Iterator[Finding]:
    """Check that a folder can be written and locked, and has enough space; runs create a folder that does not exist."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    about = f"{option} {folder}"
    if not there.is_dir():
        yield Finding(about, "wrong", f"{there} is a file, not a folder.", f"mv {there} {there}.old")
        return
    owned = option != "--data-root"
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"lutbench")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError:
        status: Literal["note", "wrong"] = "wrong" if owned else "note"
        why = "" if owned else " Existing images are only read; datasets that lutbench builds, and caches, are written."
        yield Finding(
            about,
            status,
            f"No permission to write to {there}.{why}",
            f"lutbench run tiny {option} FOLDER    # choose one you can write to",
        )
        return
    except OSError as error:
        mend = f"lutbench run tiny {option} FOLDER    # choose one on another disk; mount Lustre with the option flock"
        yield Finding(about, "wrong", f"Cannot write and lock a file in {there}: {error.strerror}.", mend)
        return
    free = shutil.disk_usage(there).free
    room = f"{free / 1e9:,.1f} GB free"
    if owned and free < ROOM:
        text = f"{room} in {there}, but suite tiny and its checkpoints need {ROOM / 1e9:.0f} GB."
        yield Finding(
            about, "wrong", text, f"lutbench run tiny {option} FOLDER    # choose one on a disk with more space"
        )
    else:
        absent = "" if folder.exists() else " (does not exist yet)"
        yield Finding(about, "ok", f"can be written{absent}, {room}")


SIGNS = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}


def show(findings: Iterable[Finding]) -> bool:
    """Print findings as they arrive, with the commands that fix them; return whether nothing is wrong."""
    wrong = 0
    for finding in findings:
        wrong += finding.status == "wrong"
        print(f"{SIGNS[finding.status]}  {finding.about}: {finding.text}", flush=True)
        if finding.mend:
            print(f"       {'fix' if finding.status == 'wrong' else 'optional'}: {finding.mend}", flush=True)
    print("No problems found." if not wrong else f"{wrong} problem{'s' if wrong > 1 else ''} found.")
    return not wrong
