"""Where the calibration of a model is, and that copies of the model keep it."""

import dataclasses
import json

import jax
import pytest
from tiny_model import LABELS, STEP, TEMPLATES, tiny_model, write_run

from grain_jax.formats.parity import rounded
from grain_jax.inference.fingerprints import params_sha256
from grain_jax.loading.calibration import (
    calibration_of_copy,
    calibration_place,
    find_calibration,
)
from grain_jax.zero_shot.calibration import (
    MAX_BYTES,
    Calibration,
    read_calibration,
    texts_sha256,
    to_json,
)
from grain_jax.zero_shot.scorers import make_class_texts


def calibration_by_name(params) -> Calibration:
    """Of the tiny model by name, in its own templates."""
    texts = make_class_texts(LABELS, templates=TEMPLATES, descriptions={})
    return Calibration(
        method="name",
        alpha=None,
        scoring={"prompt_ensembling": "embedding", "region_aggregation": "max_over_queries"},
        weights_sha256=params_sha256(params),
        step=STEP,
        classes=tuple(LABELS),
        texts_sha256=texts_sha256(LABELS, texts, {"names"}),
        temperature=5.0,
    )


def test_it_lies_beside_the_model(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    for folder in (run / "checkpoints", other):
        folder.mkdir(parents=True)
    (other / "model.pth").touch()
    assert calibration_place(run) == run / "calibration.json"
    assert calibration_place(other) == other / "calibration.json"
    assert calibration_place(other / "model.pth") == other / "calibration.json"
    assert calibration_place("someone/model") is None


def test_it_is_found_there_unless_another_or_none_is_asked_for(tmp_path):
    loaded = tiny_model()
    fitted = calibration_by_name(loaded.params)
    notes: list[str] = []
    assert find_calibration(tmp_path, loaded, note=notes.append) is None
    (tmp_path / "calibration.json").write_text(json.dumps(to_json(fitted, {})))
    assert find_calibration(tmp_path, loaded, note=notes.append) == fitted
    assert find_calibration(tmp_path, loaded, "none", note=notes.append) is None
    named = tmp_path / "named.json"
    other = dataclasses.replace(fitted, temperature=2.0)
    named.write_text(json.dumps(to_json(other, {})))
    assert find_calibration(tmp_path, loaded, named, note=notes.append) == other
    assert notes == []
    named.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        find_calibration(tmp_path, loaded, named, note=notes.append)
    with named.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ValueError, match=r"named\.json is not a calibration: it is larger than"):
        find_calibration(tmp_path, loaded, named, note=notes.append)


def test_a_copy_with_rounded_weights_has_a_file_of_its_own(tmp_path):
    loaded = tiny_model()
    fitted = calibration_by_name(loaded.params)
    copy = dataclasses.replace(loaded, params=rounded(loaded.params, "bfloat16"))
    assert calibration_of_copy(tmp_path, loaded, copy, pytest.fail) is None
    (tmp_path / "calibration.json").write_text(json.dumps(to_json(fitted, {"kept": 1})))
    text = calibration_of_copy(tmp_path, loaded, copy, pytest.fail)
    assert text is not None
    assert json.loads(text)["report"] == {"kept": 1}
    found = read_calibration(text, "")
    assert found.weights_sha256 == params_sha256(copy.params) != fitted.weights_sha256
    assert dataclasses.replace(found, weights_sha256=fitted.weights_sha256) == fitted
    other = dataclasses.replace(loaded, params=jax.tree.map(lambda leaf: leaf + 1, loaded.params))
    notes: list[str] = []
    assert calibration_of_copy(tmp_path, other, copy, notes.append) is None
    assert "other weights" in notes[0]


@pytest.mark.slow
@pytest.mark.torch
def test_an_export_takes_it_along_and_its_pipeline_uses_the_temperature(tmp_path, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("transformers", minversion="5")
    from PIL import Image

    import grain_jax
    from grain_jax import export
    from grain_jax.formats import huggingface
    from grain_jax.formats.torch_grain.processing_grain import GrainZeroShotPipeline

    run, out = tmp_path / "run", tmp_path / "out"
    write_run(tiny_model(), run)
    own = grain_jax.load(run, note=lambda text: None)
    fitted = calibration_by_name(own.loaded.params)
    (run / "calibration.json").write_text(json.dumps(to_json(fitted, {})))
    arguments = [f"--checkpoint={run}", "--to=huggingface", f"--output={out}"]
    assert export.main(arguments) == 0
    assert "goes along" in " ".join(capsys.readouterr().err.split())
    image = Image.new("RGB", (9, 9), "red")
    image.save(tmp_path / "red.png")
    notes: list[str] = []
    model = grain_jax.load(out, note=notes.append)
    (answer,) = model.classify(tmp_path / "red.png", LABELS)
    assert answer.calibrated is not None
    (plain,) = own.classify(tmp_path / "red.png", LABELS)
    assert answer.ranked[0].probability < plain.ranked[0].probability
    parts = huggingface.processor(model.loaded)
    pipeline = GrainZeroShotPipeline(
        model=huggingface.read_model(out, dtype="float32"),
        tokenizer=parts.tokenizer,
        image_processor=parts.image_processor,
    )
    scores = {one["label"]: one["score"] for one in pipeline(image, candidate_labels=LABELS)}
    for one in answer.ranked:
        assert scores[one.label] == pytest.approx(one.probability, abs=1e-5)
    described = {"red": ["red crest"], "blue": ["blue tail"]}  # by another method: without
    with pytest.warns(UserWarning, match="fitted for method=name"):
        by_description = pipeline(image, descriptions=described)
    (expected,) = own.classify(tmp_path / "red.png", descriptions=described)
    assert by_description[0]["score"] == pytest.approx(expected.ranked[0].probability, abs=1e-5)
