"""What makes MMEngine's Runner keep the suite's promises: keyed randomness, the logger, sealed checkpoints.

Nothing of training or evaluation is done here.
"""

import time
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import Runner
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS
from torch import Tensor, nn
from torch.utils.data import Dataset

from downstream.segmentation.checkpoints import NAME, read_checkpoint
from lutbench.checkpoint import finite_state, keep_last, write_seal
from lutbench.files import whole_file
from lutbench.progress import Bar
from lutbench.recipes.segmentation import SegmentationRecipe
from lutbench.run import Run
from lutbench.train.batches import Key, Schedule
from lutbench.train.device import may_wait, moved
from lutbench.train.logger import TrainingLogger
from lutbench.train.processes import DDP_OPTIONS, accelerator
from lutbench.train.randomness import RngStream, reseed


class SuiteRunner(Runner):
    """A Runner that starts from the weights it is given and loads nothing unsafe."""

    def wrap_model(self, model_wrapper_cfg: Any, model: nn.Module) -> nn.Module:
        """Wrap the model as MMEngine does, but on CPUs too, and with gradients in the buckets that are reduced."""
        wrapped: nn.Module
        if not self.distributed:
            wrapped = super().wrap_model(model_wrapper_cfg, model)
            return wrapped
        device = accelerator().device
        wrapped = MMDistributedDataParallel(
            module=model.to(device),
            device_ids=[device] if device.type == "cuda" else None,
            **DDP_OPTIONS,
        )
        return wrapped

    def _log_env(self, env_cfg: Any) -> None:
        """Log nothing of the machine: the record has it. MMEngine would call compilers for a second, and import distutils."""

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **_: Any) -> MMLogger:
        """Return a logger that writes to no file: MMEngine never closes one, and a later run of the name would write to it too."""
        logger: MMLogger = MMLogger.get_instance(self.experiment_name, log_level=log_level)
        return logger

    def _init_model_weights(self) -> None:
        """Leave the model's weights as they are."""

    def load_checkpoint(self, filename: str, map_location: Any = "cpu", **_: Any) -> dict[str, Any]:
        """Load the model's weights strictly, and return the whole checkpoint for the optimiser and the schedule."""
        checkpoint = read_checkpoint(Path(filename))
        model = self.model.module if is_model_wrapper(self.model) else self.model
        model.load_state_dict(checkpoint["state_dict"])
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        self._has_loaded = True
        return checkpoint


@DATASETS.register_module()
class SeveralSuffixes(BaseSegDataset):
    """MMSegmentation's dataset where images end in one of several suffixes, ``img_suffix``."""

    img_suffix: Any

    def load_data_list(self) -> list[dict[str, Any]]:
        """List the images of every suffix, in the order of their paths."""
        suffixes, found = self.img_suffix, list[dict[str, Any]]()
        for self.img_suffix in suffixes:
            found += super().load_data_list()
        self.img_suffix = suffixes
        return sorted(found, key=itemgetter("img_path"))


class KeyedDataset(Dataset[dict[str, Any]]):
    """A data set of MMSegmentation whose augmentation is drawn under the key of each look."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.metainfo = dataset.metainfo

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, index = key
        reseed(RngStream.IMAGE, self.seed, epoch, index)
        sample: dict[str, Any] = self.dataset[index]
        return sample


class SuiteHook(Hook):
    """Takes the place of MMEngine's CheckpointHook: saves when the suite's logger says so, whole, sealed and finite."""

    priority = "VERY_LOW"
    """CheckpointHook's: after the step's learning rate was set."""

    def __init__(self, run: Run[SegmentationRecipe], logger: TrainingLogger, schedule: Schedule, images: int) -> None:
        self.run, self.logger, self.schedule, self.images = run, logger, schedule, images
        self._since = 0.0
        self._rate = 0.0
        self._bar: Bar | None = None

    def before_train(self, runner: Runner) -> None:
        """Begin to wait for data."""
        self._since = time.monotonic()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Copy the batch to the device without waiting for it; MMEngine would wait. Seed what is random about this step by its key alone.

        The key is the same on every process, see :mod:`downstream.segmentation.dropout`.
        """
        self.logger.waited += time.monotonic() - self._since
        data_batch["inputs"] = list(map(moved, data_batch["inputs"]))
        for sample in data_batch["data_samples"]:
            sample.gt_sem_seg.data = moved(sample.gt_sem_seg.data)
        self._rate = max(group["lr"] for group in runner.optim_wrapper.param_groups)
        reseed(RngStream.STEP, self.run.seed, batch_idx, 0)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Note the losses; save where the logger says so."""
        assert outputs is not None
        losses = {label: outputs[name] for name, label in LOSSES.items() if isinstance(outputs.get(name), Tensor)}
        keys, rows = self.schedule.batch_keys(batch_idx), self.schedule.rows(0)
        self.logger.note(batch_idx, losses, torch.tensor([keys[row][1] for row in rows]))
        every = self.run.recipe.val_every
        if self.logger.end_step(batch_idx, self._rate, every is not None and (batch_idx + 1) % every == 0):
            with may_wait():
                self._save(runner, batch_idx + 1)
        self.logger.stop_if_asked(batch_idx)
        self._since = time.monotonic()

    def _save(self, runner: Runner, step: int) -> None:
        path = self.run.checkpoints / NAME.format(step)
        model, optimizer = runner.model, runner.optim_wrapper.optimizer
        finite_state({"model": model}, optimizer, f"{self.run.name}, after step {step}")
        if accelerator().is_main_process:
            with whole_file(path) as partial:
                runner.save_checkpoint(str(partial.parent), partial.name, by_epoch=False)
            write_seal(path.with_suffix(".json"), path, self.run.identity, step, self.logger.extra_state)
            keep_last(self.run.checkpoints, step)
        accelerator().wait_for_everyone()

    def before_val(self, runner: Runner) -> None:
        """Show how far evaluation has come, and have it stopped at once if a signal comes."""
        self._evaluation = self.logger.evaluation()
        self._evaluation.__enter__()
        self._bar = Bar(f"{self.run.name} evaluation", self.images, shown=accelerator().is_main_process)
        self._bar.__enter__()

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count another image, on every process."""
        assert self._bar is not None
        self._bar.update(min(self.images, (batch_idx + 1) * accelerator().num_processes))

    def after_val(self, runner: Runner) -> None:
        """Close the progress bar; the wait for the next batch counts from here, without the evaluation."""
        assert self._bar is not None
        self._bar.__exit__(None, None, None)
        self._evaluation.__exit__(None, None, None)
        self._since = time.monotonic()

    before_test, after_test_iter, after_test = before_val, after_val_iter, after_val


LOSSES = {"loss": "loss", "decode.loss_ce": "head", "aux.loss_ce": "auxiliary"}
"""MMSegmentation's names of the losses, and the logger's."""
