"""A suite file is checked before anything is run, makes the runs that it says, and tells which settings matter."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from toy_runs import HEAD, SCRATCH

from lutbench.errors import UserError
from lutbench.kinds import KINDS, Kind
from lutbench.recipes.analysis import AnalysisRecipe
from lutbench.recipes.attentive import AttentiveRecipe
from lutbench.recipes.base import DataRecipe, EncoderRecipe, Recipe, RunRecipe
from lutbench.recipes.cluster import ClusterRecipe
from lutbench.recipes.dense import DenseKnnRecipe, DenseLinearRecipe
from lutbench.recipes.downstream import EncoderSource, FinetuneRecipe
from lutbench.recipes.loading import SUITES, load_suite
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.probes import KnnRecipe, LinearRecipe, LogisticRecipe
from lutbench.recipes.retrieval import InstanceRetrievalRecipe, RetrievalRecipe, RevisitedDataRecipe
from lutbench.recipes.segmentation import SegmentationDataRecipe, SegmentationRecipe
from lutbench.recipes.suite import LoadedSuite
from lutbench.record import identity_of

SUITE = f"""{HEAD}seeds = [0, 1]
compare = [["lut", "mae"]]

[data.pets]
path = "pets"
[data.birds]
path = "birds"

[encoder.toy]
model = "vit_tiny_patch16_224"
image_size = 16
patch_size = 4

[defaults.pretrain]
data = "pets"
encoder = "toy"
epochs = 6
warmup_epochs = 1
batch = 8

[defaults.finetune]
data = "pets"

[defaults.knn]
data = "pets"

[pretrain.lut]
[pretrain.mae]
context_weight = 0.0
crop = "random"

[method.lut]
pretrain = "lut"
[method.mae]
pretrain = "mae"
{SCRATCH}

[downstream.pets-finetune]
kind = "finetune"
[downstream.pets-knn]
kind = "knn"
methods = ["lut", "mae"]
[downstream.birds-knn]
kind = "knn"
data = "birds"
methods = ["mae"]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "toy.toml").write_text(SUITE)
    return tmp_path / "toy.toml"


def refused(path: Path, *overrides: str, more: str = "") -> str:
    """What is said of the suite with these settings changed, and this at its end."""
    path.write_text(SUITE + more)
    with pytest.raises(UserError) as error:
        load_suite(str(path), overrides)
    assert "\n" not in str(error.value), "one paragraph"
    return str(error.value)


# Mistakes


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("titel=other", "titel: no such setting. Did you mean 'title'?"),
        ("defaults.pretrain.epchs=5", "epchs: no such setting. Did you mean 'epochs'?"),
        ("defaults.linear.epchs=5", "defaults.linear.epchs: no such setting. Did you mean 'epochs'?"),
        ("defaults.knn.neighbors=5", "neighbors: no such setting. Did you mean 'neighbours'?"),
        ("data.pets.splitt=x", "data.pets.splitt: no such setting. Known: label, source, path, train"),
        ("data.pets.lable=x", "data.pets.lable: no such setting. Did you mean 'label'?"),
        ("encoder.toy.dpeth=3", "encoder.toy.dpeth: no such setting. Did you mean 'depth'?"),
        ("pretrain.mae.mask_ration=0.5", "pretrain.mae.mask_ration: no such setting. Did you mean 'mask_ratio'?"),
        ("method.lut.lable=x", "method.lut.lable: no such setting. Did you mean 'label'?"),
        ("downstream.pets-knn.pol=mean", "downstream.pets-knn.pol: no such setting. Did you mean 'pool'?"),
        ("downstream.pets-knn.titel=x", "downstream.pets-knn.titel: no such setting. Did you mean 'title'?"),
        ("downstream.pets-knn.kind=kn", "downstream.pets-knn.kind: unknown kind 'kn'. Did you mean 'knn'?"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_known(path: Path, override: str, told: str) -> None:
    assert told in refused(path, override)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("pretrian.x", "pretrian: no such setting. Did you mean 'pretrain'?"),
        ("downstram.x", "downstram: no such setting. Did you mean 'downstream'?"),
        ("default.pretrain", "default: no such setting. Did you mean 'defaults'?"),
        ("methods.x", "methods: no such setting. Did you mean 'method'?"),
        ("task.x", "task: no such setting."),
        ("defaults.fintune", "defaults.fintune: there is no kind of run 'fintune'. Did you mean 'finetune'?"),
    ],
)
def test_an_unknown_table_is_refused_with_the_nearest_known(path: Path, table: str, told: str) -> None:
    assert told in refused(path, more=f"[{table}]\n")


