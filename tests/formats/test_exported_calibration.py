"""The exported pipeline says what `classify` says by a calibration: probabilities, "none of these",
sets of labels, and how many descriptions are seen.
"""

import csv
import dataclasses
import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image
from tiny_model import STEP, TEMPLATES, tiny_model, write_run

import grain_jax
from grain_jax import calibrate, export
from grain_jax.formats import huggingface as huggingface_folder
from grain_jax.formats.format import TrainingRun
from grain_jax.formats.model_card import model_card
from grain_jax.formats.parity import Difference
from grain_jax.inference.fingerprints import params_sha256
from grain_jax.inference.predictor import Model
from grain_jax.zero_shot import calibration as calibrations
from grain_jax.zero_shot.calibration import Calibration, LabelSets, NoneOfThese, to_json
from grain_jax.zero_shot.scorers import make_class_texts

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5")
processing = pytest.importorskip("grain_jax.formats.torch_grain.processing_grain")
scores_grain = pytest.importorskip("grain_jax.formats.torch_grain.scores_grain")
torch.set_num_threads(1)

LABELS = ["red", "blue", "a long tail", "crest"]
DESCRIBED = {
    "red": ["red crest", "a long red tail with a blue crest and red"],  # one is cut
    "blue": ["blue tail", "blue"],
    "bird": ["the bird", "a bird with a crest", "long"],
}
PLAIN = {"label", "score"}


