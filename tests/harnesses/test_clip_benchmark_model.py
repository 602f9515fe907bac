"""Our accuracy and recalls are CLIP_benchmark's own, to the last image, on the same model."""

import csv
import dataclasses
import io
import json
import re
import sys
import types
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image
from places import SHARED
from tiny_model import tiny_model, write_run

from grain_jax import evaluate
from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.data.tokenizer import WordTokenizer
from grain_jax.evaluation.retrieval import retrieval, unique_texts
from grain_jax.evaluation.zero_shot import evaluate_zero_shot
from grain_jax.harnesses.clip_benchmark_model import (
    ClipBenchmarkModel,
    SquareTransform,
    check_accuracy,
    load_model,
    tokenize,
)
from grain_jax.inference.encoder import Encoder
from grain_jax.inference.inputs import ImageInputs
from grain_jax.inference.predictor import Model
from grain_jax.models.bundle import ModelBundle

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
NEEDED = "pip install clip-benchmark scikit-learn (docs/evaluation.md)"
classification: Any = pytest.importorskip(
    "clip_benchmark.metrics.zeroshot_classification", reason=NEEDED
)
recalls: Any = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval", reason=NEEDED)

NAMES = ("red bird", "blue bird", "red crest", "blue crest", "long tail", "red tail", "the photo")
TEMPLATES = ("a photo of a {}", "the {}", "{} and bird")
IMAGENETTE = SHARED / "data" / "zs_imagenette_val.zip"
FLICKR = SHARED / "data" / "flickr_regions_s128.zip"


def spread(bundle: ModelBundle) -> ModelBundle:
    """With weights so large that images and texts differ in what they are most similar to."""
    params = jax.tree.map(lambda leaf: 6 * leaf if leaf.ndim > 1 else leaf, bundle.params)
    return dataclasses.replace(bundle, params=params)


def model_of_words(texts: Sequence[str], **changes: Any) -> ModelBundle:
    """A model that has a token for every word of the texts."""
    known = dict.fromkeys(re.findall("[a-z0-9]+", " ".join(texts).lower()))
    words = WordTokenizer([*known])
    return spread(tiny_model(words, text__vocab_size=words.vocab_size, **changes))


def noise_folders(root: Path, names: Sequence[str], *, most: int = 9) -> Path:
    """Random images in one folder a class, of unequal numbers and sizes."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(2 + number % most):
            pixels = rng.integers(0, 256, (3, 3 + i % 3, 3)).astype(np.uint8)
            size = (40 + i, 33 + number)
            Image.fromarray(pixels).resize(size).save(root / name / f"{i}.png")
    return root


class Labelled(torch.utils.data.Dataset):
    """Files with class numbers, as torchvision's data sets are."""

    def __init__(self, files: Sequence[tuple[Any, int]], classes: Sequence[str], transform: Any):
        self.files, self.classes, self.transform = files, list(classes), transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        file, label = self.files[index]
        with Image.open(io.BytesIO(file)) as image:
            return self.transform(image), label


@pytest.fixture(autouse=True)
def scalars(monkeypatch):
    """Version 1.6.2 makes a float of an array with one element, which numpy 2.4 refuses."""
    monkeypatch.setattr(
        classification, "float", lambda value: np.asarray(value).item(), raising=False
    )


class Judged(NamedTuple):
    metrics: dict[str, float]
    answers: list[int]


def judged_classification(bundle: ModelBundle, files: Any, names: Sequence[str]) -> Judged:
    """By CLIP_benchmark alone, given the model."""
    model = ClipBenchmarkModel(Model(bundle, batch_size=8))
    data = Labelled(files, names, SquareTransform(bundle.preprocessing))
    loader = torch.utils.data.DataLoader(data, batch_size=7)
    templates = [template.replace("{}", "{c}") for template in TEMPLATES]
    given = (model, loader, tokenize, list(names), templates, "cpu")
    metrics = classification.evaluate(*given, amp=False)
    weights = classification.zero_shot_classifier(
        model, tokenize, list(names), templates, "cpu", amp=False
    )
    logits, _ = classification.run_classification(model, weights, loader, "cpu", amp=False)
    return Judged(metrics, logits.argmax(dim=1).tolist())


def assert_same_classification(bundle: ModelBundle, folder: Path) -> None:
    dataset = dataclasses.replace(
        load_zero_shot(folder, note=lambda text: None), templates=TEMPLATES
    )
    records = [dataset.source[i] for i in range(len(dataset.source))]
    position = {name: k for k, name in enumerate(dataset.class_names)}
    answers: list[int] = []
    results = evaluate_zero_shot(
        Encoder.from_bundle(bundle),
        dataset,
        alphas=(1.0,),
        methods=("name",),
        details=True,
        on_scores=lambda m, a, start, scores, labels: answers.extend(scores.argmax(1).tolist()),
    )
    ours = {r.metric: r.value for r in results if r.method == "name"}
    files = [(record.image, position[record.label or ""]) for record in records]
    judged = judged_classification(bundle, files, dataset.class_names)
    assert answers == judged.answers
    assert len(set(answers)) >= 3, "the model says nearly the same of all"
    assert 0 < ours["top1"] < 1
    assert ours["top1"] == pytest.approx(judged.metrics["acc1"], abs=1e-12)
    assert ours["top5"] == pytest.approx(judged.metrics["acc5"], abs=1e-12)
    assert ours["per_class"] == pytest.approx(judged.metrics["mean_per_class_recall"], abs=1e-12)


