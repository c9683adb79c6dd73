"""A model card for the Hugging Face Hub, made from records: nothing is in it that they do not say."""

import re
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lutbench.data.catalogue import TRAINED_ON
from lutbench.errors import UserError
from lutbench.evaluate.outcomes import Measurement
from lutbench.lineage import started_from
from lutbench.models.export import Export
from lutbench.recipes.base import DatasetRecipe, RunRecipe
from lutbench.recipes.pretrain import PretrainRecipe
from lutbench.recipes.suite import Suite
from lutbench.record import Record
from lutbench.report.evidence import Evidence, recipe_of, unlike_defaults
from lutbench.report.render import markdown
from lutbench.report.sections import PIPELINE_ONLY, Section
from lutbench.report.values import interval_legend

TASKS = {
    "finetune": ("image-classification", "fine-tuning"),
    "linear": ("image-classification", "linear probe"),
    "knn": ("image-classification", "k-NN"),
    "attentive": ("image-classification", "attentive probe"),
    "segmentation": ("image-segmentation", "segmentation"),
    "segmentation-linear": ("image-segmentation", "segmentation, linear probe"),
    "segmentation-knn": ("image-segmentation", "segmentation, k-NN"),
    "retrieval": ("image-feature-extraction", "retrieval"),
    "instance-retrieval": ("image-feature-extraction", "retrieval of instances"),
    "robustness": ("image-classification", "robustness"),
}
"""The Hub's name of what a kind of run does, and the field's."""

METRICS = {"top-1": "accuracy", "mIoU": "mean_iou"}
"""The Hub's names of metrics that it has; others keep theirs."""

Measured = Sequence[tuple[Record, Sequence[Measurement]]]
"""Records, each with those of its measurements that tables print."""

CITATIONS = {
    "LUT": """@inproceedings{kim2024lut,
  title = {Learning with Unmasked Tokens Drives Stronger Vision Learners},
  author = {Kim, Taekyung and Chun, Sanghyuk and Heo, Byeongho and Han, Dongyoon},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year = {2024},
  eprint = {2310.13593},
  archivePrefix = {arXiv}
}""",
    "MAE": """@inproceedings{he2022mae,
  title = {Masked Autoencoders Are Scalable Vision Learners},
  author = {He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll{\\'a}r, Piotr and Girshick, Ross},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2022},
  eprint = {2111.06377},
  archivePrefix = {arXiv}
}""",
}


def check_licence(licence: str) -> None:
    """Check that a licence is written as the Hub lists them; raises UserError."""
    if not re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", licence):
        raise UserError(
            f"--licence {licence!r}: expected one of the Hub's identifiers, such as cc-by-4.0, mit, apache-2.0 or other "
            "(https://huggingface.co/docs/hub/repositories-licenses)."
        )


def model_card(
    evidence: Evidence,
    suites: Mapping[str, Suite],
    description: Export,
    crop_pct: float,
    licence: str,
    transformers: str,
) -> str:
    """Return ``README.md``: front matter for the Hub, and a card.

    ``suites`` are those that the records are of, ``description`` and ``crop_pct`` are of the exported model, ``licence`` of its
    weights (empty if none is stated), ``transformers`` is the class of transformers that the folder holds beside, if any.
    """
    own = evidence.own
    measured = [(record, _printed(record)) for record in evidence.results]
    toys = [name for name, suite in suites.items() if suite.kind == "pipeline"]
    title = f"{own.suite}: {own.run}"
    # The index has no place for what a toy suite's numbers are, and is read without the card.
    index = [one for record, found in measured if record.suite not in toys for one in _eval_results(record, found)]
    is_classifier = bool(description.class_names)
    data = ModelCardData(
        license=licence or None,
        library_name="timm",
        pipeline_tag="image-classification" if is_classifier else "image-feature-extraction",
        tags=["timm", "transformers", "vision-transformer", *_tags(evidence), "lutbench"],
        datasets=_hub_datasets(evidence) or None,
        model_name=title if index else None,
        eval_results=index or None,
    )
    sections = [
        Section(title, 1, legend="\n\n".join([_what(evidence, description), *_toys_note(toys)])),
        Section("Results", frame=_results(measured), legend=_results_legend(measured, own.seed)),
        *(_training(one, name) for one, name in _trained(evidence)),
        Section("Licences", legend=_licence(evidence, licence)),
    ]
    loading = f"## How to load it\n\n{_loading(description, crop_pct, transformers)}"
    citation = "## Citation\n\n" + "\n\n".join(f"```bibtex\n{text}\n```" for text in CITATIONS.values())
    head, *rest = (markdown([section], "") for section in sections)
    body = "\n".join([head, f"{loading}\n", *rest, f"{citation}\n"])
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}", ignore_metadata_errors=False))


