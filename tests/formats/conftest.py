"""One exported folder for all tests, and one of each pretrained model for those of a file."""

import importlib.util
import json

import pytest
from tiny_model import tiny_model, write_run

from grain_jax import export
from grain_jax.training import checkpoint


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_run(tiny_model(region_logit_scale="own"), folder)
    line = {
        "step": 7,
        "val/box_iou": 0.5,
        "val/box_recall": 0.25,
        "val/box_recall_upper_bound": 1.0,
    }
    line["val/phrase_accuracy"] = 0.125
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return checkpoint.load(folder), folder


@pytest.fixture(scope="session")
def folder(loaded, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "model"
    arguments = [f"--checkpoint={loaded[1]}", "--to=huggingface", f"--out={out}"]
    assert export.main(arguments) == 0
    return out


@pytest.fixture(scope="session", autouse=True)
def one_cache_of_code(tmp_path_factory):
    """Code of exported folders goes to a cache of the tests. Python finds it in one place in a
    process, that of the first test that loads any, so it is one for all of them.
    """
    if importlib.util.find_spec("transformers") is None:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        modules = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
        patch.syspath_prepend(modules)
        yield


@pytest.fixture(scope="session")
def auto(folder):
    """(model, processor), by the Auto classes."""
    transformers = pytest.importorskip("transformers", minversion="5")
    model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    return model, processor


def pretrained_folders():
    """The helper, which skips the test where torch or transformers are missing."""
    return importlib.import_module("pretrained_folders")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIPModel, and the folder it is in."""
    folder = tmp_path_factory.mktemp("weights") / "clip"
    return pretrained_folders().save_clip(folder), folder


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "siglip"
    return pretrained_folders().save_siglip(folder), folder


@pytest.fixture
def open_clip(clip, tmp_path):
    pretrained_folders().save_open_clip(clip[0], tmp_path)
    return tmp_path
