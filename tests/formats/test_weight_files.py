"""Weights that others saved: wrapped names, several files, and files that are something else."""

import gzip
import io
import json
import pickle
import re
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from grain_jax.formats import weight_files
from grain_jax.formats.weight_files import INDEX, read_safetensors, read_weights
from grain_jax.formats.wrapped_names import unwrapped_names
from grain_jax.loading.load import read_model

SAFE, TORCH = "model.safetensors", "pytorch_model.bin"
STATE = {
    "logit_scale": np.float32(3.0),
    "vision_model.embeddings.class_embedding": np.arange(4, dtype=np.float32),
    "text_model.encoder.layers.0.mlp.fc1.bias": np.arange(6, dtype=np.float32),
}
PREFIXES = (
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "module.module.",
    "_forward_module._fsdp_wrapped_module.",
    "model.",
    "model._orig_mod.",
    "_orig_mod.model.module.",
)


def same(found, state=STATE):
    assert sorted(found) == sorted(state)
    return all(np.array_equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("form", [SAFE, pytest.param(TORCH, marks=pytest.mark.torch)])
def test_wrappers_of_names_are_taken_off(tmp_path, prefix, form):
    named = {prefix + name: np.asarray(value) for name, value in STATE.items()}
    if form == SAFE:
        save_file(named, tmp_path / SAFE)
    else:
        torch = pytest.importorskip("torch")
        torch.save({k: torch.from_numpy(v.copy()) for k, v in named.items()}, tmp_path / TORCH)
    assert same(read_weights(tmp_path, (SAFE, TORCH)))


def test_wrappers_of_inner_modules_are_taken_off():
    """FSDP and activation checkpointing wrap single layers."""
    given = [
        "visual._fsdp_wrapped_module.transformer.resblocks.0._checkpoint_wrapped_module.ln_1.bias",
        "_orig_mod.visual.proj",
        "model.logit_scale",  # not all start with it, so it is the module's own
        "text.module.bias",  # "module" inside of a name is somebody's own
    ]
    assert list(unwrapped_names(given, "x").values()) == [
        "visual.transformer.resblocks.0.ln_1.bias",
        "visual.proj",
        "model.logit_scale",
        "text.module.bias",
    ]


def test_one_tensor_under_two_names_is_refused():
    with pytest.raises(ValueError, match=r"both 'logit_scale' and 'module.logit_scale'"):
        unwrapped_names(["logit_scale", "module.logit_scale"], "weights.bin")


@pytest.mark.torch
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module", "model_ema"])
def test_the_state_dict_of_a_training_checkpoint_is_found(tmp_path, key):
    """ "module" is DeepSpeed's, in mp_rank_00_model_states.pt."""
    torch = pytest.importorskip("torch")
    state = {f"module.{name}": torch.tensor(value) for name, value in STATE.items()}
    torch.save({key: state, "epoch": 3, "optimizer": {"state": {}}}, tmp_path / TORCH)
    assert same(read_weights(tmp_path, (TORCH,)))


@pytest.mark.torch
def test_a_file_with_two_models_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.tensor(value) for name, value in STATE.items()}
    torch.save({"state_dict": state, "state_dict_ema": state}, tmp_path / TORCH)
    with pytest.raises(ValueError, match="two models, 'state_dict' and its average"):
        read_weights(tmp_path, (TORCH,))
    torch.save({"epoch": 3}, tmp_path / TORCH)
    with pytest.raises(ValueError, match="holds no tensors"):
        read_weights(tmp_path, (TORCH,))


def test_half_precision_comes_as_float32(tmp_path):
    import ml_dtypes

    save_file({"a": np.array([1.5], ml_dtypes.bfloat16), "n": np.array([7])}, tmp_path / SAFE)
    found = read_safetensors(tmp_path / SAFE)
    assert found["a"].dtype == np.float32
    assert found["n"].dtype == np.int64
    assert (found["a"], found["n"]) == (1.5, 7)


