"""What GPUs do in another way than CPUs gives the same values, and what saves memory or time changes nothing else."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage import data
from tiny_student import CONTROLS, random_views, tiny_recipe
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from toy_runs import TOY, defaults, performed, toy_run, write_images

from downstream.mixing import DropPaths
from lutbench.errors import UserError
from lutbench.models.encoders import create_encoder, encode
from lutbench.recipes.base import EncoderRecipe
from lutbench.train.device import on_device
from lutbench.train.processes import accelerator
from lutbench.train.randomness import seeded
from lutbench.train.regional import checkpoint_blocks, compile_blocks, compiles, not_compiled
from pretrain.frameworks.mae import LastBlock
from pretrain.frameworks.vit import embedded, patchify, take
from pretrain.masking import masked_patches
from pretrain.photometrics import apply_everywhere, apply_in_batch, draw_photometrics
from pretrain.reconstruction import reconstruct
from pretrain.student import Student, build_student
from pretrain.teacher import Teacher
from pretrain.views import Views, upright

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

FRAMEWORKS: dict[str, dict[str, Any]] = {
    "SimMIM": {"framework": "simmim", "mask_unit": 8},
    "SimMIM, masked teacher": {"framework": "simmim", "mask_unit": 8, "teacher_view": "masked"},
    "two blocks in the decoder": {"decoder_depth": 2},
}


def stepped(student: Student, teacher: Teacher | None, views: Views) -> dict[str, Tensor]:
    """The losses and all gradients of one pass."""
    student.zero_grad()
    losses = student(views, teacher(views) if teacher else None)
    losses.total.backward()
    found = {name: loss.detach() for name, loss in losses._asdict().items() if loss is not None}
    return found | {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}


def both(changes: dict[str, Any]) -> tuple[Student, Teacher | None]:
    student = build_student(tiny_recipe(**changes), seed=0)
    return student, Teacher(student) if student.context else None


def views_on(device: str) -> Views:
    return Views(**{name: part.to(device) for name, part in vars(random_views()).items()})


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Shortcuts of GPUs


@pytest.mark.parametrize("control", [*CONTROLS, *FRAMEWORKS])
def test_patches_that_are_kept_and_masked_pixels_alone_give_the_losses_and_gradients_of_all(control: str) -> None:
    student, teacher = both({**CONTROLS, **FRAMEWORKS}[control])
    views = random_views()
    assert views.view2 is not None
    expected = stepped(student, teacher, views)
    student.sparse = True
    found = stepped(
        student, teacher, Views(patchify(views.view1, 4), patchify(views.view2, 4), views.noise, views.boxes)
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if not name.endswith("qkv.bias"):  # the keys' bias has no gradient but rounding noise
            assert (found[name] - value).norm() <= 1e-5 * value.norm() + 1e-7, name


def test_masked_pixels_alone_are_predicted_where_that_is_asked_for() -> None:
    student, _ = both({"context_weight": 0.0, "decoder_depth": 2})
    shapes = []
    student.decoder.predict.register_forward_hook(lambda _, __, output: shapes.append(output.shape[1]))
    for student.sparse in (False, True):
        student(random_views())
    assert shapes == [1 + 16, 12]


def test_a_matrix_product_on_kept_patches_is_the_convolution_and_then_the_choice() -> None:
    encoder = both({})[0].encoder
    with torch.no_grad():
        encoder.patch_embed.proj.bias.normal_(generator=torch.Generator().manual_seed(0))
    images, kept = random_views().view1, torch.tensor([[3, 15, 0]] * 6)
    assert torch.allclose(embedded(encoder, patchify(images, 4)), encoder.patch_embed(images), atol=1e-6)
    assert torch.allclose(
        embedded(encoder, patchify(images, 4), kept), take(encoder.patch_embed(images), kept), atol=1e-6
    )
    assert torch.equal(embedded(encoder, images, kept), take(encoder.patch_embed(images), kept))


def test_the_last_block_gives_of_kept_tokens_what_it_gives_of_all() -> None:
    block = LastBlock(16, 2, qkv_bias=True)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(parameter.numel()))
    tokens, kept = (
        torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(0)),
        torch.tensor([[8, 2], [0, 1], [4, 5]]),
    )
    assert torch.allclose(block(tokens, kept=kept), take(block(tokens), kept), atol=1e-5)


def test_masked_patches_are_those_that_are_not_visible() -> None:
    visible = torch.tensor([[5, 0, 3], [1, 2, 4]])
    assert masked_patches(visible, 6).tolist() == [[1, 2, 4], [0, 3, 5]]


@pytest.mark.parametrize("device", DEVICES)
def test_views_are_mirrored_on_the_device_as_their_bits_say(device: str) -> None:
    views = torch.randint(256, (4, 6, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    bits = torch.tensor([True, False, False, True])
    found = upright(views, bits, torch.device(device))
    assert found.device.type == device
    assert found.is_contiguous()
    as_read = views.permute(0, 3, 1, 2)
    expected = torch.stack([image.flip(-1) if bit else image for image, bit in zip(as_read, bits, strict=True)])
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_changes_of_colour_made_to_all_images_are_those_made_to_chosen_ones_and_one_graph(device: str) -> None:
    crops = [data.astronaut()[17 * n : 17 * n + 48, :48] for n in range(24)]
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()
    with seeded(5):
        drawn = torch.stack([draw_photometrics().numbers() for _ in crops])
    assert set(drawn[:, 9].tolist()) == {0.0, 1.0, 2.0}
    expected = apply_in_batch(pixels, drawn)
    backend = "aot_eager" if device == "cpu" else "inductor"
    traced = torch.compile(apply_everywhere, backend=backend, fullgraph=True, dynamic=False)
    for way in (apply_everywhere, traced):
        found = way(pixels.to(device), drawn.to(device)).cpu()
        assert (found.int() - expected.int()).abs().float().mean() <= (0 if device == "cpu" else 0.1)


def test_views_as_patches_are_the_patches_of_the_views() -> None:
    draw = torch.Generator().manual_seed(0)
    batch = {
        name: torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8, generator=draw) for name in ("view1", "view2")
    }
    batch["flips"] = torch.tensor([[True, False], [False, True]])
    batch["noise"] = torch.rand(2, 16, generator=draw)
    images = Views.from_batch(batch, torch.device("cpu"))
    patches = Views.from_batch(batch, torch.device("cpu"), patch_size=4)
    assert images.view2 is not None
    assert patches.view2 is not None
    assert torch.equal(patches.view1, patchify(images.view1, 4))
    assert torch.equal(patches.view2, patchify(images.view2, 4))


# Compiled, checkpointed


def test_blocks_are_compiled_one_by_one_under_their_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def traced(function: Any, **options: Any) -> Any:
        compiled.append(function)
        return torch._dynamo.optimize("eager")(function)

    plain, compiling = (both({"decoder_depth": 2}) for _ in range(2))
    expected = stepped(*plain, random_views())
    monkeypatch.setattr(torch, "compile", traced)
    student, teacher = compiling
    assert teacher is not None
    compile_blocks(student.encoder, student.decoder, teacher.encoder)
    student.compile_loss()
    assert len(compiled) == 2 + 2 + 2 + 1
    assert equal(stepped(student, teacher, random_views()), expected)
    assert list(student.state_dict()) == list(plain[0].state_dict())
    assert plain[1] is not None
    assert list(teacher.state_dict()) == list(plain[1].state_dict())


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Counts the graphs that are made, for which no code is written; one beyond PyTorch's limit is an error."""
    counter, compile = CompileCounterWithBackend("aot_eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend=counter, **options))
    torch.compiler.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield counter
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [False, True])
def test_all_blocks_share_their_graphs_and_passes_beside_the_training_make_none(
    graphs: CompileCounterWithBackend, checkpointed: bool
) -> None:
    recipe = tiny_recipe(decoder_depth=8)
    deep = recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"depth": 12})})
    student, views = build_student(deep, seed=0), random_views()
    teacher, student.sparse = Teacher(student), True
    assert views.view2 is not None
    patches = Views(patchify(views.view1, 4), patchify(views.view2, 4), views.noise)
    expected = stepped(student, teacher, patches)
    if checkpointed:
        checkpoint_blocks(student.encoder, student.decoder)
    compile_blocks(student.encoder, student.decoder, teacher.encoder)
    for _ in range(2):
        found = stepped(student, teacher, patches)
        assert graphs.frame_count == 4, "the teacher's, the student's, the decoder's, and that of its last block"
    assert torch.allclose(found["total"], expected["total"], rtol=1e-5)
    assert counters["frames"]["ok"] == counters["frames"]["total"] == 4
    with torch.no_grad(), not_compiled():
        for batch in range(1, 10):
            encode(student.encoder, random_views(batch).view1, "mean")
            reconstruct(student, random_views(batch))
    stepped(student, teacher, patches)
    assert graphs.frame_count == 4


