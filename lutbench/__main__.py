"""``lutbench`` and ``python -m lutbench``, which is also what ``torchrun -m lutbench`` starts: the command line in its own process."""

import sys
from typing import NoReturn

from lutbench.cli import main
from lutbench.garbage import collect_rarely, end_process


def command() -> NoReturn:
    """Perform the command of ``sys.argv``, and end the process with its exit status."""
    collect_rarely()
    end_process(_status())


def _status() -> int:
    """Return the exit status of the command; of one that crashed 1, with its traceback printed."""
    try:
        main()
    except SystemExit as ended:
        if isinstance(ended.code, int | None):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except Exception:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    command()