@pytest.mark.parametrize("value", [np.int64(2**40), np.uint64(2**63), np.float64(1.5), True])
def test_numbers_of_64_bits_keep_their_value(tmp_path, value):
    save_file({"a": np.array([value]), "scalar": np.array(value)}, tmp_path / SAFE)
    found = read_safetensors(tmp_path / SAFE)
    assert found["a"] == found["scalar"] == value
    assert found["scalar"].shape == ()


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "C64"])
def test_types_that_are_not_read_are_named(tmp_path, kind):
    offsets = {"dtype": kind, "shape": [2], "data_offsets": [0, 16 if kind == "C64" else 2]}
    header = json.dumps({"ok.weight": offsets}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(offsets["data_offsets"][1])
    (tmp_path / SAFE).write_bytes(content)
    with pytest.raises(ValueError, match=f"'ok.weight' is of type {kind}, which is not read"):
        read_weights(tmp_path, (SAFE,))


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["float8_e4m3fn", "complex64"])
def test_types_of_torch_that_are_not_read_are_named(tmp_path, kind):
    torch = pytest.importorskip("torch")
    torch.save({"a.weight": torch.zeros(2).to(getattr(torch, kind))}, tmp_path / TORCH)
    with pytest.raises(ValueError, match=f"'a.weight' is of type {kind}, which is not read"):
        read_weights(tmp_path, (TORCH,))


@pytest.mark.torch
def test_a_dictionary_that_lies_in_itself_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    content = {"a": torch.zeros(2)}
    content["again"] = content
    torch.save(content, tmp_path / TORCH)
    with pytest.raises(ValueError, match=r"more than 32 deep: \['again'\]\['again'\]"):
        read_weights(tmp_path, (TORCH,))
    shared = {}
    for _ in range(30):  # a walk over every path would have 2**30 steps
        shared = {"left": shared, "right": shared}
    torch.save({"a": torch.ones(2), "shared": shared}, tmp_path / TORCH)
    assert read_weights(tmp_path, (TORCH,))["a"][0] == 1


# --- Several files


def split(folder, parts, weight_map=None):
    for file, names in parts.items():
        save_file({name: np.asarray(STATE[name]) for name in names}, folder / file)
    whole = {name: file for file, names in parts.items() for name in names}
    content = {"metadata": {}, "weight_map": whole if weight_map is None else weight_map}
    (folder / f"{SAFE}{INDEX}").write_text(json.dumps(content))


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
NAMES = list(STATE)


def test_the_parts_that_an_index_names_are_read(tmp_path):
    split(tmp_path, {FIRST: NAMES[:1], SECOND: NAMES[1:]})
    assert same(read_weights(tmp_path, (SAFE, TORCH)))


@pytest.mark.torch
def test_parts_of_torch_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(value) for name, value in STATE.items()}
    files = {
        "pytorch_model-00001-of-00002.bin": NAMES[:2],
        "pytorch_model-00002-of-00002.bin": NAMES[2:],
    }
    for file, names in files.items():
        torch.save({f"_orig_mod.{name}": tensors[name] for name in names}, tmp_path / file)
    weight_map = {f"_orig_mod.{name}": file for file, names in files.items() for name in names}
    (tmp_path / f"{TORCH}{INDEX}").write_text(json.dumps({"weight_map": weight_map}))
    assert same(read_weights(tmp_path, (SAFE, TORCH)))


def test_a_link_of_the_hubs_cache_is_a_part(tmp_path):
    """The cache of the hub keeps files elsewhere, and links them into the folder of a revision."""
    (tmp_path / "blobs").mkdir()
    folder = tmp_path / "snapshot"
    folder.mkdir()
    split(folder, {FIRST: NAMES[:1], SECOND: NAMES[1:]})
    (folder / FIRST).rename(tmp_path / "blobs" / "abc")
    (folder / FIRST).symlink_to(tmp_path / "blobs" / "abc")
    assert same(read_weights(folder, (SAFE,)))


def test_a_missing_part_is_named(tmp_path):
    split(tmp_path, {FIRST: NAMES[:1], SECOND: NAMES[1:]})
    (tmp_path / SECOND).unlink()
    with pytest.raises(ValueError, match=f"names 2 files, and 1 of them is missing: {SECOND}"):
        read_weights(tmp_path, (SAFE,))


