"""The logger of a training loop: progress, losses, speed, and when to save and to stop."""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor

from lutbench.errors import UserError
from lutbench.files import write_json
from lutbench.finite import CAUSES
from lutbench.interruption import Interrupted, hearing
from lutbench.losses import LossCurve
from lutbench.progress import Bar
from lutbench.train.batches import Schedule
from lutbench.train.curve import CurveRecorder, write_progress
from lutbench.train.device import may_wait
from lutbench.train.processes import accelerator, greatest
from lutbench.train.trackers import Trackers

if TYPE_CHECKING:
    from PIL.Image import Image

    from lutbench.run import Run


ROWS = 256
"""Micro-batches whose losses the buffer has room for at first; it grows where more come before a reading."""


class _Note(NamedTuple):
    """Of one micro-batch the step and the images; its losses are a row of the buffer."""

    step: int
    images: Tensor


class TrainingLogger:
    """Progress, losses, speed and time spent waiting for data, updated every few steps.

    Losses stay on the device between log entries, so that no step waits for the device. For a log entry they are averaged over
    micro-batches, steps and processes, printed and logged; the run stops if one is not finite. Signals are handled at
    the end of a step, by all processes at the same step; during evaluations immediately.
    """

    def __init__(
        self, run: "Run[Any]", schedule: Schedule, start: int, extra_state: dict[str, Any], save_every: int
    ) -> None:
        self._run = run
        self.title, self.folder, self.log_every = run.name, run.folder, run.recipe.log_every
        self.schedule, self.start, self.save_every = schedule, start, save_every
        self._kept = extra_state
        self.losses: dict[str, float] = extra_state.get("losses", {})
        """Mean of each loss over the steps of the last log entry."""
        self.seconds: float = extra_state.get("seconds", 0.0)
        """Seconds spent in the training loop, summed over interruptions."""
        self.waited: float = extra_state.get("waited", 0.0)
        """Seconds of those spent waiting for data."""
        self.skipped: int = extra_state.get("skipped", 0)
        """Number of undecodable images that were skipped."""
        self._unread: list[list[float]] = extra_state.get("unread", [])
        """Losses of the micro-batches since the last log entry, in the order of their names, so that a run stopped between two log
        entries logs the same values after it resumes."""
        self._curve = CurveRecorder(schedule.steps, extra_state.get("curve"))
        self._points = 0
        self._aside = 0
        """Blocks within each other whose time is none of the training's."""
        self.watched = 0.0
        """Seconds of this start that watching took, trackers and pictures, which are none of the training's."""
        self._notes: list[_Note] = []
        self._names: list[str] = []
        self._losses = torch.empty(0, 0)
        """A row of losses for each note, on the device: nothing of a step lives on for the sake of the log."""
        self._skips: list[Tensor] = []
        self._label = ""
        self._signalled = 0
        """The signal that this process heard."""
        self._at_once = False
        self._stopped_by = 0
        """The signal on which the processes agreed at the end of this step."""

    def __enter__(self) -> Self:
        main = accelerator().is_main_process
        self._hearing = hearing(self._hear)
        self._hearing.__enter__()
        self._last = time.monotonic()
        with self.watching():
            self._trackers = Trackers(self._run, self.start) if main else None
        self._bar = Bar(self.title, self.schedule.steps, self.start, shown=main)
        self._bar.__enter__()
        self._last = time.monotonic()
        self._waited_before, self._read_step = self.waited, self.start
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Raises Interrupted if a signal came after the last step, to which nobody listened then."""
        self._bar.__exit__(None, None, None)
        if self._trackers:
            with self.watching():
                self._trackers.close()
        self._hearing.__exit__(None, None, None)
        if kind is None and self._signalled:
            raise Interrupted(self._signalled)

    @property
    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint keeps: what was given, and the log."""
        log = {"losses": self.losses, "seconds": self.seconds, "waited": self.waited, "skipped": self.skipped}
        return self._kept | log | {"unread": self._unread, "curve": self._curve.state}

    @property
    def curve(self) -> LossCurve | None:
        """The losses so far, as a record keeps them."""
        return self._curve.curve(self.schedule.steps)

    @property
    def images_per_second(self) -> float:
        """Images per second over the whole run."""
        return self.schedule.steps * self.schedule.batch / self.seconds if self.seconds else 0.0

    def waiting(self, batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """Yield ``batches``, and count the time spent waiting for each."""
        before = time.monotonic()
        for batch in batches:
            self.waited += time.monotonic() - before
            self._skips.append(batch["skipped"])
            yield batch
            before = time.monotonic()

    def note(self, step: int, losses: dict[str, Tensor], index: Tensor) -> None:
        """Store the losses of one micro-batch until the next log entry; ``index`` (B,) are its images."""
        row, self._names = len(self._notes), list(losses)
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        if row >= len(self._losses):
            more = values.new_empty(max(ROWS, 2 * row), len(values))
            if row:
                more[:row] = self._losses[:row]
            self._losses = more
        self._losses[row].copy_(values)
        self._notes.append(_Note(step, index))

    def end_step(self, step: int, lr: float, evaluating: bool = False) -> bool:
        """Log the losses if it is time; return whether to save a checkpoint now: at intervals, at the end, or before stopping.

        Also before an evaluation, during which the run may be stopped at any moment, see :meth:`evaluation`.

        Raises:
            UserError: if a loss was not finite; the step and the images' indices are saved in the run's folder.
        """
        done = step + 1
        self._stopped_by = greatest(self._signalled)
        regular, stopping = done % self.save_every == 0 or done == self.schedule.steps, self._stopped_by > 0
        if regular or done % self.log_every == 0:
            self._read(done, lr)
        else:
            self._bar.update(done, self._label)
            if stopping or evaluating:
                self._collect()
        return regular or stopping or evaluating

    def stop_if_asked(self, step: int) -> None:
        """Raises Interrupted if a signal came; call it after saving."""
        if self._stopped_by:
            where = f"{self.title} stopped at step {step + 1} of {self.schedule.steps}, which is saved."
            raise Interrupted(self._stopped_by, where)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Stop the run immediately if a signal arrives or has arrived: an evaluation during training has nothing to save.

        Its time does not count as training time.
        """
        self._at_once = True
        try:
            with self._untimed():
                if self._signalled:
                    raise Interrupted(self._signalled)
                with may_wait():  # for what it gives; its own passes do not
                    yield
        finally:
            self._at_once = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Exclude the time of a block from the training time, for evaluations and pictures during training."""
        began, outermost = time.monotonic(), not self._aside
        try:
            with self._untimed():
                yield
        finally:
            if outermost:
                self.watched += time.monotonic() - began

    @contextmanager
    def _untimed(self) -> Iterator[None]:
        """Exclude the time of a block from the training time; nested blocks count once."""
        began = time.monotonic()
        self._aside += 1
        try:
            yield
        finally:
            self._aside -= 1
            if not self._aside:
                self._last += time.monotonic() - began

    def log(self, step: int, **scalars: float) -> None:
        """Write scalars to the trackers."""
        if self._trackers:
            with self.watching():
                self._trackers.log(step, {name.replace("_", " "): value for name, value in scalars.items()})

    def picture(self, step: int, name: str, image: "Image") -> None:
        """Write a picture to the trackers."""
        if self._trackers:
            with self.watching():
                self._trackers.picture(step, name, image)

    def _read(self, done: int, lr: float) -> None:
        names, elapsed, waited = self._collect()
        self.losses = dict(zip(names, torch.tensor(self._unread).mean(0).tolist(), strict=True))
        self._unread = []
        speed = (done - self._read_step) * self.schedule.batch / elapsed
        share = waited / elapsed
        values_label = "  ".join(f"{name} {value:.3f}" for name, value in self.losses.items())
        self._label = f"{values_label}  {speed:.0f} images/s  {share:.0%} waiting for data"
        self._bar.update(done, self._label)
        self.log(done, **self.losses, lr=lr, images_per_second=speed, waiting_for_data=share)
        self._show_curve(done)
        self._read_step = done

    def _show_curve(self, done: int) -> None:
        """Write the curve for ``lutbench status`` where it has another point."""
        if self._trackers and (points := done * self._curve.points // self.schedule.steps) > self._points:
            with self.watching():
                write_progress(self.folder, self._curve.curve(done))
            self._points = points

    def _collect(self) -> tuple[list[str], float, float]:
        """Take the losses from the device; return their names, and the seconds that passed and were waited since the last time."""
        names, local = self._names, self._losses[: len(self._notes)]
        skips = torch.full((1, len(names)), float(sum(int(s.sum()) for s in self._skips)), device=local.device)
        with may_wait():
            everywhere = accelerator().reduce(torch.cat([local, skips]), "sum").cpu()
        values = everywhere[:-1] / accelerator().num_processes
        if not values.isfinite().all():
            with may_wait():
                self._stop_at_non_finite(local.cpu(), names)
        now = time.monotonic()
        elapsed, waited = now - self._last, self.waited - self._waited_before
        self.seconds += elapsed
        self.skipped += int(everywhere[-1, 0])
        self._unread = [*self._unread, *values.tolist()]
        for note, row in zip(self._notes, values.tolist(), strict=True):
            self._curve.add(note.step, names, row)
        self._last, self._waited_before = now, self.waited
        self._notes.clear()
        self._skips.clear()
        return names, elapsed, waited

    def _stop_at_non_finite(self, values: Tensor, names: list[str]) -> None:
        rank = accelerator().process_index
        found = [(note, row) for note, row in zip(self._notes, values, strict=True) if not row.isfinite().all()]
        wrong = [note for note, _ in found]
        if wrong:
            first, row = found[0]
            losses = {name: str(value) for name, value in zip(names, row.tolist(), strict=True)}
            report = {"step": first.step + 1, "process": rank, "losses": losses, "images": first.images.tolist()}
            write_json(self.folder / f"non-finite-{rank}.json", report)
        steps = self.schedule.steps
        where = (
            f"step {wrong[0].step + 1} of {steps}"
            if wrong
            else f"step {self._notes[-1].step + 1} of {steps} or shortly before"
        )
        raise UserError(
            f"{self.title}: a loss was not finite at {where}. {CAUSES} The losses and the images' indices are in "
            f"{self.folder}/non-finite-*.json. Everything saved before is kept; the same command resumes from there."
        )

    def _hear(self, number: int, again: bool) -> None:
        if again or self._at_once:
            raise Interrupted(number)
        self._signalled = number
        if accelerator().is_main_process:
            name, at_once = signal.Signals(number).name, "; once more stops at once" * (number == signal.SIGINT)
            os.write(2, f"\n{self.title}: {name}: saves after this step, and stops{at_once}.\n".encode())