def _what(evidence: Evidence, description: Export) -> str:
    """Return what the weights are, in a paragraph."""
    own, sizes = evidence.own, description.arguments.model_dump(exclude_none=True)
    kind = (
        f"A classifier of {len(description.class_names):,} classes, fine-tuned"
        if description.class_names
        else "A pre-trained encoder"
    )
    method = _method(evidence)
    model = f"timm's {description.model} with {', '.join(f'{name} = {value}' for name, value in sizes.items())}"
    return (
        f"{kind}{f', by {method}' if method else ''}: `{own.run}` of suite {own.suite}, seed {own.seed}. "
        f"It is {model}. This card was written from the records of lutbench. sha256 of the weights: `{own.checkpoint}`; "
        f"identity of the run: `{own.identity}`."
    )


def _method(evidence: Evidence) -> str:
    """Return the method of the pre-training, if a run of this suite was one."""
    record = _pretraining(evidence)
    if record is None:
        return ""
    recipe = recipe_of(record)
    assert isinstance(recipe, PretrainRecipe)
    framework = {"mae": "masked autoencoder", "simmim": "SimMIM"}.get(recipe.framework, recipe.framework)
    if recipe.context_weight:
        return f"LUT ({framework} with a broader-context loss of weight {recipe.context_weight:g})"
    alone = "a masked autoencoder (MAE)" if recipe.framework == "mae" else framework
    return f"{alone}, without the broader-context loss of LUT"


def _pretraining(evidence: Evidence) -> Record | None:
    return next((r for r in (evidence.own, evidence.before) if r is not None and r.kind.name == "pretrain"), None)


def _tags(evidence: Evidence) -> list[str]:
    return ["self-supervised-learning", "masked-image-modeling"] if _pretraining(evidence) else []


def _toys_note(toys: Sequence[str]) -> list[str]:
    """Return what has to stand beside every number of suites of toys."""
    return [f"Suite {' and '.join(toys)} tests the pipeline with toy models and data. {PIPELINE_ONLY}"] if toys else []


def _printed(record: Record) -> list[Measurement]:
    """Return the measurements that tables print."""
    names = record.outcomes.printed() if record.outcomes_file else [record.measurements[0].metric]
    return [found for name in names if (found := record.measured(name))]


def _results(measured: Measured) -> pd.DataFrame:
    rows = [
        {
            "task": _task_name(record),
            "data": recipe_of(record).dataset.label,
            "metric": m.metric,
            "value": f"{m.value:.{m.decimals}f} {m.unit}".strip(),
            "95 % interval": m.text().partition(" ")[2].strip("[]").replace(",", " to"),
            "images": "" if m.n is None else f"{m.n:,}",
            "record": f"{record.suite}: {record.run}",
        }
        for record, found in measured
        for m in found
    ]
    return pd.DataFrame(rows)


def _task_name(record: Record) -> str:
    """Return the field's name of what a run does, with the part of the training images that it was trained on, if it was."""
    name, subset = TASKS.get(record.kind.name, ("", record.kind.name))[1], recipe_of(record).training_subset
    return f"{name} ({subset})" if subset else name


def _results_legend(measured: Measured, seed: int) -> str:
    """Return what the intervals are, and what has to stand beside numbers on a dataset."""
    if not measured:
        return "The records that this card was made from have no results of these weights."
    intervals = interval_legend(m for _, found in measured for m in found)
    datasets = (recipe_of(record).dataset for record, _ in measured)
    notes = dict.fromkeys(f"{dataset.label}: {dataset.note}" for dataset in datasets if dataset.note)
    seeds = f"Everything was run once, with seed {seed}; the intervals do not include the variation over seeds."
    return "\n\n".join([f"Intervals: {intervals}. {seeds}" if intervals else seeds, *notes])


def _trained(evidence: Evidence) -> Iterator[tuple[Record, str]]:
    """Yield the runs that made the weights, each with a heading."""
    own, before = evidence.own, evidence.before
    if before is not None:
        yield (
            before,
            "Pre-training of the encoder" if before.kind.name == "pretrain" else "Training of the encoder",
        )
    yield own, "Pre-training" if own.kind.name == "pretrain" else "Fine-tuning"


def _training(record: Record, title: str) -> Section:
    """Return how a run went: its data, settings, code and machine."""
    recipe, extra = recipe_of(record), record.extra
    splits = [f"{split} {fingerprint[:16]}" for split, fingerprint in record.identity_inputs.get("data", {}).items()]
    losses = [f"{m.metric} {m.value:.4f}" for m in record.measurements if m.n is None]
    rows = {
        "run": f"{record.suite}: {record.run}, finished {record.created}",
        "started from": _origin(record, recipe),
        "data": f"{recipe.dataset.label or recipe.dataset.folder} (source: {recipe.dataset.source}), fingerprints: {', '.join(splits)}",
        "images left out": f"{extra['skipped']} that cannot be decoded" if extra.get("skipped") else "",
        "losses at the end": ", ".join(losses),
        "seed": str(record.seed),
        "time": f"{record.wall_seconds:,.0f} s"
        + (f", {record.images_per_second:,.0f} images/s" if record.images_per_second else ""),
        "hardware": str(record.hardware),
        "code": f"lutbench {record.code}",
        "packages": ", ".join(
            f"{name} {record.packages[name]}" for name in ("python", "torch", "timm") if name in record.packages
        ),
    }
    frame = pd.DataFrame([{"what": name, "as the record says": text} for name, text in rows.items() if text])
    unlike = unlike_defaults(record).items()
    settings = ", ".join(f"`{name}` = {value!r} ({default!r})" for name, (value, default) in unlike)
    told = f"Settings that differ from lutbench's defaults (in brackets): {settings}." if unlike else ""
    return Section(title, frame=frame, legend=told or "All settings are lutbench's defaults.")