ELSEWHERE = ("../model.safetensors", "/etc/model.safetensors", "a\\b.safetensors", "..", "")
ODD = ("sub/a.safetensors", "*.safetensors", ".hidden.safetensors", "a\n.safetensors", 3, None)


@pytest.mark.parametrize("file", [*ELSEWHERE, *ODD])
def test_a_part_lies_in_the_folder(tmp_path, file):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({NAMES[0]: np.asarray(STATE[NAMES[0]])}, tmp_path / SAFE)
    split(folder, {}, weight_map={NAMES[0]: file})
    with pytest.raises(ValueError, match="expected the name of a file beside it"):
        read_weights(folder, (SAFE,))


@pytest.mark.parametrize(
    ("weight_map", "named"),
    [
        ({}, "has no weight_map"),
        ([1], "has no weight_map"),
        ({NAMES[0]: "model.bin"}, "expected a .safetensors"),
        ({NAMES[0]: FIRST, "text_projection.weight": FIRST}, "has 'text_projection.weight'"),
    ],
)
def test_an_index_that_is_wrong_is_refused(tmp_path, weight_map, named):
    split(tmp_path, {FIRST: NAMES[:1]}, weight_map=weight_map)
    with pytest.raises(ValueError, match=named):
        read_weights(tmp_path, (SAFE,))


def test_a_tensor_in_two_parts_is_refused(tmp_path):
    split(tmp_path, {FIRST: NAMES[:2], SECOND: NAMES[1:]})
    with pytest.raises(ValueError, match=f"{NAMES[1]}' is in both {FIRST} and {SECOND}"):
        read_weights(tmp_path, (SAFE,))


def test_all_parts_together_have_a_limit(tmp_path, monkeypatch):
    split(tmp_path, {FIRST: NAMES[:1], SECOND: NAMES[1:]})
    monkeypatch.setattr(weight_files, "MAX_BYTES", (tmp_path / SECOND).stat().st_size + 1)
    with pytest.raises(ValueError, match="in all; expected at most"):
        read_weights(tmp_path, (SAFE,))
    monkeypatch.setattr(weight_files, "MAX_PARTS", 1)
    with pytest.raises(ValueError, match="names 2 files; expected at most 1"):
        read_weights(tmp_path, (SAFE,))


def test_a_part_alone_names_its_folder(tmp_path):
    split(tmp_path, {FIRST: NAMES})
    for name in (FIRST, f"{SAFE}{INDEX}"):
        with pytest.raises(ValueError, match=re.escape(repr(str(tmp_path)))):
            read_model(tmp_path / name)


# --- Files that are something else


def zipped(names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return file.getvalue()


def tarred():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("tensors"), io.BytesIO())
    return file.getvalue()


HEADER = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 605247071\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body></body></html>"
OTHERS = {
    "pointer": (POINTER, "is a pointer of Git LFS, not the weights: .*git lfs pull"),
    "page": (PAGE, "is a page of HTML .'Sign in'."),
    "xml": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is XML"),
    "answer": (b'{"error": "Invalid username or password."}', "is a text, not weights: .*error"),
    "empty": (b"", "is empty"),
    "zeros": (bytes(5000), "holds only zeros"),
    "gguf": (b"GGUF" + bytes(100), "is a GGUF file"),
    "onnx": (b"\x08\x08\x12\x07pytorch" + bytes(40), "is an ONNX model"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file"),
    "msgpack": (b"\x82\xa4text\x81\xa4bias\xc7" + bytes(40), "is a file of msgpack, as Flax"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(40), "is one array of NumPy"),
    "npz": (zipped(["a.npy"]), "is an archive of NumPy"),
    "keras": (zipped(["config.json", "model.weights.h5"]), "is a model of Keras"),
    "zip": (zipped(["model/weights.txt"]), r"zip archive of other files \(model/weights.txt\)"),
    "script": (zipped(["ViT/data.pkl", "ViT/constants.pkl", "ViT/code/a.py"]), "is a TorchScript"),
    "cut_zip": (zipped(["archive/data.pkl"])[:-30], "archive of torch that ends early"),
    "gzip": (gzip.compress(b"weights" * 100), "is compressed with gzip"),
    "tar": (tarred(), "is a tar archive"),
    "pickle2": (pickle.dumps({"a": 1}, protocol=2), "is a pickle that torch.save did not write"),
    "pickle5": (pickle.dumps({"a": 1}, protocol=5), "is a pickle that torch.save did not write"),
}


@pytest.mark.parametrize("form", [SAFE, TORCH])
@pytest.mark.parametrize("kind", OTHERS)
def test_files_that_are_not_weights_are_named(tmp_path, kind, form):
    """With and without torch: none of these is ever given to it."""
    content, named = OTHERS[kind]
    (tmp_path / form).write_bytes(content)
    with pytest.raises(ValueError, match=f"{form} {named}|{form} .*{named}") as caught:
        read_weights(tmp_path, (form,))
    assert "weights_only" not in str(caught.value)


def test_safetensors_that_end_early_are_named(tmp_path):
    whole = struct.pack("<Q", len(HEADER)) + HEADER + bytes(16)
    path = tmp_path / SAFE
    path.write_bytes(whole)
    assert np.array_equal(read_safetensors(path)["a"], np.zeros(4))
    for size in (len(whole) - 1, 8 + len(HEADER), 30):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"ends early: .*download it again"):
            read_safetensors(path)


