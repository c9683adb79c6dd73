"""The logger of a training loop: progress, losses, speed, and when to save and to stop."""

import signal
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lutbench.errors import Halt, UserError
from lutbench.files import write_json
from lutbench.progress import Bar
from lutbench.train.batches import Schedule
from lutbench.train.processes import accelerator

if TYPE_CHECKING:
    from lutbench.run import Run


class _Note(NamedTuple):
    """The losses of one micro-batch, still on the device, and its images."""

    step: int
    losses: dict[str, Tensor]
    images: Tensor


class TrainingLogger:
    """Progress, losses, speed and time spent waiting for data, read every few steps and nowhere else.

    Losses stay on the device between readings, so that no step waits for the device. A reading averages them over
    micro-batches, steps and processes, prints and logs them, stops the run if one is not finite, and hears SIGTERM and
    SIGINT, which every process must hear at the same step.
    """

    def __init__(
        self, run: "Run[Any]", schedule: Schedule, start: int, extra_state: dict[str, Any], save_every: int
    ) -> None:
        self.title, self.folder, self.log_every = run.name, run.folder, run.recipe.log_every
        self.schedule, self.start, self.save_every = schedule, start, save_every
        self._kept = extra_state
        self.losses: dict[str, float] = extra_state.get("losses", {})
        """Mean of each loss over the steps of the last reading."""
        self.seconds: float = extra_state.get("seconds", 0.0)
        """Seconds spent in the loop, over all interruptions."""
        self.waited: float = extra_state.get("waited", 0.0)
        """Seconds of those spent waiting for data."""
        self.skipped: int = extra_state.get("skipped", 0)
        """Number of undecodable images that were passed over."""
        self._notes: list[_Note] = []
        self._skips: list[Tensor] = []
        self._label = ""
        self._asked_to_stop = False

    def __enter__(self) -> Self:
        main = accelerator().is_main_process
        self._bar = Bar(self.title, self.schedule.steps, self.start, shown=main)
        self._bar.__enter__()
        self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.start) if main else None
        self._handlers = {s: signal.signal(s, self._ask_to_stop) for s in (signal.SIGTERM, signal.SIGINT)}
        self._last = time.monotonic()
        self._waited_before, self._read_step = self.waited, self.start
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.__exit__(None, None, None)
        if self._writer:
            self._writer.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @property
    def extra_state(self) -> dict[str, Any]:
        """What a checkpoint keeps: what was given, and the log."""
        log = {"losses": self.losses, "seconds": self.seconds, "waited": self.waited, "skipped": self.skipped}
        return self._kept | log

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
        """Keep the losses of one micro-batch until the next reading; ``index`` (B,) names its images."""
        self._notes.append(_Note(step, {name: loss.detach() for name, loss in losses.items()}, index))

    def end_step(self, step: int, lr: float) -> bool:
        """Read the losses if it is time; return whether to save a checkpoint now.

        Raises:
            UserError: if a loss was not finite; the step and the images' indices are saved in the run's folder.
        """
        done = step + 1
        saving = done % self.save_every == 0 and done < self.schedule.steps
        if saving or done % self.log_every == 0 or done == self.schedule.steps:
            stop = self._read(done, lr)
            if stop and done < self.schedule.steps:
                self._asked_to_stop = True
                return True
        else:
            self._bar.update(done, self._label)
        return saving

    def stop_if_asked(self, step: int) -> None:
        """Raises Stopped if SIGTERM or SIGINT came; call it after saving."""
        if self._asked_to_stop:
            raise Stopped(step + 1, self.schedule.steps)

    def log(self, step: int, **scalars: float) -> None:
        """Write scalars to TensorBoard."""
        if self._writer:
            for name, value in scalars.items():
                self._writer.add_scalar(name.replace("_", " "), value, step)

    def _read(self, done: int, lr: float) -> bool:
        names = list(self._notes[0].losses)
        local = torch.stack([torch.stack([note.losses[name].float() for name in names]) for note in self._notes])
        flag = torch.full((1, len(names)), float(self._signalled), device=local.device)
        skips = torch.full((1, len(names)), float(sum(int(s.sum()) for s in self._skips)), device=local.device)
        everywhere = accelerator().reduce(torch.cat([local, flag, skips]), "sum").cpu()
        values = everywhere[:-2] / accelerator().num_processes
        if not values.isfinite().all():
            self._stop_at_non_finite(local.cpu(), names)
        now = time.monotonic()
        elapsed, waited = now - self._last, self.waited - self._waited_before
        self.seconds += elapsed
        self.skipped += int(everywhere[-1, 0])
        self.losses = dict(zip(names, values.mean(0).tolist(), strict=True))
        speed = (done - self._read_step) * self.schedule.batch / elapsed
        share = waited / elapsed
        values_label = "  ".join(f"{name} {value:.3f}" for name, value in self.losses.items())
        self._label = f"{values_label}  {speed:.0f} images/s  {share:.0%} waiting for data"
        self._bar.update(done, self._label)
        self.log(done, **self.losses, lr=lr, images_per_second=speed, waiting_for_data=share)
        self._last, self._waited_before, self._read_step = now, self.waited, done
        self._notes.clear()
        self._skips.clear()
        return bool(everywhere[-2, 0])

    def _stop_at_non_finite(self, values: Tensor, names: list[str]) -> None:
        rank = accelerator().process_index
        wrong = [note for note, row in zip(self._notes, values, strict=True) if not row.isfinite().all()]
        if wrong:
            first = wrong[0]
            losses = {name: str(float(first.losses[name])) for name in names}
            report = {"step": first.step, "process": rank, "losses": losses, "images": first.images.tolist()}
            write_json(self.folder / f"non-finite-{rank}.json", report)
        where = f"step {wrong[0].step}" if wrong else f"one of the last {len(values)} micro-batches, on another process"
        raise UserError(
            f"{self.title}: a loss was not finite at {where}. The step, the losses and the images' indices are in "
            f"{self.folder}/non-finite-*.json; the last checkpoint is from before. Look at those images, "
            "or lower base_lr, and start again."
        )

    _signalled = False

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self._signalled:  # asked twice: do not wait for the next reading
            raise KeyboardInterrupt
        self._signalled = True


class Stopped(Halt):
    """The run was asked to stop by a signal, and stopped after saving."""

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(f"Stopped at step {step} of {steps}, which is saved. Give the same command again to go on.")
