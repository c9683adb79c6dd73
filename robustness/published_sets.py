"""The published shifted sets: where they lie below the data root, their protocols and counts, and how to get them."""

from dataclasses import dataclass
from typing import Any

from lutbench.recipes.robustness import RobustnessDatasetRecipe

ALEXNET_ERROR = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""Top-1 error of AlexNet on ImageNet-C, mean over five severities, by which mCE divides (google-research/augmix
imagenet.py). These fifteen are ImageNet-C."""

ALEXNET_EXTRA_ERROR = {"speckle_noise": 0.8454, "gaussian_blur": 0.7871, "spatter": 0.7175, "saturate": 0.6583}
"""Of the four corruptions meant for validation, which are in no mCE (clovaai/assembled-cnn mce/eval_robustness.py)."""

ALEXNET_SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class PublishedSet:
    """A shifted set as its authors describe it."""

    name: str
    title: str
    recipe: RobustnessDatasetRecipe
    get: str
    """What to do to have it; ``DIR`` stands for the set's folder."""
    source: str
    """Where protocol and counts were read."""
    paper: str
    terms: str
    """As its authors state them; of ImageNet's own images, ImageNet's."""
    gigabytes: float | None
    """On disk, approximately: its archives, where these hold images hardly compressed. None where no size could be read; 0
    for images of another known set."""


def _imagenet(
    name: str, title: str, get: str, source: str, *, paper: str, terms: str, gigabytes: float | None, **settings: Any
) -> PublishedSet:
    """A set of images to be seen as ImageNet's own: short side to 256, the middle 224."""
    recipe = {"label": title, "path": name, "labels": "imagenet-1k", "classes": 1000, "eval_crop": 224 / 256}
    return PublishedSet(
        name, title, RobustnessDatasetRecipe.model_validate(recipe | settings), get, source, paper, terms, gigabytes
    )


_BOTH = ["bicubic", "bilinear"]
_SUBSET_FIRST = ["subset", "all"]
_VAL = "See imagenet-1k in `lutbench data list`."
_SI_SCORE = "Unpack {0}.zip of https://s3.us-east-1.amazonaws.com/si-score-dataset below DIR."
_IMAGENET_TERMS = "ImageNet's: non-commercial research and education"
_MIT = "the authors' repository is MIT; of the images, which are from the web, they state none"
_SI_SOURCE = "google-research/si-score README; counts: tensorflow/datasets docs/catalog/siscore.md"

