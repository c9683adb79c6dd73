"""Two processes compute what one does: BatchNorm by itself, and the whole student under DistributedDataParallel."""

import socket
import warnings
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny_student import random_views, tiny_recipe
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.parallel import DistributedDataParallel
from toy_runs import in_processes

from lutbench.train.batchnorm import SyncBatchNorm
from lutbench.train.processes import accelerator
from lutbench.train.regional import compile_blocks
from pretrain.student import build_student
from pretrain.teacher import Teacher
from pretrain.views import Views

SHARES = (slice(0, 2), slice(2, 7))
"""Unequal shares of a batch of 7, for BatchNorm."""


def batch() -> tuple[Tensor, Tensor]:
    """Inputs with a large mean, and what their loss weighs the outputs by."""
    draw = torch.Generator().manual_seed(0)
    return 10 + torch.randn(7, 5, generator=draw), torch.randn(7, 5, generator=draw)


def normalise(module: nn.BatchNorm1d, share: slice) -> dict[str, Tensor]:
    """Two training passes and one in evaluation; a loss that is a sum over images, so that gradients add up."""
    inputs, weights = batch()
    with torch.no_grad():
        module.weight.copy_(torch.linspace(0.5, 2, 5))
        module.bias.copy_(torch.linspace(-1, 1, 5))
    found = {}
    for scale in (1.0, 3.0):
        x = (scale * inputs[share]).requires_grad_()
        y = module(x)
        (y * weights[share]).sum().backward()
        assert x.grad is not None
        found |= {f"output {scale}": y.detach(), f"input gradient {scale}": x.grad}
    module.eval()
    found["evaluation"] = module(inputs[share]).detach()
    return found


TOGETHER: dict[str, dict[str, Any]] = {
    "LUT": {},
    "infonce": {"context_loss": "infonce"},
    "per token": {"context_target": "tokens"},
    "second view for nothing": {"context_weight": 0.0, "second_view": "always"},
}
"""Controls in which an image's loss depends on others, or could."""


def student_step(views: Views, distributed: bool, changes: dict[str, Any]) -> dict[str, Tensor]:
    """Losses, gradients and running statistics of one pass."""
    student = build_student(tiny_recipe(**changes), seed=0)
    targets = Teacher(student)(views)
    model = DistributedDataParallel(student) if distributed else student
    losses = model(views, targets)
    losses.total.backward()
    found = {f"gradient {name}": p.grad for name, p in student.named_parameters() if p.grad is not None}
    found |= {f"buffer {name}": buffer for name, buffer in student.named_buffers()}
    return found | {"losses": torch.stack(losses).detach()}


def one_of_two(rank: int, port: int) -> dict[str, Tensor]:
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(minutes=10))
    module = SyncBatchNorm(5)
    found = normalise(module, SHARES[rank])
    found |= {f"state {name}": value for name, value in module.state_dict().items()}
    half = slice(4 * rank, 4 * rank + 4)
    views = random_views(batch=8)
    assert views.view2 is not None
    assert views.boxes is not None
    share = Views(views.view1[half], views.view2[half], views.noise[half], views.boxes[half])
    for control, changes in TOGETHER.items():
        found |= {f"{control}: {name}": value for name, value in student_step(share, True, changes).items()}
    dist.destroy_process_group()
    return found


def the_other(port: int, path: str) -> None:
    torch.set_num_threads(1)
    torch.save(one_of_two(1, port), path)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What each of two gloo processes found; this process is the first of them."""
    path = tmp_path_factory.mktemp("processes") / "second.pt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    second = mp.get_context("spawn").Process(target=the_other, args=(port, str(path)))
    second.start()
    first = one_of_two(0, port)
    second.join()
    assert second.exitcode == 0
    return first, torch.load(path)


def test_two_processes_normalise_as_one(processes: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
    reference = nn.BatchNorm1d(5)
    expected = normalise(reference, slice(0, 7))
    for name, value in expected.items():
        assert torch.allclose(torch.cat([found[name] for found in processes]), value, atol=2e-5), name
    for name, value in reference.state_dict().items():
        for found in processes:
            assert torch.allclose(found[f"state {name}"], value, rtol=1e-6), name


@pytest.mark.parametrize("control", TOGETHER)
def test_two_processes_train_the_student_as_one(
    processes: tuple[dict[str, Tensor], dict[str, Tensor]], control: str
) -> None:
    expected = student_step(random_views(batch=8), False, TOGETHER[control])
    losses = torch.stack([found[f"{control}: losses"] for found in processes]).mean(0)
    assert torch.allclose(losses, expected.pop("losses"), rtol=1e-5)
    for name, value in expected.items():
        first, second = (found[f"{control}: {name}"] for found in processes)
        assert torch.equal(first, second), name
        if not value.is_floating_point():
            assert torch.equal(first, value), name
        elif not name.endswith("qkv.bias"):  # the keys' bias has no gradient but rounding noise
            assert (first - value).norm() <= 1e-4 * value.norm(), name


def test_one_process_is_torchs_own_in_names_and_bits() -> None:
    ours, torchs = SyncBatchNorm(5), nn.BatchNorm1d(5)
    expected = normalise(torchs, slice(0, 7))
    assert all(torch.equal(value, expected[name]) for name, value in normalise(ours, slice(0, 7)).items())
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert all(torch.equal(value, torchs.state_dict()[name]) for name, value in ours.state_dict().items())


def test_gradients_lie_where_they_are_reduced_and_buffers_are_not_sent() -> None:
    def settings() -> list[bool | list[str]]:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", FutureWarning)
            model = accelerator().prepare(nn.Linear(3, 3))
        sends = getattr(model, "forward_sync_buffers", None)  # since torch 2.13
        return [
            model.gradient_as_bucket_view,
            model.broadcast_buffers if sends is None else sends,
            [str(one.message) for one in told],
        ]

    assert in_processes(settings, 2) == [[True, False, []]] * 2


def test_the_statistics_of_both_views_go_in_the_same_messages() -> None:
    """Two messages for each BatchNorm: the sums, and the squares around their mean."""

    def messages() -> list[int]:
        accelerator()  # the process group
        student, views, reduce, sent = build_student(tiny_recipe(), seed=0), random_views(batch=8), dist.all_reduce, []
        targets = Teacher(student)(views)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dist, "all_reduce", lambda tensor: (sent.append(len(tensor)), reduce(tensor)))
            student(views, targets)
        return [len(sent), sum(isinstance(module, SyncBatchNorm) for module in student.modules())]

    (sent, norms), other = in_processes(messages, 2)
    assert norms > 0
    assert [sent, norms] == other == [2 * norms, norms]


def test_compiled_blocks_train_inside_distributed_data_parallel() -> None:
    def step(compiled: bool) -> list[float]:
        student, views = build_student(tiny_recipe(), seed=0), random_views(batch=8)
        targets, graphs, compile = Teacher(student)(views), CompileCounterWithBackend("aot_eager"), torch.compile
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "compile", lambda function, **options: compile(function, backend=graphs, **options))
            if compiled:
                compile_blocks(student.encoder, student.decoder)
            accelerator().prepare(student)(views, targets).total.backward()
        assert bool(graphs.frame_count) == compiled
        return [float(p.grad.norm()) for p in student.parameters() if p.grad is not None]

    first, second = in_processes(lambda: [step(False), step(True)], 2)
    assert first[1] == pytest.approx(first[0], rel=1e-5)
    assert first == second