def test_a_setting_that_the_suite_decides_itself_is_refused_in_a_task(path: Path) -> None:
    assert "downstream.pets-knn.encoder" in refused(path, "downstream.pets-knn.encoder=toy")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("title=3", "title: input should be a valid string, found 3."),
        ("kind=evidnce", "kind: input should be 'pipeline', 'exploration' or 'evidence', found 'evidnce'."),
        ("seeds=0", "seeds: input should be a valid list, found 0."),
        ("seeds=[]", "seeds: list should have at least 1 item"),
        ("seeds=[0, -1]", "seeds.1: input should be greater than or equal to 0, found -1."),
        ("pretrain.lut.epochs=6.0", "pretrain.lut.epochs: input should be a valid integer, found 6.0."),
        ("pretrain.lut.epochs=many", "pretrain.lut.epochs: input should be a valid integer, found 'many'."),
        ("pretrain.lut.epochs=true", "pretrain.lut.epochs: input should be a valid integer, found True."),
        ("pretrain.lut.epochs=0", "pretrain.lut.epochs: input should be greater than 0, found 0."),
        ("pretrain.lut.photometric=1", "pretrain.lut.photometric: input should be a valid boolean, found 1."),
        (
            "pretrain.lut.crop=smple",
            "pretrain.lut.crop: input should be 'simple' or 'random', found 'smple'. Did you mean 'simple'?",
        ),
        (
            "downstream.pets-finetune.blocks=[1]",
            "pets-finetune.blocks: no such setting. Kinds that have it: linear, knn, ",
        ),
        ("downstream.pets-finetune.C=1.0", "pets-finetune.C: no such setting. Kinds that have it: logistic."),
        ("pretrain.lut.mask_ratio=1.0", "pretrain.lut.mask_ratio: input should be less than 1, found 1.0."),
        ("pretrain.lut.momentum=1.5", "pretrain.lut.momentum: input should be less than or equal to 1, found 1.5."),
        ("pretrain.lut.base_lr=nan", "pretrain.lut.base_lr: the number nan, which is not finite."),
        ("pretrain.lut.base_lr=inf", "pretrain.lut.base_lr: the number inf, which is not finite."),
        ("pretrain.lut.betas=[0.9]", "pretrain.lut.betas: list should have at least 2 items"),
        ("pretrain.lut.betas=[0.9, 1.5]", "pretrain.lut.betas.1: input should be less than 1, found 1.5."),
        ("encoder.toy.depth=0", "encoder.toy.depth: input should be greater than 0, found 0."),
        ("data.pets.undecodable=ignore", "data.pets.undecodable: input should be 'stop' or 'skip', found 'ignore'"),
        ("method.lut.timm=yes", "method.lut.timm: input should be a valid boolean, found 'yes'."),
        ("downstream.pets-knn.neighbours=0", "downstream.pets-knn.neighbours: input should be greater than 0"),
        ("downstream.pets-knn.methods=lut", "downstream.pets-knn.methods: input should be a valid list, found 'lut'."),
        ("downstream.pets-knn.kind=3", "downstream.pets-knn.kind: input should be a valid string, found 3."),
        ("downstream.pets-knn.eval_crop=1e-4", "pets-knn.eval_crop: input should be greater than or equal to 0.1"),
        ("defaults.finetune.cutmix=1e-320", "pets-finetune.cutmix: expected 0 (off) or at least 0.01"),
        ("defaults.finetune.mixup=1e-3", "pets-finetune.mixup: expected 0 (off) or at least 0.01"),
        ("defaults.finetune.drop_path=1.0", "pets-finetune.drop_path: input should be less than 1, found 1.0."),
        ("defaults.finetune.crop_scale=[-1, 1.0]", "pets-finetune.crop_scale.0: input should be greater than 0"),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_refused_by_name(path: Path, override: str, told: str) -> None:
    assert told in refused(path, override)


@pytest.mark.parametrize(
    "name",
    [
        *("data", "data.pets", "encoder.toy", "method.lut", "defaults", "defaults.pretrain"),
        *("pretrain", "pretrain.lut", "downstream", "downstream.pets-knn"),
    ],
)
def test_a_value_where_a_table_belongs_is_refused_by_name(path: Path, name: str) -> None:
    assert refused(path, f"{name}=3").startswith(f"{name}: input should be a valid dictionary")