PUBLISHED = {
    published.name: published
    for published in (
        _imagenet(
            "imagenet-val",
            "ImageNet-1K, validation, with ReaL's labels",
            _VAL,
            "google-research/reassessed-imagenet real.json, as timm ships it",
            paper="Beyer et al., Are we done with ImageNet?, arXiv 2006.07159, 2020 (ReaL)",
            terms=_IMAGENET_TERMS,
            gigabytes=0,
            path="imagenet-1k",
            parts={"": "val"},
            images=50_000,
            preprocessing=_BOTH,
            real="timm",
            published={"1000 classes": "imagenet-1k/finetune/top-1", "ReaL": "imagenet-real/finetune/top-1"},
        ),
        _imagenet(
            "imagenet-v2",
            "ImageNet-V2, three variants",
            "Unpack imagenetv2-{matched-frequency,threshold0.7,top-images}.tar.gz of https://huggingface.co/datasets/vaishaal/ImageNetV2 in DIR.",
            "modestyachts/ImageNetV2",
            paper="Recht et al., Do ImageNet Classifiers Generalize to ImageNet?, ICML 2019",
            terms="as ImageNet's images: the authors' MIT licence is not for these, which are from Flickr",
            gigabytes=3.8,
            labels="imagenet-1k-numbers",
            parts={
                name: f"imagenetv2-{name}-format-val" for name in ("matched-frequency", "threshold0.7", "top-images")
            },
            images=10_000,
            preprocessing=_BOTH,
            published={"matched-frequency": "imagenet-v2-matched-frequency/finetune/top-1"},
        ),
        _imagenet(
            "imagenet-a",
            "ImageNet-A",
            "Unpack https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar; DIR is its folder imagenet-a.",
            "hendrycks/natural-adv-examples eval.py: argmax over 200 logits",
            paper="Hendrycks et al., Natural Adversarial Examples, CVPR 2021",
            terms=_MIT,
            gigabytes=0.7,
            subset="imagenet-a",
            logits=_SUBSET_FIRST,
            images=7_500,
            classes=200,
            preprocessing=_BOTH,
            published={"200 classes": "imagenet-a/finetune/top-1"},
        ),
        _imagenet(
            "imagenet-r",
            "ImageNet-R",
            "Unpack https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar; DIR is its folder imagenet-r.",
            "hendrycks/imagenet-r eval.py: argmax over 200 logits",
            paper="Hendrycks et al., The Many Faces of Robustness, ICCV 2021",
            terms="none stated; images from the web",
            gigabytes=2.2,
            subset="imagenet-r",
            logits=_SUBSET_FIRST,
            images=30_000,
            classes=200,
            preprocessing=_BOTH,
            published={"200 classes": "imagenet-r/finetune/top-1"},
        ),
        _imagenet(
            "imagenet-o",
            "ImageNet-O",
            "Unpack https://people.eecs.berkeley.edu/~hendrycks/imagenet-o.tar; DIR is its folder imagenet-o. ImageNet's validation images of the same 200 classes are the known ones.",
            "hendrycks/natural-adv-examples eval_many_models.py: softmax over 200 logits",
            paper="Hendrycks et al., Natural Adversarial Examples, CVPR 2021",
            terms=_MIT,
            gigabytes=0.2,
            kind="detection",
            known="imagenet-1k/val",
            subset="imagenet-o",
            logits=["subset"],
            images={"unknown": 2_000, "known": 10_000},
            classes=200,
            preprocessing=_BOTH,
        ),
        _imagenet(
            "imagenet-c",
            "ImageNet-C",
            "Unpack blur.tar, digital.tar, noise.tar, weather.tar, and extra.tar if you like, of https://zenodo.org/records/2235448 in DIR.",
            "hendrycks/robustness ImageNet-C/test.py: no resize",
            paper="Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019",
            terms="CC BY 4.0, of ImageNet's images",
            gigabytes=50,
            kind="corruptions",
            corruptions=list(ALEXNET_ERROR),
            alexnet=True,
            images=50_000,
            preprocessing=["crop"],
            published={"mCE": "imagenet-c/finetune/mce"},
        ),
        _imagenet(
            "imagenet-sketch",
            "ImageNet-Sketch",
            "See https://github.com/HaohanWang/ImageNet-Sketch; DIR is its folder sketch.",
            "HaohanWang/ImageNet-Sketch; its README rounds to 50,000, the released files and their copies are 50,889",
            paper="Wang et al., Learning Robust Global Representations by Penalizing Local Predictive Power, NeurIPS 2019",
            terms=_MIT,
            gigabytes=8.4,
            images=50_889,
            preprocessing=_BOTH,
            published={"top-1": "imagenet-sketch/finetune/top-1"},
        ),
        _imagenet(
            "objectnet",
            "ObjectNet, the 113 classes that ImageNet has",
            "Unpack objectnet-1.0.zip of https://objectnet.dev; DIR is its folder images.",
            "abarbu/objectnet-template-pytorch: 2 px of border cut, then Resize(224), CenterCrop(224)",
            paper="Barbu et al., ObjectNet: A large-scale bias-controlled dataset for pushing the limits of object recognition models, NeurIPS 2019",
            terms="CC BY 4.0 and two clauses: no model's parameters may be tuned on it, and an image that is shown needs a red border of a pixel",
            gigabytes=None,
            labels="objectnet",
            logits=["all", "subset"],
            border=2,
            eval_crop=1.0,
            images=18_574,
            classes=113,
            preprocessing=["bilinear"],
        ),
        *(
            _imagenet(
                f"si-score-{factor}",
                f"SI-Score, {factor}",
                _SI_SCORE.format(factor),
                _SI_SOURCE,
                paper="Djolonga et al., On Robustness and Transferability of Convolutional Neural Networks, CVPR 2021",
                terms="Apache-2.0; foregrounds of Open Images, backgrounds of Pexels",
                gigabytes=gigabytes,
                path="si-score",
                parts={"": folder},
                labels="si-score",
                images=images,
                classes=61,
            )
            for factor, folder, images, gigabytes in (
                ("size", "area", 92_884, 3.5),
                ("location", "location20_area02_min0pc", 541_548, 19.6),
                ("rotation", "rotation", 39_540, 1.5),
            )
        ),
        _imagenet(
            "imagenet-9",
            "ImageNet-9, backgrounds",
            "Unpack backgrounds_challenge_data.tar.gz of https://github.com/MadryLab/backgrounds_challenge/releases; DIR is its folder bg_challenge.",
            "MadryLab/backgrounds_challenge in9_eval.py: argmax over 1000 logits, mapped",
            paper="Xiao et al., Noise or Signal: The Role of Image Backgrounds in Object Recognition, ICLR 2021",
            terms="none stated, of ImageNet's images",
            gigabytes=None,
            labels="imagenet-9",
            parts={
                name: f"{name}/val"
                for name in (
                    "original", "mixed_same", "mixed_rand", "mixed_next", "only_fg", "no_fg", "only_bg_b", "only_bg_t",
                )
            },
            gap=["mixed_same", "mixed_rand"],
            images=4_050,
            classes=9,
            preprocessing=["whole"],
        ),
        _imagenet(
            "stylized-imagenet",
            "Stylized-ImageNet, validation",
            "Make it by https://github.com/rgeirhos/Stylized-ImageNet, into DIR/val.",
            "alibaba/easyrobust stylized_imagenet.py: as stored, 224 px",
            paper="Geirhos et al., ImageNet-trained CNNs are biased towards texture, ICLR 2019",
            terms="none stated, of ImageNet's images and of paintings of Kaggle's painter-by-numbers",
            gigabytes=5,
            parts={"": "val"},
            images=50_000,
            preprocessing=["whole"],
        ),
        _imagenet(
            "imagenet-occlusion",
            "ImageNet-1K, validation, with patches dropped or shuffled",
            _VAL,
            "Naseer et al. 2021: so many tenths of 14 x 14 patches dropped at random",
            paper="Naseer et al., Intriguing Properties of Vision Transformers, NeurIPS 2021",
            terms=_IMAGENET_TERMS,
            gigabytes=0,
            path="imagenet-1k/val",
            kind="occlusion",
            images=50_000,
        ),
    )
}  # fmt: skip
"""By name."""
