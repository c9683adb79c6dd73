"""The suite in Python: the measurements as pandas tables, and the trained models, ready for use.

>>> import lutbench
>>> measured = lutbench.records("small")                      # a row per measurement
>>> measured[measured.metric == "top-1"].groupby(["task", "method"]).value.mean()
>>> lutbench.outcomes("small/downstream/knn/lut/seed0")       # a row per image, by name
>>> encoder, transform = lutbench.encoder("small/pretrain/lut/seed0")
>>> encoder(transform(image)[None])                           # features (1, D) of a PIL image

Errors of use raise :class:`lutbench.errors.UserError`, whose message says what was expected, what was found and what to do.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lutbench.errors import UserError, listed, nearest
from lutbench.evaluate.image_names import folder_of_class
from lutbench.evaluate.outcomes import Outcomes
from lutbench.record import Record, read_records
from lutbench.record_search import find_record, suites_in
from lutbench.run_files import finished_folder, read_started
from lutbench.smoke.mark import refuse_smoke

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from lutbench.evaluate.transform import Transform

COLUMNS: dict[str, str] = {
    "suite": "object", "stage": "object", "kind": "object", "task": "object", "method": "object", "seed": "int64", "draw": "int64",
    "metric": "object", "value": "float64", "low": "float64", "high": "float64", "interval": "object", "unit": "object",
    "n": "Int64", "data": "object", "split": "object", "run": "object", "identity": "object", "checkpoint": "object",
    "code": "object", "modified": "boolean", "hardware": "object", "wall_seconds": "float64", "created": "datetime64[ns, UTC]",
}  # fmt: skip
"""The columns of :func:`records` with their types."""


def records(suite: str | Path, results: str | Path = "results") -> pd.DataFrame:
    """Return the measurements of a suite, one row each; the first row of each run is the number printed in the tables.

    Every record is read and checked with all its files; a number that does not follow from its outcomes is an error. The columns are

    - ``suite``, ``stage``, ``kind`` (``knn``, ``finetune``, ...), ``task``, ``method`` (empty for pre-training), ``seed``, ``draw`` (0 unless a
      task has several);
    - ``metric``, ``value``, ``low`` and ``high`` (ends of the 95 % interval over images), ``interval`` (its method), ``unit``
      (``%``, or empty for a plain number), ``n`` (number of images);
    - ``data`` (the dataset as in the tables) and ``split`` (the evaluated split; for pre-training ``train``);
    - ``run`` (its name, ``SUITE/STAGE/...``, the argument of :func:`outcomes` and :func:`encoder`), ``identity`` (the sha256 of everything
      that determines the result), ``checkpoint`` (the sha256 of the final weights; for an evaluation, of the evaluated weights);
    - ``code`` (the git commit, or else the version), ``modified`` (whether files differed from the commit), ``hardware``,
      ``wall_seconds``, ``created``.

    Args:
        suite: ``tiny``, ``camvid``, ``evidence``, ``small``, ``paper``, or the name or path of your own suite file.
        results: the results folder, as for ``--results``.

    Raises:
        UserError: if there are no records of the suite, or one is damaged.
    """
    name = Path(suite).stem if str(suite).endswith(".toml") else str(suite)
    found = read_records(Path(results), name)
    if not found:
        known = suites_in(Path(results))
        raise UserError(
            f"There are no records of suite {name!r} below {Path(results).absolute()}.{nearest(name, known)} Suites found: "
            f"{listed(known) or 'none'}. Run the suite (lutbench run {suite}), or give another results folder (results=)."
        )
    for record in found.values():
        refuse_smoke(record.identity_inputs, f"{name}/{record.run}")
    rows = [row for record in found.values() for row in _rows(record)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def outcomes(run: str | Path | Record, results: str | Path = "results") -> pd.DataFrame:
    """Return the result of a run on every image, in the order of the dataset, with the image names.

    The columns are ``image`` (its path below the split's folder; ``row 17`` in records of earlier versions) and

    - for classification (fine-tuning, linear probe, k-NN): ``label`` and ``prediction`` (class numbers), ``rank`` (of the
      label among the classes in descending order of score, 0 if it is the prediction), ``right``; ``log_probability`` (natural
      logarithm, of the label; not for k-NN), ``confidence`` (the prediction's probability), ``top1`` to ``top5`` and
      ``top1_probability`` to ``top5_probability`` (the most likely classes; missing in records of earlier versions); and, if there is
      a folder for each class, ``label_name`` and ``prediction_name``, missing for a class without images;
    - for segmentation, a row per image and pair of label and prediction that occurs: ``label`` and ``prediction`` (names), ``pixels``;
    - for robustness, a row per condition, protocol and image: ``condition``, ``preprocessing``, ``protocol``, and the columns of
      classification; ``score`` if it was saved;
    - for an analysis, a column for every metric that is a mean over images.

    Args:
        run: ``small/downstream/knn/lut/seed0``, consecutive parts of such a name that match one run only, the path of a record's
            JSON, or a :class:`lutbench.record.Record`.
        results: the results folder, as for ``--results``.

    Raises:
        UserError: if there is no such record, it has no per-image outcomes (pre-training has none), or they are damaged.
    """
    record = run if isinstance(run, Record) else find_record(str(run), Path(results))
    refuse_smoke(record.identity_inputs, f"{record.suite}/{record.run}")
    found = record.outcomes
    frame: pd.DataFrame = found.frame()
    if isinstance(found, Outcomes) and (folders := folder_of_class(found.names, found.label)):
        for column in ("label", "prediction"):
            frame[f"{column}_name"] = frame[column].map(folders)
    return frame


def encoder(run: str | Path, runs: str | Path = "runs") -> "tuple[nn.Module, Transform]":
    """Return the model of a finished run, a timm model on the CPU in eval mode, and the transform for its images.

    For a pre-training this is the encoder, ``model(images)`` (B, 3, S, S) -> (B, D), the class token if it has one (timm's pooling;
    ``model.forward_features(images)`` gives all tokens); for a fine-tuning, the classifier, (B, C), with its classes in
    ``model.class_names``. The transform maps a PIL image to a float tensor (3, S, S): resize, centre crop, normalise. For a
    fine-tuning it is the transform of the suite's own evaluation. For a pre-training it has the default crop of the tasks (224 of
    256; above 224 pixels the whole short side); a task may use another one, ``eval_crop``, which ``lutbench show`` prints.

    Args:
        run: ``small/pretrain/lut/seed0`` or ``small/downstream/finetune/lut/seed0``, consecutive parts of such a name that match one
            finished run only, or the run's folder.
        runs: the folder of the runs, as for ``--runs``.

    Raises:
        UserError: if there is no such run or it has not finished, it has no timm model, or its weights are damaged.
    """
    from lutbench.models.hub import exported_model  # here, because torch and timm are slow to import

    folder = finished_folder(str(run), Path(runs))
    refuse_smoke(read_started(folder).document, str(run))
    kept = [folder / f"{name}.safetensors" for name in ("encoder", "classifier")]
    weights = next((path for path in kept if path.with_suffix(".json").is_file() or path.is_file()), None)
    if weights is None:
        raise UserError(f"{folder}: this run has no timm model. {_other_model(folder)}")
    exported = exported_model(folder, weights.stem)
    export = exported.description
    exported.model.class_names = list(export.class_names)
    transform = partial(
        _prepared,
        side=export.side,
        crop=exported.crop_pct,
        interpolation=export.interpolation,
        mean=tuple(export.mean),
        std=tuple(export.std),
    )
    return exported.model, transform


def _rows(record: Record) -> list[dict[str, Any]]:
    code, inputs = record.code, record.identity_inputs
    data = record.recipe.get("data") or record.recipe.get("set") or {}
    about = {
        **record.model_dump(include={"suite", "stage", "task", "method", "seed", "draw", "identity", "checkpoint", "wall_seconds"}),
        "kind": record.kind.name, "run": f"{record.suite}/{record.run}", "created": record.created,
        "data": data.get("label") or data.get("path") or data.get("source", ""),
        "split": next(reversed(inputs.get("data", {})), ""),  # train comes first where a run reads both
        "code": code.commit or code.version, "modified": code.modified, "hardware": str(record.hardware),
    }  # fmt: skip
    return [{**about, **measured.model_dump()} for measured in record.measurements]


def _other_model(folder: Path) -> str:
    """Return which run has a model instead."""
    if (folder / "segmenter.safetensors").is_file():
        return "For a segmentation run, load the encoder of its pre-training, or export the segmenter: lutbench export RUN DIR."
    return "Give the pre-training it starts from, or the fine-tuning it evaluates; lutbench show RUN prints it."


def _prepared(
    image: "Image.Image", side: int, crop: float, interpolation: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> "Tensor":
    """Return an image (3, side, side) as the model expects it; a module-level function, so that data loaders can pickle it."""
    from lutbench.data.decoding import to_rgb
    from lutbench.data.tensors import normalised
    from lutbench.evaluate.transform import eval_transform

    return normalised(eval_transform(side, crop, interpolation)(to_rgb(image)), mean=mean, std=std)