def test_what_is_required_and_not_there_is_named(path: Path) -> None:
    path.write_text('title = "toy"')
    with pytest.raises(UserError, match=r"about: required, but missing\. kind: required, but missing"):
        load_suite(str(path))
    told = refused(path, more='[pretrain.more]\n[downstream.more]\ndata = "pets"\n')
    assert told == "downstream.more.kind: required, but missing."


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("pretrain.lut.warmup_epochs=6", "pretrain.lut: warmup_epochs = 6 must be less than epochs = 6"),
        ("pretrain.lut.micro_batch=1", "pretrain.lut: the heads' BatchNorm needs at least 2 images per forward pass"),
        ("pretrain.lut.micro_batch=3", "pretrain.lut: batch = 8 is not a multiple of micro_batch = 3"),
        ("pretrain.lut.micro_batch=16", "pretrain.lut: batch = 8 is not a multiple of micro_batch = 16"),
        (
            "downstream.pets-finetune.epochs=4",
            "downstream.pets-finetune: warmup_epochs = 5 must be less than epochs = 4",
        ),
        ("downstream.pets-finetune.micro_batch=5", "pets-finetune: batch = 1024 is not a multiple of micro_batch = 5"),
        (
            "downstream.pets-finetune.batch=33",
            "downstream.pets-finetune: batch = 33: mixup and CutMix need an even number",
        ),
        ("downstream.pets-finetune.mix_group=7", "pets-finetune: mix_group = 7: mixup and CutMix need an even number"),
        (
            "downstream.pets-finetune.crop_scale=[1.0, 0.5]",
            "pets-finetune.crop_scale: expected the smaller share first",
        ),
        ("seeds=[0, 1, 0]", "pretrain/lut/seed0 would run 2 times: list every seed"),
        ('downstream.pets-knn.methods=["lut", "mae", "lut"]', "downstream/pets-knn/lut/seed0 would run 2 times"),
        (
            "method.lut.timm=true",
            "method.lut: expected exactly one of pretrain, timm, checkpoint, scratch and finetuned, found pretrain, timm",
        ),
        (
            "method.scratch.scratch=false",
            "method.scratch: expected exactly one of pretrain, timm, checkpoint, scratch and finetuned, found none",
        ),
        (
            "method.lut.encoder=toy",
            "method.lut: encoder (the architecture) is required for timm, checkpoint and scratch",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(path: Path, override: str, told: str) -> None:
    assert told in refused(path, override)


def test_a_linear_probe_longer_in_warming_up_than_in_all_is_refused(path: Path) -> None:
    more = '[downstream.probe]\nkind = "linear"\ndata = "pets"\nepochs = 10\n'
    assert "downstream.probe: warmup_epochs = 10 must be less than epochs = 10" in refused(path, more=more)


def test_an_odd_batch_is_fine_where_nothing_pairs_images(path: Path) -> None:
    loaded = load_suite(
        str(path), [f"defaults.finetune.{change}" for change in ("batch=33", "mixup=0.0", "cutmix=0.0")]
    )
    assert settings(loaded, "downstream/pets-finetune/lut/seed0")["batch"] == 33


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("pretrain.lut.data=pet", "pretrain.lut.data: there is no [data.pet] in the suite file. Did you mean 'pets'?"),
        ("pretrain.mae.encoder=tyo", "there is no [encoder.tyo] in the suite file. Did you mean 'toy'? Known: toy."),
        ("downstream.birds-knn.data=brids", "downstream.birds-knn.data: there is no [data.brids] in the suite file."),
        ("method.scratch.encoder=tyo", "method.scratch.encoder: there is no [encoder.tyo]"),
        (
            "method.lut.pretrain=lit",
            "method.lut.pretrain: there is no [pretrain.lit] in the suite file. Did you mean 'lut'? Known: lut, mae.",
        ),
        ('downstream.pets-knn.methods=["mea"]', "pets-knn.methods: unknown method 'mea'. Did you mean 'mae'?"),
        (
            'downstream.pets-knn={kind="segmentation", data="pets"}',
            "pets-knn.data: expected a dataset of images with masks, found pets with",
        ),
        (
            "data.pets.source=mosaics",
            "pretrain.lut.data: expected a dataset of images, found pets with source = 'mosaics'.",
        ),
        ("data.pets.source=mosaic", "data.pets.source: unknown source 'mosaic'. Did you mean 'mosaics'?"),
        ('compare=[["lut"]]', "compare: expected pairs of methods such as ['lut', 'mae'], found ['lut']."),
        ('compare=[["lut", "mae", "scratch"]]', "compare: expected pairs"),
        ('compare=[["lut", "lut"]]', "compare: expected pairs"),
        ('compare=[["lut", "mea"]]', "found ['lut', 'mea']. Methods: lut, mae, scratch."),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_with_what_there_is(path: Path, override: str, told: str) -> None:
    assert told in refused(path, override)


def test_what_is_no_suite_file_is_refused_with_the_nearest_suite(tmp_path: Path) -> None:
    for name in ("tny", "suites/tiny", str(tmp_path / "tiny.toml")):
        with pytest.raises(
            UserError,
            match=r"There is no suite .*Shipped suites: camvid, evidence, evidence-ablations, evidence-gpu, evidence-settings, paper, small, tiny",
        ):
            load_suite(name)
    with pytest.raises(UserError, match="Did you mean 'tiny'"):
        load_suite("tny")
    for content in (b"a = [", b"title = caf\xe9"):
        (tmp_path / "broken.toml").write_bytes(content)
        with pytest.raises(UserError, match=r"broken\.toml cannot be read as a TOML file"):
            load_suite(str(tmp_path / "broken.toml"))


# Names, text and sizes


TABLES = ("data", "encoder", "pretrain", "method", "downstream", "classifier", "shifted", "robustness")
NAMES = ("../../../../escape", "/tmp/x", ".hidden", "..", "x" * 65, "a b", "", "caf\u00e9", "a\\\\b")


@pytest.mark.parametrize(
    ("table", "name"), [*((table, "a/b") for table in TABLES), *(("data", name) for name in NAMES)]
)
def test_a_name_that_is_no_name_of_a_folder_is_refused(path: Path, table: str, name: str) -> None:
    found = refused(path, more=f'[{table}."{name}"]')
    assert f"{table}: expected a name, found " in found
    assert "a name has at most 64 characters" in found


def test_a_name_is_checked_in_what_a_command_sets_too(path: Path) -> None:
    assert "pretrain: expected a name, found 'a/b'" in refused(path, "pretrain.a/b={}")
    assert "method: expected a name, found '../x'" in refused(path, 'method={"../x" = {pretrain = "lut"}}')


def test_a_suite_is_named_by_its_file_and_that_is_a_name_too(tmp_path: Path) -> None:
    for name in ("my suite.toml", ".toml.toml", f"{'x' * 65}.toml"):
        (tmp_path / name).write_text(SUITE)
        with pytest.raises(UserError, match=r"the file name is the suite's name, and a name has .* Rename the file\."):
            load_suite(str(tmp_path / name))
    longest = tmp_path / f"{'x' * 60}_-.9.toml"
    longest.write_text(SUITE)
    assert load_suite(str(longest)).name == longest.stem


@pytest.mark.parametrize("text", ["\\u001b[31mred", "two\\nlines", "\\u0000", "\\u202egnidnib", "\\u2028", "\\u009b1m"])
@pytest.mark.parametrize("key", ["title", "method.lut.label", "data.pets.path", "downstream.pets-knn.title", "about"])
def test_control_characters_are_refused_in_every_text(path: Path, key: str, text: str) -> None:
    if key == "about" and "lines" in text:
        path.write_text(SUITE)
        assert load_suite(str(path), ['about="two\\nlines"']).config.about == "two\nlines", "it alone has several lines"
        return
    assert f"{key}: the control character" in refused(path, f'{key}="{text}"')


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ("[" * 100 + "]" * 100, "nested more than 32 deep"),
        ("1" * 5000, "a number has too many digits"),
        ("0x" + "f" * 5000, "an integer of more than 64 bits"),
        (str(2**63), "an integer of more than 64 bits"),
    ],
)
def test_nesting_and_numbers_without_end_are_refused(path: Path, value: str, told: str) -> None:
    for message in (refused(path, f"data.pets.path={value}"), refused(path, more=f"x = {value}\n")):
        assert told in message
        assert len(message) < 600, "what is refused is not printed at full length"