def test_accuracies_are_those_of_clip_benchmark(tmp_path):
    folder = noise_folders(tmp_path / "noise", NAMES)
    assert_same_classification(model_of_words([*NAMES, "a photo of and the bird"]), folder)


def test_accuracies_on_photographs_are_those_of_clip_benchmark(tmp_path):
    if not IMAGENETTE.exists():
        pytest.skip("needs ../shared/data/zs_imagenette_val.zip")
    with zipfile.ZipFile(IMAGENETTE) as packed:
        packed.extractall(tmp_path)
    folder = tmp_path / "zs_imagenette_val"
    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))[::5]
    lines = [f"{row['file']},{row['label']}" for row in rows]
    (folder / "labels.csv").write_text("\n".join(["file,label", *lines]) + "\n")
    names = sorted({row["label"].replace("_", " ") for row in rows})
    bundle = model_of_words([*names, "a photo of and the bird"])
    assert_same_classification(bundle, folder)


def judged_recalls(bundle: ModelBundle, images: Any, captions: Any) -> dict[str, float]:
    """By CLIP_benchmark alone, given the model."""
    model, transform = (
        ClipBenchmarkModel(Model(bundle, batch_size=8)),
        SquareTransform(bundle.preprocessing),
    )
    squares = [transform(image) for image in images]
    batches = [
        (torch.stack(squares[i : i + 6]), captions[i : i + 6]) for i in range(0, len(squares), 6)
    ]
    return recalls.evaluate(model, batches, tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10])


def assert_same_recalls(bundle: ModelBundle, images: Any, captions: Any) -> None:
    encoder = Encoder.from_bundle(bundle)
    texts, text_rows, image_rows = unique_texts(captions)
    assert len(texts) == len(text_rows), "CLIP_benchmark takes equal texts for different ones"
    features = encoder.images(ImageInputs(images, bundle.preprocessing, skip=False))
    pairs = {"text_rows": text_rows, "image_rows": image_rows}
    embed = encoder.texts(texts, kind="caption")
    found = retrieval(features.image, embed, **pairs, dataset="dev")
    ours = {(r.method, r.metric): r.value for r in found}
    judged = judged_recalls(bundle, images, captions)
    for k in (1, 5, 10):
        to_text, to_image = ours["image_to_text", f"R@{k}"], ours["text_to_image", f"R@{k}"]
        assert to_text == pytest.approx(judged[f"text_retrieval_recall@{k}"], abs=1e-6), k
        assert to_image == pytest.approx(judged[f"image_retrieval_recall@{k}"], abs=1e-6), k
    assert 0 < ours["image_to_text", "R@5"] < 1


def test_recalls_are_those_of_clip_benchmark():
    rng = np.random.default_rng(3)
    words = [f"word{i}" for i in range(30)]
    captions = [
        [" ".join(rng.choice(words, 6).tolist()) for _ in range(1 + i % 4)] for i in range(40)
    ]
    images = [
        Image.fromarray(rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)).resize((50, 40))
        for _ in captions
    ]
    assert_same_recalls(model_of_words(words), images, captions)


def test_recalls_on_photographs_are_those_of_clip_benchmark():
    if not FLICKR.exists():
        pytest.skip("needs ../shared/data/flickr_regions_s128.zip")
    images, captions, seen = [], [], set[str]()
    with zipfile.ZipFile(FLICKR) as packed:
        folder = "flickr_regions_s128"
        lines = packed.read(f"{folder}/dev.jsonl").decode().splitlines()
        for line in lines[:150]:
            row = json.loads(line)
            short = [text for text in row["captions"] if len(text.split()) <= 8]
            own = [text for text in dict.fromkeys(short) if text.lower() not in seen]
            seen.update(text.lower() for text in own)
            if own:
                images.append(Image.open(io.BytesIO(packed.read(f"{folder}/{row['file']}"))))
                captions.append(own)
    assert len(images) > 40
    bundle = model_of_words([text for own in captions for text in own])
    assert_same_recalls(bundle, images, captions)


