"""What a job does on each of its nodes: start the run, forward signals, and requeue the job if a signal asked it to stop."""

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import submitit

from lutbench.cluster.slurm import requeue, this_job
from lutbench.cluster.submissions import JobEnd, key_of, now, write_end
from lutbench.interruption import SIGNALS
from lutbench.recipes.loading import load_suite

LOOK_EVERY = 0.2
"""Seconds between looks at the run's processes."""

LOCK_PATIENCE = "180"
"""Seconds for which a job waits for a run that another command holds: an NFS server releases the locks of a lost node after about 90
seconds."""


@dataclass(frozen=True)
class PerformRun:
    """A run as a job; submitit keeps it in a file until the job starts."""

    suite: str
    """As in ``lutbench run``; paths are absolute."""
    run: str
    key: str
    """Hash of the run's settings when it was submitted."""
    overrides: tuple[str, ...]
    data_root: str
    """May contain variables that a node sets, such as ``$TMPDIR``."""
    options: tuple[str, ...]
    """The options for the folders of runs and results."""
    results: str
    folder: str
    """Folder of the files about the suite's jobs."""
    processes: int = 1
    """Processes of each node."""
    requeues: int = 0

    def command(self, environment: "submitit.JobEnvironment | None" = None) -> list[str]:
        """Return the command that a node of the job starts: one process, or several through torchrun."""
        changes = [part for override in self.overrides for part in ("--set", override)]
        data = f"--data-root={os.path.expandvars(self.data_root)}"
        run = ["-m", "lutbench", "run", self.suite, "--only", self.run, data, *self.options, *changes]
        nodes = environment.num_nodes if environment else 1
        if nodes * self.processes == 1:
            return [sys.executable, *run]
        return [
            sys.executable,
            "-m",
            "lutbench.cluster.launch",
            *rendezvous(environment),
            f"--nproc-per-node={self.processes}",
            *run,
        ]

    def __call__(self) -> None:
        """Perform the run; ends with its exit status if that is not 0."""
        environment = submitit.JobEnvironment()
        if problem := self._changed():
            print(f"lutbench: {problem}", file=sys.stderr, flush=True)
            status, heard = 1, 0
        else:
            status, heard = watched(self.command(environment))
        if status == 0:
            return
        told = heard or (status - 128 if status - 128 in SIGNALS else 0)
        if environment.global_rank == 0:
            self._end(status, told)
        sys.exit(status)

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """Return what submitit requeues if a signal comes before the run has started: this job."""
        return submitit.helpers.DelayedSubmission(self)

    def _changed(self) -> str:
        """Return why the run is no longer the one that was submitted; empty if it is."""
        suite = load_suite(self.suite, self.overrides, Path(self.results))
        planned = next((run for run in suite.runs if run.name == self.run), None)
        if planned is not None and key_of(suite, planned) == self.key:
            return ""
        return f"{self.run}: its settings in the suite file have changed since it was submitted. Submit it again."

    def _end(self, status: int, told: int) -> None:
        """Note how the run ended, and requeue the job if a signal asked it to stop.

        Only the first node of a job does this, once for all nodes.
        """
        job, restarts = this_job(), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        name = signal.Signals(told).name if told else ""
        end = JobEnd(job=job, status=status, signal=name, node=platform.node(), when=now())
        if told and restarts >= self.requeues:
            print(
                f"lutbench: job {job} was requeued {restarts} times, the maximum, and is not requeued again.",
                file=sys.stderr,
            )
        elif told:
            write_end(Path(self.folder), end.model_copy(update={"requeued": True}))  # before SLURM ends this process
            if not (problem := requeue(job)):
                return
            print(f"lutbench: job {job} could not be requeued: {problem}.", file=sys.stderr)
        write_end(Path(self.folder), end)


def rendezvous(environment: "submitit.JobEnvironment | None") -> Sequence[str]:
    """Return torchrun's rendezvous options: the nodes meet at the first node, on a port derived from the job's number."""
    if environment is None or environment.num_nodes == 1:
        return ["--standalone"]
    host = os.environ.get("SLURM_LAUNCH_NODE_IPADDR") or environment.hostnames[0]
    port = 20000 + int(environment.raw_job_id) % 20000
    where = [f"--nnodes={environment.num_nodes}", f"--node-rank={environment.node}"]
    return [*where, f"--master-addr={host}", f"--master-port={port}"]


def watched(command: Sequence[str]) -> tuple[int, int]:
    """Start a run and wait for it; return its exit status and the first signal that came, or 0.

    A scheduler may signal this process only, or all processes that it started. So a signal is forwarded, once, to each process that
    performs the run, but not to their child processes; a run treats a repeated signal as one. Ctrl-C is forwarded as SIGTERM, because
    a second Ctrl-C would stop the run at once.
    """
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # in the run too, until it hears them
    child = subprocess.Popen(command, env={**os.environ, "LUTBENCH_LOCK_PATIENCE": LOCK_PATIENCE})
    for number in SIGNALS:
        signal.signal(number, hear)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    told: set[int] = set()
    launched = "lutbench.cluster.launch" in command
    while (status := child.poll()) is None:
        for process in _processes(child.pid, launched) - told if heard else ():
            told.add(process)
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM if heard[0] == signal.SIGINT else heard[0])
        time.sleep(LOOK_EVERY)
    return (status if status >= 0 else 128 - status), (heard[0] if heard else 0)


def _processes(child: int, launched: bool) -> set[int]:
    """Return the processes that perform the run: the child, or those that it has launched."""
    if not launched:
        return {child}
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            if int(stat.read_text().rpartition(")")[2].split()[1]) == child:
                found.add(int(stat.parent.name))
    return found