def test_a_run_starts_without_the_graphs_of_earlier_runs(graphs: CompileCounterWithBackend) -> None:
    with torch._dynamo.config.patch(recompile_limit=1):
        for width in (24, 48):
            network = create_encoder(tiny_recipe().encoder.model_copy(update={"width": width}))
            compile_blocks(network)
            network(random_views().view1)
    assert graphs.frame_count == 2


@pytest.mark.slow
def test_a_run_compiles_its_training_alone(tmp_path: Path, graphs: CompileCounterWithBackend) -> None:
    write_images(tmp_path)
    settings = {"epochs": 3, "compile": True, "knn_every": 1, "knn_neighbours": 2, "save_every": 1}
    text = f"{TOY}\n{defaults('pretrain', **settings)}\n[method.lut]\npretrain = 'lut'\n[pretrain.lut]\n"
    performed(toy_run(tmp_path, suite_text=text))
    made = graphs.frame_count
    assert made == 4, "of the teacher's, the student's and the decoder's blocks, and of the loss"
    performed(toy_run(tmp_path, kind="finetune", epochs=2, warmup_epochs=1, batch=10, eval_every=1, compile=True))
    assert graphs.frame_count == made + 2, "of the first block, which drops no path, and of the others"


@pytest.mark.parametrize("device", DEVICES)
def test_a_compiled_classifier_is_trained_as_one_that_is_not(device: str, request: pytest.FixtureRequest) -> None:
    if device == "cpu":
        request.getfixturevalue("graphs")  # writes no code
    architecture, gradients = tiny_recipe().encoder, []
    for compiled in (False, True):
        with seeded(0):
            classifier = create_encoder(architecture, None, 0.5, classes=3).to(device).train()
        paths = DropPaths.replacing(classifier, 0)
        if compiled:
            compile_blocks(classifier)
        for step in range(2):
            classifier.zero_grad()
            paths.draw(step, 6, range(6), torch.device(device))
            classifier(random_views().view1.to(device)).square().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in classifier.parameters()]))
    assert (gradients[1] - gradients[0]).norm() <= 1e-3 * gradients[0].norm()


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_a_resumed_run_has_the_bits_of_an_unbroken_one_on_its_device(tmp_path: Path, device: str) -> None:
    assert accelerator().device.type == device
    write_images(tmp_path)
    text = f"{TOY}\n{defaults('pretrain', epochs=2, save_every=2)}\n[method.lut]\npretrain = 'lut'\n[pretrain.lut]\n"
    run = toy_run(tmp_path, suite_text=text)
    expected = performed(run)["checkpoint"]
    newest = max(run.checkpoints.glob("step-*[0-9]"))
    shutil.rmtree(newest)
    assert list(run.checkpoints.glob("step-*[0-9]")), "one is left to resume from"
    assert performed(run)["checkpoint"] == expected