def test_an_image_and_a_text_have_the_embeddings_of_our_own_evaluation():
    bundle = model_of_words(["red bird", "blue"])
    model, encoder = ClipBenchmarkModel(Model(bundle)), Encoder.from_bundle(bundle)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8))
    square = SquareTransform(bundle.preprocessing)(image)
    assert (square.dtype, tuple(square.shape)) == (torch.uint8, (32, 32, 3))
    ours = encoder.images(ImageInputs([image], bundle.preprocessing, skip=False)).image
    theirs = model.eval().encode_image(square[None])
    np.testing.assert_allclose(theirs.numpy(), ours, atol=1e-6)
    texts = tokenize(["red bird", "blue"]).to("cpu")
    assert (len(texts), len(tokenize("blue"))) == (2, 1)
    expected = encoder.texts(["red bird", "blue"], kind="caption")
    np.testing.assert_allclose(model.encode_text(texts).numpy(), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"what the transform .* makes, torch.uint8 \[B, 32"):
        model.encode_image(torch.zeros(1, 3, 32, 32))


class Absent(types.ModuleType):
    """Stands for a package that CLIP_benchmark imports names of, and here uses none of."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@pytest.fixture
def command_line_of_harness(monkeypatch):
    """Its command line, where torchvision and open_clip are not installed with empty ones."""
    pytest.importorskip("webdataset", reason="pip install webdataset")
    try:
        import open_clip  # noqa: F401
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        names = [
            *("torchvision", "torchvision.datasets", "torchvision.datasets.utils"),
            *("torchvision.datasets.vision", "torchvision.transforms"),
            *("open_clip", "open_clip.tokenizer"),
            *("pycocoevalcap", "pycocoevalcap.tokenizer", "pycocoevalcap.tokenizer.ptbtokenizer"),
        ]
        for metric in ("bleu", "meteor", "rouge", "cider", "spice"):
            names += [f"pycocoevalcap.{metric}", f"pycocoevalcap.{metric}.{metric}"]
        for name in names:
            stand = Absent(name)
            monkeypatch.setitem(sys.modules, name, stand)
            parent, _, last = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], last, stand)


@pytest.mark.usefixtures("command_line_of_harness")
@pytest.mark.filterwarnings("ignore")  # the harness leaves files open and classes without answers
def test_the_command_measures_what_evaluate_does(tmp_path, monkeypatch, capsys):
    from labelled_tars import write_webdataset

    bundle = model_of_words([*NAMES, "a photo of"])
    write_run(bundle, tmp_path / "run")
    folder = noise_folders(tmp_path / "noise", NAMES)
    members = {}
    for label, name in enumerate(NAMES):
        for i, path in enumerate(sorted((folder / name).iterdir())):
            members |= {f"k{label}_{i}.png": path.read_bytes(), f"k{label}_{i}.cls": b"%d" % label}
    tars = write_webdataset(tmp_path / "tars", [members], list(NAMES))
    monkeypatch.chdir(tmp_path)
    theirs = ["--dataset=wds/noise", f"--dataset_root={tars}", "--batch_size=5"]
    arguments = ["clip_benchmark", f"--checkpoint={tmp_path / 'run'}", "--step=7", "--", *theirs]
    assert evaluate.main(arguments) == 0
    judged = json.loads(Path("noise_run_en_zeroshot_classification.json").read_text())["metrics"]
    own = [f"--checkpoint={tmp_path / 'run'}", f"--data={tars}", "--output=ours.json"]
    assert evaluate.main([*own, "--methods=name", "--cache=none"]) == 0
    results = json.loads(Path("ours.json").read_text())["results"]
    ours = {r["metric"]: r["value"] for r in results if r["method"] == "name"}
    named = {"top1": "acc1", "top5": "acc5", "per_class": "mean_per_class_recall"}
    assert 0 < ours["top1"] < 1
    for metric, name in named.items():
        assert ours[metric] == pytest.approx(judged[name], abs=1e-12), metric


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint=a"], "-- --dataset=wds/SET"),
        (["--checkpoint=a", "--dataset=x"], "stand behind `--`"),
        (["--checkpoint=a", "--", "--dataset=x", "--pretrained=b"], "--pretrained is what"),
        (["--", "--dataset=x"], "--checkpoint"),
        (["--checkpiont=a", "--", "--dataset=x"], "--checkpoint"),
    ],
)
def test_a_command_that_says_too_little_or_too_much_is_refused(words, message, capsys):
    assert evaluate.main(["clip_benchmark", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_harness_that_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "clip_benchmark.models", None)
    words = ["clip_benchmark", "--checkpoint=a", "--", "--dataset=x"]
    assert evaluate.main(words) == 2
    assert "pip install clip-benchmark" in capsys.readouterr().err


def test_a_numpy_that_its_accuracy_fails_with_is_named(monkeypatch):
    def refuse(value: Any) -> float:
        raise TypeError("only 0-dimensional arrays can be converted")

    monkeypatch.setattr(classification, "float", refuse)
    with pytest.raises(ValueError, match=r'pip install "numpy<2.4"'):
        check_accuracy()


def test_a_model_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no/such/run"):
        load_model("no/such/run")