def make_images(seed=0):
    """Of colours and noise, so that a model with random weights tells them apart."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (24, 32, 32, 3))
    colours, mixed = rng.integers(0, 256, (24, 1, 1, 3)), rng.random((24, 1, 1, 1))
    return list((mixed * noise + (1 - mixed) * colours).astype(np.uint8))


IMAGES = make_images()


def a_calibration(loaded, described, **changes) -> Calibration:
    """Of the model by name or by description, of a temperature alone."""
    labels = list(described or LABELS)
    texts = make_class_texts(labels, templates=TEMPLATES, descriptions=described or {})
    regions = {"regions"} if loaded.has_regions else set()
    kinds = {"descriptions"} | regions if described else {"names"}
    evaluation = loaded.config.evaluation
    settings = {
        "method": "description" if described else "name",
        "alpha": (0.5 if loaded.has_regions else 1.0) if described else None,
        "scoring": {
            "prompt_ensembling": evaluation.prompt_ensembling,
            "region_aggregation": evaluation.region_aggregation,
        },
        "weights_sha256": params_sha256(loaded.params),
        "step": STEP,
        "classes": tuple(labels),
        "texts_sha256": calibrations.texts_sha256(labels, texts, kinds),
        "temperature": 5.0,
    }
    return Calibration(**(settings | changes))


def between(values) -> float:
    """A number that about half of the values are above, and none is near."""
    ordered = np.sort(np.asarray(values, float).reshape(-1))
    middle = ordered[len(ordered) // 4 : 3 * len(ordered) // 4 + 1]
    gaps = np.diff(middle)
    assert gaps.max() > 5e-6, "rounding alone could put them on other sides"
    return float(middle[gaps.argmax()] + gaps.max() / 2)


def classified(loaded, fitted, described, notes=None, **options):
    model = Model(loaded, note=(notes or []).append, calibration=fitted)
    labels = None if described else LABELS
    return model.classify(IMAGES, labels, described, alpha=fitted.alpha, top_k=None, **options)


def decided(loaded, fitted, described, *, rule, region_weight) -> Calibration:
    """With thresholds that part of the images are on either side of."""
    none = NoneOfThese(0.0, region_weight, 0.1)
    fitted = dataclasses.replace(fitted, none_of_these=none)
    answers = classified(loaded, fitted, described)
    scores = [one.calibrated.in_distribution_score for one in answers]
    probabilities = np.array([[one.probability for one in each.ranked] for each in answers])
    sets = None
    if rule is not None:
        of_second = calibrations.nonconformity(probabilities, rule)[:, 1]
        sets = LabelSets(rule, 0.9, between(of_second))
    cosines = [
        text.cosine
        for answer in answers
        for one in answer.ranked
        for text in one.grounded
        if text.query is not None
    ]
    return dataclasses.replace(
        fitted,
        none_of_these=dataclasses.replace(none, threshold=between(scores)),
        label_sets=sets,
        seen_cosine=between(cosines) if cosines else None,
    )


def export_config(loaded, fitted, folder, report=None):
    """`calibrate_pipeline` of a folder with a calibration; the config, and the notes."""
    from grain_jax.formats.torch_grain.configuration_grain import GrainConfig

    huggingface_folder.torch_model(loaded).config.save_pretrained(folder)
    content = json.dumps(to_json(fitted, report or {}))
    (folder / "calibration.json").write_text(content, encoding="utf-8")
    used, notes = huggingface_folder.calibrate_pipeline(folder)
    return GrainConfig.from_pretrained(folder), used, notes


def pipeline_of(loaded, config):
    model, parts = huggingface_folder.torch_model(loaded), huggingface_folder.processor(loaded)
    model.config.calibration = getattr(config, "calibration", None)
    return processing.GrainZeroShotPipeline(
        model=model, tokenizer=parts.tokenizer, image_processor=parts.image_processor
    )


def question(described):
    return {"descriptions": described} if described else {"candidate_labels": LABELS}


def check_equal(found, answers):
    for entries, answer in zip(found, answers, strict=True):
        assert [entry["label"] for entry in entries] == [one.label for one in answer.ranked]
        expected = [one.probability for one in answer.ranked]
        np.testing.assert_allclose([entry["score"] for entry in entries], expected, atol=1e-5)
        said = answer.calibrated
        keys = set(PLAIN)
        if said.label_set is not None:
            keys.add("in_set")
            inside = tuple(entry["label"] for entry in entries if entry["in_set"] is True)
            assert inside == said.label_set
        if said.none_of_these is not None:
            keys.add("none_of_these")
            assert {entry["none_of_these"] for entry in entries} == {said.none_of_these}
        seen = [one.num_seen for one in answer.ranked]
        if seen != [None] * len(seen):
            keys.add("num_seen")
            assert [entry["num_seen"] for entry in entries] == seen
        assert all(set(entry) == keys for entry in entries)


@pytest.mark.parametrize(
    ("changes", "described", "alpha", "rule", "region_weight"),
    [
        ({}, None, None, "lac", 1.0),
        ({}, None, None, "aps", 0.0),
        ({"ensembling": "score"}, None, None, "lac", 0.5),
        ({}, DESCRIBED, 0.5, "lac", 1.0),
        ({}, DESCRIBED, 0.0, "aps", 2.0),
        ({}, DESCRIBED, 1.0, "lac", 1.0),
        ({"aggregation": "max_over_descriptions"}, DESCRIBED, 0.25, "lac", 1.0),
        ({"type": "clip"}, None, None, "aps", 0.0),
        ({"type": "clip"}, DESCRIBED, 1.0, "lac", 0.0),
    ],
)
def test_it_says_what_classify_says(tmp_path, changes, described, alpha, rule, region_weight):
    loaded = tiny_model(**{k: v for k, v in changes.items() if k == "type"})
    evaluation = loaded.config.evaluation
    evaluation.prompt_ensembling = changes.get("ensembling", "embedding")
    evaluation.region_aggregation = changes.get("aggregation", "max_over_queries")
    fitted = a_calibration(loaded, described, alpha=alpha)
    fitted = decided(loaded, fitted, described, rule=rule, region_weight=region_weight)
    config, used, notes = export_config(loaded, fitted, tmp_path)
    assert used == fitted
    assert notes == []
    answers = classified(loaded, fitted, described)
    none = [one.calibrated.none_of_these for one in answers]
    assert 0 < sum(none) < len(IMAGES)
    sizes = {len(one.calibrated.label_set) for one in answers}
    assert len(sizes) > 1
    options = question(described) | ({} if alpha is None else {"alpha": alpha})
    pipeline = pipeline_of(loaded, config)
    images = [processing.upright_rgb(image) for image in IMAGES]
    check_equal(pipeline(images, **options), answers)
    check_equal(pipeline(images, **options, batch_size=5), answers)
    check_equal([pipeline(images[0], **options)], answers[:1])


def test_of_unlabelled_images_the_shifts_of_classes_are_used(tmp_path):
    loaded = tiny_model()
    shift = dict(zip(LABELS, (0.5, -0.25, 0.0, -0.25), strict=True))
    fitted = a_calibration(loaded, None, temperature=1.0, class_shift=shift)
    fitted = decided(loaded, fitted, None, rule=None, region_weight=1.0)
    config, _, _ = export_config(loaded, fitted, tmp_path)
    found = pipeline_of(loaded, config)(
        [processing.upright_rgb(image) for image in IMAGES], candidate_labels=LABELS[::-1]
    )
    check_equal(found, classified(loaded, fitted, None))


def test_sets_of_too_few_images_hold_every_label(tmp_path):
    loaded = tiny_model()
    fitted = a_calibration(loaded, DESCRIBED, label_sets=LabelSets("aps", 0.99, None))
    config, _, _ = export_config(loaded, fitted, tmp_path)
    (entries,) = pipeline_of(loaded, config)([make_image()], descriptions=DESCRIBED)
    assert [entry["in_set"] for entry in entries] == [True] * len(DESCRIBED)


def make_image():
    return processing.upright_rgb(IMAGES[0])


@pytest.mark.parametrize(
    ("options", "message", "temperature"),
    [
        ({"candidate_labels": LABELS}, "fitted for method=description, and this is method", 1.0),
        ({"descriptions": DESCRIBED, "alpha": 0.25}, "alpha=0.5, and this is alpha=0.25", 1.0),
        ({"descriptions": DESCRIBED | {"bird": ["the bird"]}}, "Only its temperature", 5.0),
        ({"descriptions": {"red": ["red"], "blue": ["blue"]}}, "Only its temperature", 5.0),
    ],
)
def test_what_does_not_hold_is_left_out_with_a_warning(tmp_path, options, message, temperature):
    loaded = tiny_model()
    none, sets = NoneOfThese(9.0, 1.0, 1.0), LabelSets("lac", 0.9, 0.5)
    fitted = a_calibration(loaded, DESCRIBED, none_of_these=none, label_sets=sets)
    config, _, _ = export_config(loaded, fitted, tmp_path)
    pipeline = pipeline_of(loaded, config)
    with pytest.warns(UserWarning, match=message):
        found = pipeline(make_image(), **options)
    with warnings.catch_warnings(action="error"):
        assert pipeline(make_image(), **options) == found  # once
    assert all(set(entry) == PLAIN for entry in found)
    plain = pipeline_of(loaded, None)(make_image(), **options)
    ratios = [np.log(one[0]["score"] / one[-1]["score"]) for one in (plain, found)]
    assert ratios[0] / ratios[1] == pytest.approx(temperature, rel=1e-3)


def test_shifts_of_other_classes_are_not_used(tmp_path):
    loaded = tiny_model()
    fitted = a_calibration(loaded, None, temperature=1.0, class_shift=dict.fromkeys(LABELS, 0.0))
    config, _, _ = export_config(loaded, fitted, tmp_path)
    pipeline = pipeline_of(loaded, config)
    with pytest.warns(UserWarning, match="it has no temperature"):
        found = pipeline(make_image(), candidate_labels=["red", "bird"])
    assert found == pipeline_of(loaded, None)(make_image(), candidate_labels=["red", "bird"])


def test_earlier_exports_have_a_temperature_alone():
    loaded = tiny_model()
    pipeline = pipeline_of(loaded, None)
    plain = pipeline(make_image(), candidate_labels=LABELS)
    pipeline.model.config.calibration = {"method": "name", "alpha": None, "temperature": 5.0}
    found = pipeline(make_image(), candidate_labels=LABELS)
    assert all(set(entry) == PLAIN for entry in [*plain, *found])
    ratios = [np.log(one[0]["score"] / one[-1]["score"]) for one in (plain, found)]
    assert ratios[0] / ratios[1] == pytest.approx(5.0, rel=1e-3)


def test_a_skipped_image_has_no_entries(tmp_path):
    loaded = tiny_model()
    fitted = a_calibration(loaded, None, none_of_these=NoneOfThese(9.0, 1.0, 1.0))
    config, _, _ = export_config(loaded, fitted, tmp_path)
    pipeline, images = pipeline_of(loaded, config), [make_image(), "nowhere.png"]
    with pytest.warns(UserWarning, match="Skipped: Image 2 of 2"):
        found = pipeline(images, candidate_labels=LABELS, on_error="skip", batch_size=2)
    assert [len(entries) for entries in found] == [len(LABELS), 0]
    assert {entry["none_of_these"] for entry in found[0]} == {True}


def test_a_description_given_twice_counts_once():
    loaded = tiny_model()
    pipeline = pipeline_of(loaded, None)
    twice = DESCRIBED | {"red": [*DESCRIBED["red"], DESCRIBED["red"][0]]}
    assert pipeline(make_image(), descriptions=twice) == pipeline(
        make_image(), descriptions=DESCRIBED
    )


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("rule", ["lac", "aps"])
def test_nonconformity_is_that_of_the_package(rule, ties):
    values = np.random.default_rng(1).random((50, 7))
    values = np.round(values, 1) + 0.1 if ties else values
    probabilities = values / values.sum(axis=1, keepdims=True)
    if ties:
        probabilities[:, 3] = probabilities[:, 5]
    found = scores_grain.nonconformity(torch.from_numpy(probabilities), rule)
    expected = calibrations.nonconformity(probabilities, rule)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="has the rule 'raps'; expected 'lac' or 'aps'"):
        scores_grain.nonconformity(torch.from_numpy(probabilities), "raps")


# --- The export


def test_a_calibration_for_another_method_is_not_given_to_the_pipeline(tmp_path):
    loaded = tiny_model()
    fitted = a_calibration(loaded, DESCRIBED, method="name_and_regions")
    config, used, notes = export_config(loaded, fitted, tmp_path)
    assert used is None
    assert not hasattr(config, "calibration")
    assert "does not use the calibration, which is for the method 'name_and_regions'" in notes[0]


def test_classes_without_descriptions_are_noted(tmp_path):
    loaded = tiny_model()
    fitted = a_calibration(loaded, DESCRIBED)
    report = {"set": {"descriptions": {"classes_with_any": 2}}}
    fitted = decided(loaded, fitted, DESCRIBED, rule="lac", region_weight=1.0)
    _, used, notes = export_config(loaded, fitted, tmp_path, report)
    parts = (used.temperature, used.none_of_these, used.label_sets, used.seen_cosine)
    assert parts == (fitted.temperature, None, None, None)  # what the model card may promise
    assert notes[0].startswith("1 of the 3 classes")
    assert "can use the temperature alone" in notes[0]
    shifted = dataclasses.replace(
        fitted, temperature=1.0, class_shift=dict.fromkeys(DESCRIBED, 0.1)
    )
    config, used, notes = export_config(loaded, shifted, tmp_path, report)
    assert (used, getattr(config, "calibration", None)) == (None, None)
    assert "can use nothing" in notes[0]
    report["set"]["descriptions"]["classes_with_any"] = 3
    assert export_config(loaded, fitted, tmp_path, report)[1:] == (fitted, [])


def test_the_model_card_says_what_is_calibrated():
    loaded = tiny_model()
    run, same = TrainingRun("run"), [Difference("image_embeds", "random", 0.0, 0.0)]

    def card(fitted):
        return model_card(loaded, run, same, dtype="float32", calibration=fitted)

    assert "no label is right, and are not calibrated." in card(None)
    none = NoneOfThese(1.0, 1.0, 1.0)
    found = card(a_calibration(loaded, DESCRIBED, none_of_these=none))
    assert "no label is right. By description with alpha=0.5 they are calibrated" in found
    assert "`none_of_these` says where none is. Other classes and texts" in found
    assert "`in_set`" not in found


ALONE = """
import sys
sys.modules["jax"] = sys.modules["grain_jax"] = None  # the folder has to do without
import json
from transformers import AutoModel, AutoProcessor, pipeline