def test_auto_compiles_nothing_on_a_cpu() -> None:
    assert [compiles(setting) for setting in ("auto", True, False)] == [torch.cuda.is_available(), True, False]


@pytest.mark.parametrize("changes", [{"decoder_depth": 2}, FRAMEWORKS["SimMIM"]], ids=str)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_checkpointed_blocks_give_the_same_bits_and_are_computed_twice(
    changes: dict[str, Any], sparse: bool, device: str
) -> None:
    student, teacher = (network and network.to(device) for network in both(changes))
    assert student is not None
    views = views_on(device)
    student.sparse = sparse
    passes = []
    student.encoder.blocks[0].norm1.register_forward_hook(lambda *_: passes.append(1))
    expected = stepped(student, teacher, views)
    assert len(passes) == 1
    checkpoint_blocks(student.encoder, *([student.decoder] if "framework" not in changes else []))
    assert equal(stepped(student, teacher, views), expected)
    assert len(passes) == 3
    with torch.no_grad():
        student(views, teacher(views) if teacher else None)
    assert len(passes) == 4, "nothing is computed again without a backward pass"


@pytest.mark.parametrize(("model", "kind"), [("resnet18", "ResNet"), ("efficientnet_b0", "EfficientNet")])
def test_checkpointing_is_refused_of_what_has_no_row_of_blocks_and_of_batchnorm(model: str, kind: str) -> None:
    told = f"checkpointing = true: expected a sequence of blocks without BatchNorm.*found {kind}"
    with pytest.raises(UserError, match=told):
        checkpoint_blocks(create_encoder(EncoderRecipe(model=model)))


