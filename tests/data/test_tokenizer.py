"""Tokenizers: published ids, truncation that keeps end-of-text, specs that need no file."""

import json
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import (
    huggingface_backend,
    huggingface_tokenizer,
    padded_backend,
    padded_tokenizer,
)

from grain_jax.config import DataConfig
from grain_jax.data.clip_bpe import clip_tables
from grain_jax.data.tokenizer import (
    ClipTokenizer,
    PaddedTokenizer,
    Tokenizer,
    WordTokenizer,
    build_tokenizer,
    token_keys,
    tokenizer_from_spec,
)

TEXTS = [
    "A Photo of a CAT!",
    "",
    "a very long sentence about a cat that sits on a mat",
    "x &amp; y",
]


@pytest.fixture(params=["clip", "words", "huggingface"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    match request.param:
        case "clip":
            return ClipTokenizer()
        case "words":
            return WordTokenizer(["a", "cat", "photo", "of", "mat"])
    return huggingface_tokenizer()


def test_clip_ids_are_the_published_ones() -> None:
    ids, cut = ClipTokenizer().encode(["A Photo of a CAT!"], 12)
    assert ids[0].tolist() == [49406, 320, 1125, 539, 320, 2368, 256, 49407, 0, 0, 0, 0]
    assert ids.dtype == np.int32
    assert not cut[0]


def test_clip_tables_are_the_published_ones() -> None:
    vocabulary, merges = clip_tables()
    assert sorted(vocabulary.values()) == list(range(49_408))
    assert len(merges) == 48_894
    assert merges[:3] == [("i", "n"), ("t", "h"), ("a", "n")]
    assert vocabulary["photo</w>"] == 1125
    assert vocabulary["<|endoftext|>"] == 49_407


def test_clip_resolves_entities_and_white_space() -> None:
    encode = ClipTokenizer().encode
    ids, _ = encode(["a &amp;amp; b\n\tc", "a & b c", "a \ud800 b", "a \ufffd b"], 10)
    np.testing.assert_array_equal(ids[0], ids[1])
    np.testing.assert_array_equal(ids[2], ids[3])  # a lone surrogate, which UTF-8 cannot hold


def test_words_are_numbered_as_documented() -> None:
    tokenizer = WordTokenizer(["cat", "dog2"])
    assert tokenizer.unknown_words("A cat, a DOG2 & co.") == ["a", "a", "co"]
    ids, _ = tokenizer.encode(["Cat, dog2-bird"], 8)
    assert tokenizer.vocab_size == 6
    assert ids[0].tolist() == [2, 3, 4, 1, 5, 0, 0, 0]


def test_end_of_text_moves_past_a_vocabulary_where_it_is_not_last() -> None:
    tokenizer = huggingface_tokenizer()
    ids, _ = tokenizer.encode(["a cat [EOS] of"], 8)
    assert tokenizer.vocab_size == 8
    assert ids[0].tolist() == [1, 3, 4, 2, 6, 7, 0, 0]


def test_huggingface_by_folder(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=huggingface_backend(), bos_token="[BOS]", eos_token="[EOS]"
    )
    fast.save_pretrained(tmp_path)
    tokenizer = build_tokenizer(DataConfig(tokenizer=str(tmp_path)))
    assert tokenizer.encode(["a cat"], 5)[0].tolist() == [[1, 3, 4, 7, 0]]


def truncated_by_the_library(
    tokenizer: PaddedTokenizer, texts: list[str], length: int
) -> list[tuple[list[int], bool]]:
    """Ids and whether they were cut, by a copy that cuts and pads by itself."""
    tokenizers = pytest.importorskip("tokenizers")
    spec = tokenizer.spec()
    backend = tokenizers.Tokenizer.from_str(spec["tokenizer"])
    backend.enable_truncation(length)
    backend.enable_padding(
        direction="left" if spec["pad_left"] else "right",
        pad_id=spec["pad_id"],
        pad_token=backend.id_to_token(spec["pad_id"]),
        length=length,
    )
    return [(item.ids, bool(item.overflowing)) for item in backend.encode_batch(texts)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("frame", ["$A", "$A </s>", "<s> $A", "<s> <s> $A </s>"])
def test_a_padded_tokenizer_cuts_and_pads_as_its_library_does(side: str, frame: str) -> None:
    tokenizer = padded_tokenizer(side, frame)
    texts = ["A Photo, of a CAT!", "", "a", "cat of mat </s> a", "a cat " * 20]
    for length in (4, 5, 9, 10, 30):
        ids, cut = tokenizer.encode(texts, length)
        expected = truncated_by_the_library(tokenizer, [text.strip() for text in texts], length)
        assert list(zip(ids.tolist(), cut.tolist(), strict=True)) == expected


def test_threads_share_a_padded_tokenizer() -> None:
    """The Rust object must not be changed while another thread encodes with it."""
    tokenizer = padded_tokenizer()
    batches: list[tuple[list[str], int]] = [(["a photo of a cat " * n] * 8, n) for n in range(3, 9)]
    expected: list[Any] = [tokenizer.encode(*batch)[0].tolist() for batch in batches]
    before = tokenizer.spec()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: tokenizer.encode(*batch)[0].tolist(), batches * 40))
    assert found == expected * 40
    assert tokenizer.spec() == before


def test_a_padded_tokenizer_is_never_changed_by_use() -> None:
    """As above, independent of thread timing: the modifying methods are not called."""
    backend, called = padded_backend(), []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            called.append(name)
            return getattr(backend, name)

    tokenizer = PaddedTokenizer(Watched(), pad_id=1, pad_left=False)
    called.clear()
    assert tokenizer.encode(["a cat"], 5)[0].tolist() == [[3, 0, 4, 1, 1]]
    assert tokenizer.spec()["pad_id"] == 1
    assert called
    assert not [name for name in called if name.startswith(("enable_", "no_"))]


def test_special_tokens_of_another_form_are_refused() -> None:
    with pytest.raises(ValueError, match="just before and after a text"):
        padded_tokenizer(frame="$A </s> $A")
    with pytest.raises(ValueError, match=r"length of 2 leaves no room .* 2 special tokens"):
        padded_tokenizer(frame="<s> $A </s>").encode(["a"], 2)


def tokenizer_folder(folder: Path, settings: dict[str, Any], side: str = "right") -> dict[str, Any]:
    """Writes a padded tokenizer as Hugging Face does; returns what its files say of it."""
    spec = padded_tokenizer(side).spec()
    (folder / "tokenizer.json").write_text(spec["tokenizer"])
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return spec


@pytest.mark.parametrize(
    "tokenizer_class", ["SiglipTokenizer", "GemmaTokenizer", "NoSuchTokenizer"]
)
def test_tokenizer_json_is_used_with_any_class(tmp_path: Path, tokenizer_class: str) -> None:
    """SiglipTokenizer, which published SigLIPs name, has no fast form in transformers 5."""
    pytest.importorskip("transformers")
    settings = {"tokenizer_class": tokenizer_class, "do_lower_case": True, "padding_side": "left"}
    spec = tokenizer_folder(tmp_path, settings, "left")
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "</s>"}))
    found = build_tokenizer(DataConfig(tokenizer=str(tmp_path)), pooling="last")
    expected = tokenizer_from_spec(spec)
    assert found.spec() | {"tokenizer": ""} == spec | {"tokenizer": ""}
    for before, after in zip(found.encode(TEXTS, 12), expected.encode(TEXTS, 12), strict=True):
        np.testing.assert_array_equal(before, after)
    assert found.encode(["A, PHOTO!"], 6)[0].tolist() == [[1, 1, 3, 0, 5, 1]]


