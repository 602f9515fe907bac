"""The contract of every format that a model is read from."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest
import tiny_model
from pretrained_folders import save_clip, save_open_clip, save_siglip

from grain_jax import export
from grain_jax.formats import parity
from grain_jax.formats.format import Export, Format, TrainingRun, WritableFormat
from grain_jax.inference.predictor import Model
from grain_jax.loading.formats import FORMATS, writable_formats
from grain_jax.loading.load import read_model

pytestmark = pytest.mark.torch

# Each entry of `FORMATS`, and the path in it of a second sample; add a small one for a new entry.
SAMPLES = {
    "run": "run",
    "the checkpoints of a run": "run",
    "official": "official",
    "an official file": "official",
    "huggingface": "huggingface",
    "huggingface_clip": "huggingface_clip",
    "SigLIP": "huggingface_clip",
    "open_clip": "open_clip",
    "a checkpoint of open_clip": "open_clip",
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name.replace(" ", "_")) for name in SAMPLES}
    tiny_model.write_run(tiny_model.tiny_model(), folders["run"])
    for name in ("official", "huggingface"):
        writable_formats()[name].write(tiny_model.tiny_model(), folders[name])
    clip = save_clip(folders["huggingface_clip"])
    save_siglip(folders["SigLIP"])
    save_open_clip(clip, folders["open_clip"])
    return folders | {
        "the checkpoints of a run": folders["run"] / "checkpoints",
        "an official file": folders["official"] / "checkpoint.pth",
        "a checkpoint of open_clip": folders["open_clip"] / "open_clip_pytorch_model.bin",
    }


def test_every_format_has_a_sample():
    assert set(SAMPLES.values()) == set(FORMATS)
    assert all(isinstance(each, Format) for each in FORMATS.values())
    titles = [each.title for each in FORMATS.values()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("sample", SAMPLES)
def test_one_format_recognises_it_and_its_model_embeds(paths, sample):
    path = paths[sample]
    assert [name for name, each in FORMATS.items() if each.recognises(path)] == [SAMPLES[sample]]
    loaded = FORMATS[SAMPLES[sample]].read(path)
    jax.tree.map(np.testing.assert_array_equal, read_model(path).params, loaded.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {np.dtype("float32")}
    model = Model(loaded, note=lambda text: None)
    for found in (
        model.embed_images([np.zeros((9, 7, 3), np.uint8)]).image,
        model.embed_texts(["a"]),
    ):
        np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_its_weights_are_in_the_folder(paths, name):
    """A download from the hub takes this file and no other."""
    if FORMATS[name].weights:
        assert any((paths[name] / file).is_file() for file in FORMATS[name].weights)


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_of_anything_else_is_not_recognised(tmp_path, name):
    (tmp_path / "config.json").write_text('{"architecture": "vit"}')
    (tmp_path / "model.safetensors").write_bytes(b"weights of another library")
    assert not FORMATS[name].recognises(tmp_path)
    assert not FORMATS[name].recognises(tmp_path / "model.safetensors")
    assert not FORMATS[name].recognises(tmp_path / "nothing")


@pytest.mark.parametrize("sample", SAMPLES)
def test_damaged_files_are_an_error_that_names_the_path(paths, tmp_path, sample):
    original = paths[sample]
    folder = original if original.is_dir() else original.parent
    shutil.copytree(folder, tmp_path / "damaged")
    damaged = tmp_path / "damaged" / ("" if original.is_dir() else original.name)
    for file in (tmp_path / "damaged").rglob("*"):
        if file.is_file() and file.suffix not in (".json", ".py"):
            file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match="damaged"):
        FORMATS[SAMPLES[sample]].read(damaged)


@pytest.mark.parametrize("changes", [{}, {"type": "clip", "scan_layers": True, "sigmoid": True}])
@pytest.mark.parametrize("name", writable_formats())
def test_what_is_written_reads_back_equal(tmp_path, name, changes):
    written, loaded = writable_formats()[name], tiny_model.tiny_model(**changes)
    for dtype in written.dtypes:
        folder = tmp_path / dtype
        written.write(loaded, folder, dtype=dtype)
        assert written.recognises(folder)
        again = written.read(folder)
        expected = parity.rounded(loaded.params, dtype)
        jax.tree.map(np.testing.assert_array_equal, again.params, expected)
        assert again.config.model == loaded.config.model
        assert again.config.loss == loaded.config.loss
        assert again.tokenizer.spec() == loaded.tokenizer.spec()
        assert again.preprocessing == loaded.preprocessing
        assert again.templates == loaded.templates
    if outputs := written.outputs(tmp_path / "float32", dtype="float32"):
        inputs = parity.random_inputs(loaded.config.model, count=2)
        ours = parity.jax_outputs(loaded.config.model)(loaded.params, inputs)
        theirs = outputs(inputs)
        for output, expected in ours.items():
            np.testing.assert_allclose(theirs[output], expected, atol=1e-4, err_msg=output)
    done = Export(
        tmp_path / "float32",
        tmp_path,
        "float32",
        TrainingRun("run"),
        [parity.Difference("random", "text_embeds", 0.0, 0.0)],
    )
    notes = written.finish(loaded, done)
    assert all(isinstance(note, str) for note in notes)
    if name == "official":  # which has a place for the bias only beside its own tensors
        assert any("sigmoid loss" in note for note in notes) == ("logit_bias" in loaded.params)


def test_export_offers_every_format_that_can_be_written():
    assert set(get_args(export.FormatName)) == set(writable_formats())
    assert all(isinstance(each, WritableFormat) for each in writable_formats().values())


def test_to_know_the_formats_takes_no_library_of_others():
    code = "import sys, grain_jax.loading.formats; print(*sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"torch", "transformers", "tokenizers", "huggingface_hub"}.isdisjoint(printed)
