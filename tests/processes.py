"""What tests ask of the system about processes, the same on Linux and macOS."""

import psutil


def children_of(process: int) -> list[int]:
    """The processes that one has started and not waited for, in the order of their numbers."""
    return sorted(child.pid for child in psutil.Process(process).children())


def lives(process: int) -> bool:
    """Whether there is such a process; one that has ended and was not waited for is none."""
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(psutil.Process().memory_info().rss)