# The teacher in bf16


@pytest.mark.parametrize("device", DEVICES)
def test_a_teacher_in_bf16_encodes_with_a_copy_that_every_update_makes_anew(device: str) -> None:
    student = both({})[0].to(device)
    teacher = Teacher(student)
    names, views = list(teacher.state_dict()), views_on(device)
    expected = teacher(views)
    teacher.encode_in_bf16()
    found = teacher(views)
    assert found.view2.dtype == torch.float32
    assert 0 < (found.view2 - expected.view2).norm() / expected.view2.norm() < 0.05
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.01)
    teacher.update(student, 0.5)
    assert list(teacher.state_dict()) == names
    assert {t.dtype for t in teacher.state_dict().values() if t.is_floating_point()} == {torch.float32}
    for name, value in teacher.running_encoder.state_dict().items():
        assert torch.equal(value, teacher.encoder.state_dict()[name].to(torch.bfloat16)), name


# Batches on their way


def test_on_a_cpu_batches_come_as_they_are() -> None:
    batches = [{"view1": torch.zeros(2), "index": torch.arange(2)} for _ in range(3)]
    assert [id(batch) for batch in on_device(iter(batches))] == [id(batch) for batch in batches]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_arrive_whole_and_names_stay_on_the_host() -> None:
    sent = [{"view1": torch.full((64, 3, 224, 224), n).pin_memory(), "index": torch.arange(64)} for n in range(8)]
    for number, batch in enumerate(on_device(iter(sent))):
        assert batch["view1"].is_cuda
        assert not batch["index"].is_cuda
        assert bool((batch["view1"] == number).all())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_compiled_step_on_a_gpu_is_the_step_of_a_cpu() -> None:
    views = random_views()
    assert views.view2 is not None
    expected = stepped(*both({"decoder_depth": 2}), views)
    student = build_student(tiny_recipe(decoder_depth=2), seed=0).cuda()
    teacher = Teacher(student)
    compile_blocks(student.encoder, student.decoder, teacher.encoder)
    student.compile_loss()
    student.sparse = True
    on_gpu = Views(patchify(views.view1, 4).cuda(), patchify(views.view2, 4).cuda(), views.noise.cuda())
    found = stepped(student, teacher, on_gpu)
    for name in ("total", "mim", "context"):
        assert found[name].item() == pytest.approx(expected[name].item(), rel=1e-3)


def test_a_model_without_blocks_is_compiled_as_a_whole_where_that_is_asked_for() -> None:
    for whole in (False, True):
        network = nn.Sequential(nn.Linear(2, 2))
        compile_blocks(network, whole=whole)
        assert (network._compiled_call_impl is not None) == whole
        assert network[0]._compiled_call_impl is None
