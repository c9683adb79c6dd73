"""``python -m lutbench.cluster.launch``: torchrun, with the same arguments, adapted to jobs.

It ignores signals: the processes that it starts handle them, and end after they have saved; torchrun would end them before that.
Its exit status is that of the process that failed first; torchrun's is always 1.
"""

import signal
import sys
from collections.abc import Sequence

from lutbench.interruption import SIGNALS


def main(arguments: Sequence[str]) -> int:
    """Start processes and wait for them; return the exit status."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # also of the processes, until they hear them
    from torch.distributed import run  # here, so that no signal comes before
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.run(run.parse_args(list(arguments)))
    except ChildFailedError as error:
        status = int(error.get_first_failure()[1].exitcode)
        return status if status >= 0 else 128 - status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