@pytest.mark.parametrize(
    "key",
    [
        "encoder.toy.image_size", "encoder.toy.patch_size", "encoder.toy.width", "encoder.toy.depth", "encoder.toy.heads",
        "pretrain.lut.batch", "pretrain.lut.micro_batch", "pretrain.lut.epochs", "pretrain.lut.decoder_width",
        "pretrain.lut.decoder_depth", "pretrain.lut.head_width", "pretrain.lut.head_depth", "pretrain.lut.crop_padding",
        "pretrain.lut.workers", "pretrain.lut.threads", "downstream.pets-knn.eval_batch", "downstream.pets-knn.image_size",
    ],
)  # fmt: skip
def test_sizes_that_would_fill_the_memory_are_refused_by_name(path: Path, key: str) -> None:
    assert f"{key}: input should be less than or equal to" in refused(path, f"{key}={10**12}")


def test_a_seed_that_no_generator_takes_is_refused(path: Path) -> None:
    assert "seeds.0: input should be less than 4294967296" in refused(path, f"seeds=[{2**32}]")


def test_a_suite_file_with_a_byte_order_mark_is_read(path: Path) -> None:
    path.write_text(SUITE, encoding="utf-8-sig")
    assert load_suite(str(path)).config.title == "toy"


# --set


def settings(loaded: LoadedSuite, run: str) -> dict[str, Any]:
    return next(planned.recipe.model_dump() for planned in loaded.runs if planned.name == run)


def test_set_changes_what_it_names_and_nothing_else(path: Path) -> None:
    before = load_suite(str(path))
    after = load_suite(
        str(path),
        [
            "pretrain.lut.epochs=20",  # an integer of TOML
            "pretrain.lut.crop=random",  # no TOML: plain text
            'pretrain.lut.precision = "fp32"',  # spaces around, as one writes it in the file
            "pretrain.lut.head_norm = layer",
            "pretrain.lut.betas=[0.8, 0.9]",
            "defaults.knn.neighbours=5",
            "defaults.linear.epochs=50",  # a table that the file does not have
        ],
    )
    changed = {"epochs": 20, "crop": "random", "precision": "fp32", "head_norm": "layer", "betas": [0.8, 0.9]}
    assert settings(after, "pretrain/lut/seed0") == settings(before, "pretrain/lut/seed0") | changed
    assert settings(after, "pretrain/mae/seed0") == settings(before, "pretrain/mae/seed0")
    for run in ("pets-knn/lut", "pets-knn/mae", "birds-knn/mae"):
        assert settings(after, f"downstream/{run}/seed1")["neighbours"] == 5
    assert settings(after, "downstream/pets-finetune/lut/seed0") == settings(
        before, "downstream/pets-finetune/lut/seed0"
    )


def test_a_runs_own_setting_goes_before_the_default_and_the_last_set_before_the_first(path: Path) -> None:
    loaded = load_suite(str(path), ["defaults.pretrain.context_weight=0.5", "seeds=[3]", "seeds=[7]"])
    assert settings(loaded, "pretrain/lut/seed7")["context_weight"] == 0.5
    assert settings(loaded, "pretrain/mae/seed7")["context_weight"] == 0.0


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("pretrain.lut.epochs", "expected PATH=VALUE, such as pretrain.lut.epochs=20."),
        ("=20", "expected PATH=VALUE"),
        ("pretrain..epochs=20", "expected PATH=VALUE"),
        ("pretrain.ltu.epochs=20", "no table pretrain.ltu. Did you mean 'lut'? Tables: lut, mae."),
        ("pretain.lut.epochs=20", "no table pretain. Did you mean 'pretrain'?"),
        ("pretrain.mae.crop.x=20", "no table pretrain.mae.crop."),
        ("defaults.pretrain.epochs.x=20", "no table defaults.pretrain.epochs."),
        ("title.x=20", "no table title."),
        ("pretrain.lut.epchs=20", "pretrain.lut.epchs: no such setting. Did you mean 'epochs'?"),
        ("task=20", "task: no such setting."),
    ],
)
def test_a_set_that_names_nothing_is_refused(path: Path, override: str, told: str) -> None:
    assert told in refused(path, override)


# The runs


SHIPPED = ("tiny", "camvid", "evidence", "evidence-ablations", "evidence-gpu", "evidence-settings", "small", "paper")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_suite_that_comes_with_the_repository_loads_and_its_runs_are_in_order(name: str) -> None:
    loaded = load_suite(name)
    names = [planned.name for planned in loaded.runs]
    assert len(names) == len(set(names)) > 0
    for place, planned in enumerate(loaded.runs):
        source = planned.recipe.source
        started = planned.stage in ("downstream", "analysis") and source is not None and source.kind == "run"
        if started or (planned.stage == "robustness" and planned.method in loaded.config.method):
            assert planned.needs in names[:place], planned.name
        else:
            assert planned.needs is None, planned.name


def test_no_suite_of_the_repository_is_left_out_above() -> None:
    assert {file.stem for file in SUITES.glob("*.toml")} == set(SHIPPED)


def test_every_task_is_run_for_its_methods_and_every_seed(path: Path) -> None:
    loaded = load_suite(str(path))
    expected = [f"pretrain/{task}/seed{seed}" for task in ("lut", "mae") for seed in (0, 1)]
    tasks = {"pets-finetune": ("lut", "mae", "scratch"), "pets-knn": ("lut", "mae"), "birds-knn": ("mae",)}
    expected += [
        f"downstream/{t}/{method}/seed{s}" for t, methods in tasks.items() for method in methods for s in (0, 1)
    ]
    assert [planned.name for planned in loaded.runs] == expected
    for planned in loaded.runs:
        assert planned.name.endswith(f"seed{planned.seed}")
        needs = planned.stage == "downstream" and planned.method != "scratch"
        assert planned.needs == (f"pretrain/{planned.method}/seed{planned.seed}" if needs else None)


