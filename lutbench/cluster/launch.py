"""``python -m lutbench.cluster.launch``, with the arguments of torchrun: torchrun, as a job has to have it.

Signals pass it by: the processes that it starts hear them, and end when they have saved; torchrun would end them first.
It ends with the exit status of the process that failed first, of which torchrun says 1 in any case.
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