def _origin(record: Record, recipe: RunRecipe) -> str:
    """Return what a run started from."""
    weights, source = started_from(record), recipe.source
    if source is None:
        return ""
    if source.kind == "run":
        return f"the {source.export_name} of the run with identity {str(weights.get('run'))[:12]}"
    if source.kind == "timm":
        return f"timm's weights of {source.timm_model}"
    return "random weights" if source.kind == "scratch" else f"a checkpoint of sha256 {weights.get('sha256')}"


def _licence(evidence: Evidence, licence: str) -> str:
    """Return what is known of the terms of weights, code and images."""
    weights = (
        f"The weights: {licence}."
        if licence
        else "No licence is stated for the weights: that is up to those who trained them."
    )
    datasets = {
        recipe.dataset.label: _terms(recipe.dataset) for recipe in (recipe_of(r) for r, _ in _trained(evidence))
    }
    terms = [f"The training images, {label}: {found}." for label, found in datasets.items() if found]
    return " ".join([weights, "The code that trained them, lutbench: Apache-2.0.", *terms])


def _terms(dataset: DatasetRecipe) -> str:
    """Return the terms of a dataset that the suite knows."""
    return next((known.terms for known in TRAINED_ON.values() if known.recipe.same_as(dataset)), "")


def _hub_datasets(evidence: Evidence) -> list[str]:
    """Return the names of the sets of the Hub that the weights were trained on."""
    datasets = [recipe_of(record).dataset for record, _ in _trained(evidence)]
    return list(
        dict.fromkeys(
            d.path for d in datasets if d.source == "huggingface" and re.fullmatch(r"[\w.-]+/[\w.-]+", d.path)
        )
    )


def _eval_results(record: Record, measured: Sequence[Measurement]) -> Iterator[EvalResult]:
    """Yield a run's results as the Hub's model index has them; its interval and what else tells it apart are among its arguments.

    The index puts results of one task and dataset together, so how they came about is in the name of the metric.
    """
    dataset, name = recipe_of(record).dataset, _task_name(record)
    task = TASKS.get(record.kind.name, ("other", ""))[0]
    for m in measured:
        yield EvalResult(
            task_type=task,
            dataset_type=dataset.path if dataset.source == "huggingface" else dataset.label,
            dataset_name=dataset.label,
            metric_type=METRICS.get(m.metric, m.metric),
            metric_name=f"{m.metric}, {name}{f' ({m.unit})' if m.unit else ''}",
            metric_value=round(m.value, m.decimals),
            metric_args={
                "images": m.n,
                "low": m.low,
                "high": m.high,
                "interval": m.interval,
                "run": record.identity,
                "data": record.identity_inputs.get("data", {}),
            },
        )


def _loading(description: Export, crop_pct: float, transformers: str) -> str:
    """Return the calls that load the folder, and how images are prepared."""
    auto = "AutoModelForImageClassification" if description.class_names else "AutoModel"
    calls = f"""FOLDER is the folder of this file, USER/NAME its name on the Hub.

```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or "hf-hub:USER/NAME"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

```python
from transformers import AutoImageProcessor, {auto}

model = {auto}.from_pretrained("FOLDER")  # or "USER/NAME"; transformers wraps timm
processor = AutoImageProcessor.from_pretrained("FOLDER")
```
"""
    beside = {
        "ViTMAEForPreTraining": """Encoder and decoder, as the MAE model of transformers:

```python
from transformers import AutoImageProcessor, ViTMAEForPreTraining

model = ViTMAEForPreTraining.from_pretrained("FOLDER/vitmae")  # or "USER/NAME", subfolder="vitmae"
processor = AutoImageProcessor.from_pretrained("FOLDER/vitmae")
```
""",
        "ViTModel": """And as transformers' own ViT; these weights do not include its pooling layer:

```python
from transformers import ViTModel

model = ViTModel.from_pretrained("FOLDER/vit", add_pooling_layer=False)  # or "USER/NAME", subfolder="vit"
```
""",
    }.get(transformers, "")
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (description.mean, description.std))
    side = description.side
    prepared = (
        f"Preprocessing: resize the short side to {int(side / crop_pct + 1e-6)} pixels ({description.interpolation}), crop the centre of {side} x {side}, "
        f"scale values to 0 to 1, normalise with mean ({mean}) and standard deviation ({std})."
    )
    return "\n".join(part for part in (calls, beside, prepared) if part)