def test_a_task_takes_the_architecture_of_the_run_that_it_starts_from(path: Path) -> None:
    loaded = load_suite(str(path), ["pretrain.lut.encoder={ model = 'vit_small_patch16_224' }", "encoder.toy.depth=3"])
    models = {
        method: settings(loaded, f"downstream/pets-finetune/{method}/seed0")["encoder"]
        for method in ("lut", "mae", "scratch")
    }
    assert models["lut"]["architecture"]["model"] == "vit_small_patch16_224"
    assert models["mae"]["architecture"] == models["scratch"]["architecture"]
    assert models["mae"]["architecture"]["depth"] == 3
    assert [models[method]["kind"] for method in models] == ["run", "run", "scratch"]


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("lut", ["pretrain/lut/*", "downstream/pets-finetune/lut/*", "downstream/pets-knn/lut/*"]),
        ("pets-*", ["downstream/pets-*"]),
        ("*-knn", ["downstream/*-knn/*"]),
        ("pets-knn/lut", ["downstream/pets-knn/lut/*"]),
        ("*-knn/mae", ["downstream/pets-knn/mae/*", "downstream/birds-knn/mae/*"]),
        ("lut/seed1", ["*/lut/seed1"]),
        ("seed0", ["*/seed0"]),
        ("pretrain", ["pretrain/*"]),
        ("pretrain/lut/seed0", ["pretrain/lut/seed0"]),
        ("downstream/pets-knn/lut/seed1", ["downstream/pets-knn/lut/seed1"]),
    ],
)
def test_only_chooses_by_name_glob_part_or_consecutive_parts(path: Path, only: str, expected: list[str]) -> None:
    loaded = load_suite(str(path))
    wanted = [run.name for run in loaded.runs if any(fnmatch(run.name, pattern) for pattern in expected)]
    assert [run.name for run in loaded.chosen([], [only])] == wanted != []


def test_a_seed_is_all_of_its_draws_and_a_whole_name_is_one_run(path: Path) -> None:
    loaded = load_suite(str(path), ["downstream.pets-knn.shots=1", "downstream.pets-knn.draws=3"])
    every, seed1 = loaded.chosen(["downstream"], ["pets-knn/lut"]), "downstream/pets-knn/lut/seed1"
    assert len(every) == 2 * 3
    draws = [seed1, f"{seed1}-draw1", f"{seed1}-draw2"]
    for pattern in ("pets-knn/lut/seed1", "lut/seed1", "seed1"):
        assert [run.name for run in loaded.chosen([], [pattern]) if run in every] == draws
    for name in draws:
        assert [run.name for run in loaded.chosen([], [name])] == [name]
    assert [run.name for run in loaded.chosen([], ["lut/seed1-draw2"])] == draws[2:]


def test_choices_add_up_within_the_stages_and_keep_the_order(path: Path) -> None:
    loaded = load_suite(str(path))
    assert loaded.chosen() == list(loaded.runs)
    assert {run.stage for run in loaded.chosen(["downstream"])} == {"downstream"}
    assert loaded.chosen(["downstream", "pretrain"]) == list(loaded.runs)
    chosen = [run.name for run in loaded.chosen(["downstream"], ["seed1", "birds-knn"])]
    assert chosen == [n for n in (r.name for r in loaded.runs) if n[0] == "d" and ("seed1" in n or "birds" in n)]