def test_a_class_that_lower_cases_is_used(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "Siglip2Tokenizer"):
        pytest.skip("transformers 4 does not know it")
    words = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4, "a": 5, "b": 6}
    whole = transformers.Siglip2Tokenizer(vocab=words, merges=[], padding_side="right")
    whole.save_pretrained(tmp_path)
    given = json.loads((tmp_path / "tokenizer.json").read_text())
    given["normalizer"] = given["normalizer"]["normalizers"][1]  # as the older files have it
    (tmp_path / "tokenizer.json").write_text(json.dumps(given))
    ids = PaddedTokenizer.load(str(tmp_path)).encode(["AB"], 4)[0]
    assert ids.tolist() == [[5, 6, 0, 0]]


@pytest.mark.parametrize("with_file", [True, False])
def test_code_of_a_tokenizer_folder_is_not_run(
    tmp_path: Path, with_file: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what the library may ask
    folder, written = tmp_path / "folder", tmp_path / "written"
    folder.mkdir()
    auto_map = {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoConfig": "evil.Evil"}
    settings = {"tokenizer_class": "Evil", "auto_map": auto_map, "pad_token": "</s>"}
    tokenizer_folder(folder, settings)
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto_map}))
    (folder / "evil.py").write_text(
        f"open({str(written)!r}, 'w').close()\n"
        "from transformers import PreTrainedTokenizerFast as Evil\n"
    )
    if with_file:
        assert PaddedTokenizer.load(str(folder)).pad_id == 1
    else:
        (folder / "tokenizer.json").unlink()
        with pytest.raises(ValueError, match=r"No tokenizer .*folder"):
            PaddedTokenizer.load(str(folder))
    assert not written.exists()


