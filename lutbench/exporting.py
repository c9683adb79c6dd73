"""``lutbench export``: write a finished run's model to a folder that other libraries load without this suite."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Literal

from lutbench.errors import UserError
from lutbench.files import new_folder
from lutbench.kinds import KINDS, TOOLS
from lutbench.models.hub import exported_model, write_timm
from lutbench.report.evidence import evidence, load_suites, recipe_of
from lutbench.report.model_card import check_licence, model_card
from lutbench.run_files import FINISHED, Started, finished_folder, read_started
from lutbench.smoke.mark import refuse_smoke

Library = Literal["timm", "huggingface", "mmseg"]

MODELS = {"pretrain": "encoder", "finetune": "classifier"}
"""The kinds of runs that produce a timm model, and the NAME of its ``NAME.safetensors``."""


def export_run(
    run: str,
    target: Path,
    library: Library | None = None,
    *,
    runs: Path,
    results: Path,
    licence: str = "",
    suites: Sequence[str] = (),
) -> list[str]:
    """Write a finished run's model into the new folder ``target``, and return the lines of code that load it.

    The default ``library`` is MMSegmentation for a segmenter, else timm. ``huggingface`` adds a model card, from the records in
    ``results``, with the ``licence`` of the weights if one is given; ``suites`` are the files of suites that have records but are
    not shipped with lutbench.

    Raises:
        UserError: if there is no such run, it is a smoke run, it has no model for the library, the model is damaged, or ``target`` is
            not empty.
    """
    folder = finished_folder(run, runs)
    started = read_started(folder)
    refuse_smoke(started.document, run)
    kind = str(started.document.get("stage"))
    library = library or ("mmseg" if kind == "segmentation" else "timm")
    if licence or suites:
        _only_for_cards(library)
        check_licence(licence or "other")
    if kind == "segmentation" and library == "mmseg":
        return _segmenter(folder, target)
    if kind not in MODELS:
        raise _nothing_to_export(started, kind, library, runs)
    exported = exported_model(folder, MODELS[kind])
    if library == "mmseg":
        with new_folder(target) as partial:
            import_module(TOOLS["backbone"]).write_backbone(exported.model, exported.description, partial)
        return [f"_base_ = [{str(target.absolute() / 'backbone.py')!r}]  # in a config of MMSegmentation"]
    lines = [
        f"model = timm.create_model({f'local-dir:{target}'!r}, pretrained=True)",
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
    ]
    if library == "timm":
        with new_folder(target) as partial:
            write_timm(exported, partial)
        return lines
    found = evidence(folder, results)
    known = load_suites(found.suites, suites, results)
    with new_folder(target) as partial:
        write_timm(exported, partial)
        beside = ""
        if kind == "pretrain":
            beside, line = import_module(TOOLS["vitmae"]).write_for_transformers(
                folder, recipe_of(found.own), exported, partial
            )
            lines.append(line.format(target))
        card = model_card(found, known, exported.description, exported.crop_pct, licence, beside)
        (partial / "README.md").write_text(card, encoding="utf-8")
    return [*lines, f"huggingface_hub.HfApi().upload_folder(repo_id='USER/NAME', folder_path={str(target)!r})"]


def _segmenter(folder: Path, target: Path) -> list[str]:
    """Write a segmenter for MMSegmentation; return the lines of code that load it."""
    with new_folder(target) as partial:
        config, checkpoint = import_module(TOOLS["export"]).export_mmseg(folder, partial)
    first = (target / config.name).read_text(encoding="utf-8").splitlines()[0]
    needs = [first.removeprefix("# ")] if first.startswith("# ") else []  # a backbone of the suite's own
    files = f"{str(target / config.name)!r}, {str(target / checkpoint.name)!r}"
    return [f"mmseg.apis.init_model({files}, device='cpu')  # or 'cuda:0'", *needs]


def _only_for_cards(library: Library) -> None:
    """Raise UserError if options of the model card were given, but the library has none."""
    if library != "huggingface":
        raise UserError(
            f"--licence and --suite are for the model card, but --to {library} writes none. Leave them out, or give --to huggingface."
        )


def _nothing_to_export(started: Started, kind: str, library: Library, runs: Path) -> UserError:
    """Return the error for a run without a model for the library, with what to export instead."""
    if kind == "segmentation":
        return UserError(
            f"{started.name}: its model is one of MMSegmentation, which {library} cannot load. Give --to mmseg, or export the encoder it "
            f"started from.{_before(started, runs)}"
        )
    why = (
        "it trains only one linear layer on the features of another run's encoder"
        if kind in ("linear", "segmentation-linear")
        else "it trains no model"
    )
    exporting = [name for name in KINDS if name in (*MODELS, "segmentation")]
    return UserError(
        f"{started.name}: a run of kind {kind} has nothing to export: {why}. Kinds of runs that can be exported: {', '.join(exporting)}."
        f"{_before(started, runs)}"
    )


def _before(started: Started, runs: Path) -> str:
    """Return a sentence with the name of the run that a run started from; empty if it is not below ``runs``."""
    weights = started.document.get("encoder") or started.document.get("classifier") or {}
    identity = str(weights.get("run") or "none")
    found = next(runs.glob(f"**/{identity[:12]}/{FINISHED}"), None)
    return f" It started from {found.parents[1].relative_to(runs).as_posix()}." if found else ""