@pytest.mark.torch
def test_a_name_of_the_other_format_is_named(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(2)}, tmp_path / SAFE)
    with pytest.raises(ValueError, match=r"is a torch file .*rename it to \*.bin"):
        read_weights(tmp_path, (SAFE,))
    save_file({"a": np.ones(2)}, tmp_path / TORCH)
    with pytest.raises(ValueError, match=r"is a safetensors file: rename it"):
        read_weights(tmp_path, (TORCH,))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("ViT-B-32.pt", "give openai/clip-vit-base-patch32 of Hugging Face instead"),
        ("ViT-L-14-336px.pt", "give openai/clip-vit-large-patch14-336 of Hugging Face instead"),
        ("RN50x4.pt", "of a ResNet, which is not supported"),
        ("mine.pt", r"torch.save\(model.state_dict\(\), FILE\)"),
    ],
)
def test_a_torchscript_archive_names_what_to_give_instead(tmp_path, name, advice):
    (tmp_path / name).write_bytes(zipped(["a/data.pkl", "a/constants.pkl", "a/code/b.py"]))
    with pytest.raises(ValueError, match=advice):
        read_model(tmp_path / name)


class Runs:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.torch
def test_objects_in_a_torch_file_are_named_and_not_created(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"state_dict": {}, "args": Runs(str(tmp_path / "ran"))}, tmp_path / TORCH)
    with pytest.raises(ValueError, match=r"it holds (io|_io|builtins).open, an object") as caught:
        read_weights(tmp_path, (TORCH,))
    for advice in ("weights_only", "add_safe_globals", "likely succeed", "trusted"):
        assert advice not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.torch
def test_a_damaged_torch_file_is_named(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.arange(1000)}, tmp_path / TORCH, _use_new_zipfile_serialization=False)
    whole = (tmp_path / TORCH).read_bytes()
    assert read_weights(tmp_path, (TORCH,))["a"][5] == 5
    (tmp_path / TORCH).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read safely: it is damaged") as caught:
        read_weights(tmp_path, (TORCH,))
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["flax_model.msgpack"], "flax_model.msgpack is a file of Flax"),
        (["tf_model.h5"], "tf_model.h5 is a file of TensorFlow"),
        ([], "looked for model.safetensors, pytorch_model.bin.$"),
    ],
)
def test_weights_of_another_format_alone_are_named(tmp_path, files, named):
    for file in files:
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(ValueError, match=named):
        read_weights(tmp_path, (SAFE, TORCH))


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["zero_to_fp32.py", "latest"], "a checkpoint of DeepSpeed; zero_to_fp32.py"),
        ([".metadata", "__0_0.distcp"], "dcp_to_torch"),
    ],
)
def test_checkpoints_in_pieces_name_what_joins_them(tmp_path, files, named):
    for file in files:
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(ValueError, match=named):
        read_model(tmp_path)