def test_a_tokenizer_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer_folder(tmp_path, {"tokenizer_class": "SiglipTokenizer"})
    with pytest.raises(ValueError, match="has no padding token"):
        PaddedTokenizer.load(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=f"No tokenizer '{tmp_path}'"):
        PaddedTokenizer.load(str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()

    def from_pretrained(name: str, *, trust_remote_code: bool) -> None:
        assert not trust_remote_code
        raise ImportError("\nSiglipTokenizer requires the SentencePiece library.\n")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    with pytest.raises(ValueError, match=r"with a tokenizer\.json.* requires the SentencePiece"):
        PaddedTokenizer.load(str(tmp_path))


def test_unknown_folder_is_named(tmp_path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="nothing_here"):
        build_tokenizer(DataConfig(tokenizer=str(tmp_path / "nothing_here")))


@pytest.mark.parametrize("length", [3, 4, 5, 40])
def test_truncation_keeps_end_of_text_and_is_reported(tokenizer: Tokenizer, length: int) -> None:
    ids, cut = tokenizer.encode(TEXTS, length)
    whole, _ = tokenizer.encode(TEXTS, 40)
    end = tokenizer.vocab_size - 1
    assert ids.shape == (len(TEXTS), length)
    for row, full, was_cut in zip(ids, whole, cut, strict=True):
        assert was_cut == (full.argmax() + 1 > length)
        last = row.argmax()
        assert row[last] == end
        assert (row == end).sum() == 1
        assert not row[last + 1 :].any()
        np.testing.assert_array_equal(row[:last], full[:last])


ANY_TEXT = ClipTokenizer(), WordTokenizer(["a", "cat"])


@given(text=st.text(max_size=40), length=st.integers(3, 12))
@settings(max_examples=60, deadline=None)
def test_any_text_ends_in_one_end_of_text(text: str, length: int) -> None:
    for tokenizer in ANY_TEXT:
        ids, _ = tokenizer.encode([text], length)
        end = tokenizer.vocab_size - 1
        assert (ids == end).sum() == 1
        assert ids.min() >= 0
        assert not ids[0, ids[0].argmax() + 1 :].any()


def test_spec_survives_json_and_pickle(tokenizer: Tokenizer) -> None:
    again = tokenizer_from_spec(json.loads(json.dumps(tokenizer.spec())))
    for other in (again, pickle.loads(pickle.dumps(tokenizer))):
        assert other.vocab_size == tokenizer.vocab_size
        np.testing.assert_array_equal(other.encode(TEXTS, 9)[0], tokenizer.encode(TEXTS, 9)[0])


def test_errors_name_the_setting(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="description_length"):
        tokenizer.encode(["a"], 2)
    with pytest.raises(ValueError, match="known kinds"):
        tokenizer_from_spec({"kind": "sentencepiece"})
    with pytest.raises(ValueError, match=r"data\.tokenizer is empty"):
        build_tokenizer(DataConfig(tokenizer=""))
    with pytest.raises(ValueError, match="differ"):
        WordTokenizer(["a", "a"])
    with pytest.raises(ValueError, match="two words"):
        WordTokenizer(["two words"])


def test_keys_are_equal_where_the_tokens_are(tokenizer: Tokenizer) -> None:
    texts = ["a photo of a cat", "a  photo of\ta cat", "a photo of a mat mat", "a cat", ""]
    whole, _ = tokenizer.encode(texts, 12)
    keys = token_keys(whole)
    assert keys.dtype == np.uint32
    assert keys[0] == keys[1]
    assert len(set(keys.tolist())) == 4
    longer, _ = tokenizer.encode(texts, 20)
    np.testing.assert_array_equal(token_keys(longer), keys)
    cut, truncated = tokenizer.encode(texts, 5)
    assert truncated[0]
    assert truncated[2]
    assert token_keys(cut)[0] == token_keys(cut)[2]  # "a photo of" is all that is left of both


def test_keys_are_those_of_any_process() -> None:
    ids = np.array([[2, 5, 6, 9, 0], [2, 9, 0, 0, 0]], np.int32)
    assert token_keys(ids).tolist() == [1222598443, 1510971294]
    assert token_keys(ids[:0]).tolist() == []


def test_ids_of_long_words_are_not_kept():
    """Texts of the web hold data of any length, which would fill the memory of every process."""
    tokenizer = ClipTokenizer()
    for number in range(20):
        tokenizer.encode([f"{'abcdefghij' * 2_000}{chr(97 + number % 26) * number}"], 8)
    tracemalloc.start()
    for number in range(20, 60):
        tokenizer.encode([f"{'abcdefghij' * 2_000}{chr(97 + number % 26) * number}"], 8)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 120_000  # of 800 kB of letters