folder, described = sys.argv[1], json.loads(sys.argv[2])
paths = json.loads(sys.stdin.read())
AutoModel.from_pretrained(folder, trust_remote_code=True).save_pretrained("again")
AutoProcessor.from_pretrained(folder, trust_remote_code=True).save_pretrained("again")
found = []
for place in (folder, "again"):
    classify = pipeline("zero-shot-image-classification", model=place, trust_remote_code=True)
    found.append(classify(paths, descriptions=described, batch_size=8))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_what_calibrate_writes_is_in_the_export_and_its_pipeline(tmp_path, monkeypatch, capsys):
    """From the command to a process without this package, also after saving it again."""
    monkeypatch.chdir(tmp_path)
    write_run(tiny_model(), tmp_path / "run")
    images = {"set": np.concatenate([make_images(1), make_images(2)]), "others": make_images(3)}
    images["new"] = make_images(4)  # thresholds lie at the scores of images that they are fitted to
    paths = {}
    for name, several in images.items():
        (tmp_path / name).mkdir()
        paths[name] = [str(tmp_path / name / f"{i}.png") for i in range(len(several))]
        for path, image in zip(paths[name], several, strict=True):
            Image.fromarray(image).save(path)
    model = grain_jax.load("run", note=lambda text: None)
    answers = model.classify(paths["set"], descriptions=DESCRIBED, top_k=None)
    scores = np.array([[dict(_scores(one))[k] for k in DESCRIBED] for one in answers])
    # Of a model with random weights, where it says more for a label than of other images.
    labels = np.array(list(DESCRIBED))[(scores - scores.mean(axis=0)).argmax(axis=1)]
    with (tmp_path / "set" / "labels.csv").open("w", newline="") as table:
        rows = [(f"{i}.png", label) for i, label in enumerate(labels)]
        csv.writer(table).writerows([("file", "label"), *rows])
    (tmp_path / "texts.json").write_text(json.dumps(DESCRIBED))
    options = ["--data=set", "--descriptions=texts.json", "--outliers=others"]
    assert calibrate.main(["--checkpoint=run", *options, "--false_accept=0.5"]) == 0
    assert export.main(["--checkpoint=run", "--to=huggingface", "--output=out"]) == 0
    capsys.readouterr()
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE, "out", json.dumps(DESCRIBED)],
        input=json.dumps(paths["new"]),
        capture_output=True,
        text=True,
        env=settings,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    notes = []
    model = grain_jax.load("out", note=notes.append)
    expected = model.classify(paths["new"], descriptions=DESCRIBED, top_k=None)
    assert "calibration" not in " ".join(notes)
    assert all(one.calibrated.none_of_these is not None for one in expected)
    assert all(one.calibrated.label_set for one in expected)
    for found in json.loads(result.stdout.splitlines()[-1]):
        check_equal(found, expected)
        assert set(found[0][0]) == {*PLAIN, "in_set", "none_of_these", "num_seen"}
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "for images like those of 3 classes" in card


def _scores(answer):
    return [(one.label, one.score) for one in answer.ranked]
