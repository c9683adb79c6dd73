"""The code, packages and hardware that a number was made with. No paths, no names of hosts or users."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lutbench import __version__
from lutbench.sources import digest_of_all

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "datasets",
    "numpy",
    "scipy",
    "scikit-image",
    "scikit-learn",
    "pillow",
    "safetensors",
    "onedl-mmcv",
    "onedl-mmengine",
    "onedl-mmsegmentation",
)
"""Packages that a result can depend on."""


class Code(BaseModel):
    """The code that ran."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    """Version of this package."""
    commit: str | None = None
    """git commit, 40 hex digits; None if the code is not in a git checkout."""
    modified: bool | None = None
    """Whether Python files, suite files or constraints differed from the commit; None without one."""
    digest: str | None = None
    """sha256 of all installed files of the package, if there is no commit."""
    sources: dict[str, str] = {}
    """Hashes of the source files that the run depends on, see :mod:`lutbench.sources`; empty in older records."""

    def __str__(self) -> str:
        where = f"installed files {self.digest[:10]}" if self.digest else "commit unknown"
        commit = f"commit {self.commit[:10]}" if self.commit else where
        return f"{self.version}, {commit}{' with uncommitted changes' if self.modified else ''}"

    @property
    def details(self) -> str:
        """The code, and whether it ran as it was committed."""
        return f"{self}{', as committed' if self.modified is False else ''}"


class Hardware(BaseModel):
    """The machine of one process, and how many processes there were."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str
    cpu: str
    cores: int
    """CPU cores that this process may use."""
    memory_gib: float
    threads: int
    """torch's threads per process."""
    processes: int
    gpus: list[str]
    """Names with memory; empty if the run was on the CPU."""

    def __str__(self) -> str:
        kinds = [f"{self.gpus.count(gpu)} x {gpu}" for gpu in dict.fromkeys(self.gpus)]
        machine = " + ".join(kinds) or f"{self.cpu}, {self.cores} cores"
        return machine if self.processes == 1 else f"{machine}, {self.processes} processes"

    @property
    def details(self) -> str:
        """The machine, with its system, its memory and torch's threads."""
        return f"{self}; {self.system}, {self.memory_gib:g} GiB, {self.threads} thread{'s' * (self.threads != 1)}"


def code() -> Code:
    """Version and git commit of the code that is running."""
    here = Path(__file__).resolve()
    # An installed copy may lie in some other project's checkout (its .venv): only a tracked file has a commit.
    if not _git(here.parent, "ls-files", here.name):
        return Code(version=__version__, digest=digest_of_all())
    root = Path(_git(here.parent, "rev-parse", "--show-toplevel") or here.parent)
    # Records and tables are left out: every run changes them, and no result depends on them.
    changes = _git(
        root, "status", "--porcelain", "--", "*.py", "suites", "pyproject.toml", "constraints.txt", ":!tests"
    )
    modified = None if changes is None else changes != ""
    return Code(version=__version__, commit=_git(root, "rev-parse", "HEAD"), modified=modified)


def packages() -> dict[str, str]:
    """Versions of Python and of the packages that a result can depend on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def hardware(processes: int = 1) -> Hardware:
    """Return this machine, with the first ``processes`` GPUs if torch can use any."""
    import torch  # here, because tables read records without torch

    gpus = []
    for index in range(min(processes, torch.cuda.device_count())):
        gpu = torch.cuda.get_device_properties(index)
        gpus.append(f"{gpu.name} {gpu.total_memory / 2**30:.0f} GiB")
    return Hardware(
        system=f"{platform.system()} {platform.machine()}",
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        threads=torch.get_num_threads(),
        processes=processes,
        gpus=gpus,
    )


def _cpu() -> str:
    """Return the CPU's name, with family and model number if known: names such as "AMD EPYC" stand for several generations of
    processors, on which the last bits of results differ."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
        known = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "model name" in known:
            numbers = [f"{name.split()[-1]} {known[name]}" for name in ("cpu family", "model") if name in known]
            return ", ".join([known["model name"], *numbers])
    return platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, or None if it is absent or refuses."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