@pytest.mark.parametrize(
    ("stages", "only", "told"),
    [
        (
            ["downstrem"],
            [],
            "--stage downstrem: unknown stage. Did you mean 'downstream'? Known: pretrain",
        ),
        (
            [],
            ["ltu"],
            "--only ltu: no run of suite toy matches. Did you mean 'lut'? Known: birds-knn, downstream",
        ),
        ([], ["lut", "ltu"], "--only ltu"),
        ([], ["pets"], "Did you mean 'pets-knn'"),
        ([], ["pets-knn/scratch"], "--only pets-knn/scratch: no run"),
        ([], ["lut/pets-knn"], "--only lut/pets-knn: no run"),
        ([], ["pets-knn/*/lut"], "--only pets-knn/*/lut: no run"),
        ([], [""], "--only : no run"),
        (["pretrain"], ["pets-knn"], "--only pets-knn: no run"),
    ],
)
def test_a_choice_of_nothing_is_refused(path: Path, stages: list[str], only: list[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        load_suite(str(path)).chosen(stages, only)
    assert told in str(error.value)


# What affects results

ENCODER = EncoderRecipe(model="vit_tiny_patch16_224", image_size=16, patch_size=4)
SOURCE = EncoderSource(architecture=ENCODER, kind="checkpoint", path="weights.pth")
PETS = DataRecipe(path="pets")
STREETS = SegmentationDataRecipe(source="scenes", path="streets", classes=["a", "b"])

IMAGE_TASK: dict[str, Any] = {
    "resized_by": "torchvision",
    "data": DataRecipe(path="pets", val="test"),
    "encoder": SOURCE.model_copy(update={"kind": "scratch"}),
    "image_size": 32,
    "eval_crop": 1.0,
    "precision": "bf16",
    "threads": 3,
}
CLASSIFICATION = IMAGE_TASK | {"shots": 5, "share": 0.01, "subset": "lists/1percent.txt", "draw": 1}

DENSE: dict[str, Any] = {
    "data": SegmentationDataRecipe(source="scenes", path="streets", classes=["a", "b", "c"]),
    "encoder": SOURCE.model_copy(update={"kind": "scratch"}),
    "precision": "bf16",
    "threads": 3,
    "crop": 640,
    "stride": 256,
    "scale": [1024, 512],
    "blocks": [6],
}

AFFECTING: dict[type[Recipe], dict[str, Any]] = {
    DataRecipe: {
        "few": 24,
        "source": "photographs",
        "train": "training",
        "val": "test",
        "image_column": "img",
        "label_column": "",
        "revision": "v2",
        "undecodable": "skip",
        "streaming": True,
        "held_out": 0.1,
        "bits": 12,
        "config": "small",
    },
    EncoderRecipe: {
        "model": "vit_small_patch16_224",
        "image_size": 32,
        "patch_size": 8,
        "width": 48,
        "depth": 3,
        "heads": 4,
    },
    EncoderSource: {
        "architecture": ENCODER.model_copy(update={"depth": 3}),
        "kind": "scratch",
        "export": "teacher",
        "at": 0.1,
        "part": "teacher.backbone",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bilinear",
        "crop_pct": 0.9,
    },
    PretrainRecipe: {
        "framework": "simmim",
        "mask_unit": 16,
        "data": DataRecipe(path="pets", train="training"),
        "encoder": ENCODER.model_copy(update={"depth": 3}),
        "crop": "random",
        "crop_padding": 0,
        "crop_scale": [0.67, 1.0],
        "resized_by": "torchvision",
        "photometric": False,
        "photometrics_on": "device",
        "mask_ratio": 0.5,
        "decoder_width": 256,
        "decoder_depth": 4,
        "decoder_heads": 8,
        "normalise_target": False,
        "context_weight": 1.0,
        "second_view": "always",
        "context_loss": "l2",
        "context_temperature": 0.1,
        "context_target": "class",
        "both_directions": False,
        "teacher_view": "masked",
        "momentum": 0.99,
        "momentum_schedule": "fixed",
        "teacher_precision": "bf16",
        "head_depth": 3,
        "head_width": 1024,
        "head_norm": "layer",
        "epochs": 800,
        "warmup_epochs": 20,
        "batch": 2048,
        "micro_batch": 1024,
        "base_lr": 1e-3,
        "lr_rule": "linear",
        "lr_schedule": "step",
        "min_lr": 1e-6,
        "weight_decay": 0.1,
        "betas": [0.9, 0.999],
        "clip_gradient": 5.0,
        "precision": "fp32",
        "threads": 3,
    },
    FinetuneRecipe: CLASSIFICATION
    | {
        "epochs": 50,
        "warmup_epochs": 3,
        "batch": 512,
        "base_lr": 5e-4,
        "lr_rule": "linear",
        "min_lr": 0.0,
        "layer_decay": 0.65,
        "weight_decay": 0.1,
        "betas": [0.9, 0.95],
        "drop_path": 0.0,
        "label_smoothing": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "mix_group": 16,
        "rand_augment": "",
        "erasing": 0.0,
        "crop_scale": [0.2, 1.0],
        "flip": 0.0,
        "head_std": 0.02,
    },
    LinearRecipe: CLASSIFICATION
    | {
        "epochs": 50,
        "warmup_epochs": 3,
        "batch": 512,
        "base_lr": 0.2,
        "weight_decay": 0.1,
        "momentum": 0.8,
        "pool": "mean",
        "blocks": [-1],
        "fresh_crops": False,
        "crop_scale": [0.2, 1.0],
    },
    KnnRecipe: CLASSIFICATION
    | {"neighbours": 10, "temperature": 0.1, "pool": "class", "blocks": [6], "feature_transform": "whiten"},
    LogisticRecipe: CLASSIFICATION
    | {
        "C": 0.3,
        "C_grid": [0.1, 1.0],
        "halvings": 0,
        "held_out": 0.1,
        "max_iter": 100,
        "tol": 1e-3,
        "pool": "mean",
        "blocks": [-2, -1],
        "feature_transform": "centre",
    },
    AttentiveRecipe: CLASSIFICATION
    | {
        "epochs": 50,
        "warmup_epochs": 3,
        "batch": 512,
        "lr": 1e-2,
        "weight_decay": 0.1,
        "betas": [0.9, 0.95],
        "heads": 3,
        "mlp_ratio": 2.0,
        "fresh_crops": False,
        "crop_scale": [0.2, 1.0],
    },
    AnalysisRecipe: IMAGE_TASK
    | {
        "split": "train",
        "images": 100,
        "measures": ["attention"],
        "alpha_from": 5,
        "alpha_to": 0.4,
        "neighbours": 10,
        "temperature": 0.1,
        "bank": 500,
        "viewed": 50,
        "blocks": [2],
    },
    SegmentationDataRecipe: {
        "few": 24,
        "source": "mosaics",
        "train": "train",
        "val": "test",
        "image_suffix": ".png",
        "mask_suffix": "_labels.png",
        "classes": ["a", "b", "c"],
        "reduce_zero_label": True,
        "ignore": 11,
    },
    SegmentationRecipe: {
        "data": SegmentationDataRecipe(source="scenes", path="streets", classes=["a", "b", "c"]),
        "encoder": SOURCE.model_copy(update={"kind": "scratch"}),
        "precision": "bf16",
        "threads": 3,
        "crop": 640,
        "stride": 256,
        "scale": [1024, 512],
        "ratio": [0.8, 1.2],
        "cat_max_ratio": 1.0,
        "flip": 0.0,
        "photometric": False,
        "iterations": 80_000,
        "warmup": 0,
        "batch": 32,
        "lr": 2e-5,
        "power": 0.9,
        "betas": [0.9, 0.95],
        "weight_decay": 0.1,
        "layer_decay": 0.95,
        "drop_path": 0.2,
        "layer_scale": 0.1,
        "blocks": [2, 5, 8, 11],
        "channels": 512,
        "auxiliary_channels": 128,
        "auxiliary_weight": 0.2,
        "dropout": 0.0,
        "tta": True,
    },
    DenseLinearRecipe: DENSE
    | {
        "ratio": [0.8, 1.2],
        "cat_max_ratio": 1.0,
        "flip": 0.0,
        "photometric": False,
        "iterations": 80_000,
        "warmup": 0,
        "batch": 32,
        "lr": 2e-5,
        "power": 0.9,
        "betas": [0.9, 0.95],
        "weight_decay": 0.1,
    },
    DenseKnnRecipe: DENSE | {"neighbours": 20, "temperature": 0.1, "bank": 1000},
    RetrievalRecipe: IMAGE_TASK | {"recall_at": [1, 10], "pool": "class", "blocks": [6]},
    RevisitedDataRecipe: {"source": "rparis6k", "few": 24},
    InstanceRetrievalRecipe: {
        "data": RevisitedDataRecipe(source="rparis6k"),
        "encoder": SOURCE.model_copy(update={"kind": "scratch"}),
        "image_size": 32,
        "precision": "bf16",
        "threads": 3,
        "pool": "class",
        "blocks": [6],
    },
    ClusterRecipe: {},
}

LOOKS: dict[str, Any] = {"eval_batch": 8, "workers": 0, "log_every": 3, "trackers": []}
WITHOUT_EFFECT: dict[type[Recipe], dict[str, Any]] = {
    DataRecipe: {"label": "Pets", "path": "elsewhere/pets", "metric": "mean per class"},
    EncoderRecipe: {"label": "ViT-toy"},
    EncoderSource: {"path": "elsewhere/weights.pth"},
    PretrainRecipe: {
        "workers": 0,
        "save_every": 7,
        "log_every": 3,
        "compile": True,
        "shard": True,
        "checkpointing": True,
        "cache": True,
        "snapshots": [0.1, 0.5],
        "snapshot_teacher": True,
        "trackers": ["wandb"],
        "knn_every": 10,
        "knn_images": 500,
        "knn_neighbours": 5,
    },
    FinetuneRecipe: LOOKS
    | {"micro_batch": 256, "eval_every": 1, "save_every": 7, "compile": True, "checkpointing": True, "shard": True},
    LinearRecipe: LOOKS,
    KnnRecipe: LOOKS,
    LogisticRecipe: LOOKS,
    AttentiveRecipe: LOOKS,
    AnalysisRecipe: LOOKS,
    SegmentationDataRecipe: {"label": "Streets", "path": "elsewhere", "palette": [[0, 0, 0], [255, 255, 255]]},
    SegmentationRecipe: {"workers": 0, "log_every": 3, "trackers": [], "val_every": 100, "save_every": 7},
    DenseLinearRecipe: {"workers": 0, "log_every": 3, "trackers": [], "save_every": 7},
    DenseKnnRecipe: {"workers": 0, "log_every": 3, "trackers": []},
    RetrievalRecipe: LOOKS,
    RevisitedDataRecipe: {"label": "Oxford", "path": "elsewhere"},
    InstanceRetrievalRecipe: LOOKS,
    ClusterRecipe: {
        "partition": "gpu",
        "account": "lab",
        "qos": "high",
        "constraint": "h100",
        "time": "2-00:00:00",
        "nodes": 2,
        "gpus": 8,
        "gpu_type": "h100",
        "processes": 4,
        "cpus": 88,
        "memory": 500.0,
        "parallel": 20,
        "grace": 300,
        "requeues": 3,
        "data_root": "$TMPDIR/data",
        "setup": ["module load cuda"],
        "options": {"exclude": "node7"},
    },
}

BASE: dict[type[Recipe], dict[str, Any]] = {
    DataRecipe: {"path": "pets"},
    EncoderRecipe: {"model": "vit_tiny_patch16_224"},
    EncoderSource: {"architecture": ENCODER, "kind": "checkpoint", "path": "weights.pth"},
    PretrainRecipe: {"data": PETS, "encoder": ENCODER},
    FinetuneRecipe: {"data": PETS, "encoder": SOURCE},
    LinearRecipe: {"data": PETS, "encoder": SOURCE},
    KnnRecipe: {"data": PETS, "encoder": SOURCE},
    LogisticRecipe: {"data": PETS, "encoder": SOURCE},
    AttentiveRecipe: {"data": PETS, "encoder": SOURCE},
    AnalysisRecipe: {"data": PETS, "encoder": SOURCE},
    SegmentationDataRecipe: {"source": "scenes", "path": "streets", "classes": ["a", "b"]},
    SegmentationRecipe: {"data": STREETS, "encoder": SOURCE},
    DenseLinearRecipe: {"data": STREETS, "encoder": SOURCE},
    DenseKnnRecipe: {"data": STREETS, "encoder": SOURCE},
    RetrievalRecipe: {"data": PETS, "encoder": SOURCE},
    RevisitedDataRecipe: {"source": "roxford5k"},
    InstanceRetrievalRecipe: {"data": RevisitedDataRecipe(source="roxford5k"), "encoder": SOURCE},
    ClusterRecipe: {},
}


def identity(recipe: type[Recipe], /, **changes: Any) -> str:
    """Of the base recipe with these settings changed."""
    return identity_of(recipe(**BASE[recipe] | changes).affecting_results())


@pytest.mark.parametrize("kind", AFFECTING)
def test_every_setting_that_can_change_a_result_is_part_of_the_identity_and_no_other(kind: type[Recipe]) -> None:
    before = identity(kind)
    for name, value in AFFECTING[kind].items():
        also = {"classes": []} if value == "mosaics" else {}  # which are known then
        needed = {
            "streaming": {"source": "huggingface"},
            "config": {"source": "huggingface"},
            "mask_unit": {"framework": "simmim"},
            "crop_scale": {"crop": "random"}
            if kind is PretrainRecipe
            else {"fresh_crops": True}
            if kind is AttentiveRecipe
            else {},
            "second_view": {"context_weight": 0.0},
            "context_temperature": {"context_loss": "infonce"},
            "draw": {"shots": 2},
        }
        also |= needed.get(name, {})
        without = identity(kind, **needed[name]) if name in needed else before
        assert identity(kind, **{name: value} | also) != without, f"{name} does not count"
    for name, value in WITHOUT_EFFECT[kind].items():
        assert value != getattr(kind(**BASE[kind]), name)
        assert identity(kind, **{name: value}) == before, f"{name} counts"
    fixed = (
        {"kind"} if kind in {one.recipe for one in KINDS.values() if one.stage in ("downstream", "analysis")} else set()
    )
    assert {*AFFECTING[kind], *WITHOUT_EFFECT[kind], *fixed} == set(kind.model_fields), "a setting is in neither list"


def test_a_setting_that_came_later_is_in_the_identity_only_where_it_is_not_the_default() -> None:
    settings = PretrainRecipe(**BASE[PretrainRecipe]).affecting_results()
    assert "photometrics_on" not in settings
    assert "streaming" not in settings["data"]
    assert (
        PretrainRecipe(**BASE[PretrainRecipe], photometrics_on="device").affecting_results()["photometrics_on"]
        == "device"
    )


def test_every_kind_of_task_is_in_the_lists_above() -> None:
    assert {kind.recipe for kind in KINDS.values() if kind.stage != "robustness"} <= set(AFFECTING)


def test_what_has_no_effect_in_a_data_set_or_an_encoder_has_none_in_a_run_either() -> None:
    labelled = DataRecipe(label="Pets", path="elsewhere"), ENCODER.model_copy(update={"label": "ViT-toy"})
    assert identity(PretrainRecipe, data=labelled[0], encoder=labelled[1]) == identity(PretrainRecipe)
    source = EncoderSource(architecture=labelled[1], kind="checkpoint", path="elsewhere.pth")
    assert identity(KnnRecipe, data=labelled[0], encoder=source) == identity(KnnRecipe)


def test_settings_of_a_measure_do_not_count_where_it_is_not_asked_for() -> None:
    some = identity(AnalysisRecipe, measures=["fourier", "attention"])
    assert identity(AnalysisRecipe, measures=["attention", "fourier"]) == some
    for name in ("alpha_from", "alpha_to", "neighbours", "temperature", "bank", "viewed"):
        assert (
            identity(AnalysisRecipe, measures=["attention", "fourier"], **{name: AFFECTING[AnalysisRecipe][name]})
            == some
        )


def test_lut_with_weight_0_is_mae_with_luts_crop_whatever_is_said_of_context() -> None:
    mae = identity(PretrainRecipe, context_weight=0.0)
    for name in (
        *("photometric", "photometrics_on", "context_loss", "context_target", "both_directions", "teacher_view"),
        *("momentum", "head_depth", "head_width", "head_norm", "micro_batch"),
    ):
        assert identity(PretrainRecipe, context_weight=0.0, **{name: AFFECTING[PretrainRecipe][name]}) == mae, name
    assert mae != identity(PretrainRecipe)
    for name in ("crop", "crop_padding", "mask_ratio", "batch", "epochs"):
        assert identity(PretrainRecipe, context_weight=0.0, **{name: AFFECTING[PretrainRecipe][name]}) != mae, name


def test_settings_of_what_is_not_there_do_not_count() -> None:
    for unused, settings in (
        ({"crop_scale": [0.5, 1.0]}, {"crop": "simple"}),
        ({"min_lr": 1e-6}, {"lr_schedule": "step"}),
    ):
        assert identity(PretrainRecipe, **settings, **unused) == identity(PretrainRecipe, **settings), unused
    assert identity(AttentiveRecipe, fresh_crops=False, crop_scale=[0.5, 1.0]) == identity(
        AttentiveRecipe, fresh_crops=False
    )


def test_how_a_batch_is_cut_matters_where_a_batch_norm_mixes_its_images_and_only_there() -> None:
    assert identity(PretrainRecipe, micro_batch=1024) != identity(PretrainRecipe)
    for name in ("layer", "none"):
        assert identity(PretrainRecipe, micro_batch=1024, head_norm=name) == identity(PretrainRecipe, head_norm=name)


class TallyRecipe(RunRecipe):
    """A kind of run that starts from nothing but data, in a stage whose other kinds start from encoders."""

    revision: ClassVar[int] = 1
    kind: Literal["tally"] = "tally"
    data: DataRecipe
    base: int = 10


def test_a_stage_may_have_kinds_that_start_from_different_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tally = Kind("tally", "downstream", f"{__name__}:TallyRecipe", "nowhere", "nothing")
    monkeypatch.setitem(KINDS, "tally", tally)  # type: ignore[arg-type]
    (tmp_path / "suite.toml").write_text(SUITE + '[downstream.counts]\nkind = "tally"\ndata = "pets"\nbase = 2\n')
    runs = load_suite(str(tmp_path / "suite.toml")).runs
    found = [run for run in runs if run.task == "counts"]
    assert [run.name for run in found] == ["downstream/counts/seed0", "downstream/counts/seed1"]
    assert all((run.kind, run.method, run.needs) == (tally, "", None) for run in found)
    assert all(isinstance(run.recipe, TallyRecipe) and run.recipe.base == 2 for run in found)
    assert {run.kind.name for run in runs if run.stage == "downstream"} > {"tally"}


def test_a_second_kind_of_a_stage_changes_nothing_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_suite("tiny").runs
    for stage, starts_from in (("pretrain", "nothing"), ("robustness", "classifier")):
        other = Kind(f"other-{stage}", stage, f"{__name__}:TallyRecipe", "nowhere", starts_from)  # type: ignore[arg-type]
        monkeypatch.setitem(KINDS, other.name, other)  # type: ignore[arg-type]
    assert load_suite("tiny").runs == before
