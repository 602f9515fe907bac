"""What of many class texts reaches the model, in how many programs and batches."""

import zlib

import jax
import numpy as np
import pytest
from toy_encoder import COLOURS, ToyModel, ToyTokenizer, bird_set, toy_encoder

from grain_jax.evaluation.zero_shot import evaluate_zero_shot
from grain_jax.inference.encoder import Encoder

BATCH, TEMPLATES, DESCRIPTIONS = 256, 80, 6
LONG = 24  # tokens of one description more than of all other texts


def many_classes(count: int):
    """Half of a class's descriptions are those of all classes, and one of all is long."""
    names = ("wren", "robin", *(f"bird{k}" for k in range(count - 2)))
    descriptions = {
        name: tuple(
            f"red part {d}" if d % 2 else f"{name} blue part {d}" for d in range(DESCRIPTIONS)
        )
        for name in names
    }
    descriptions["robin"] = ("red " * LONG + "part", *descriptions["robin"][1:])
    return bird_set(
        class_names=names,
        templates=tuple(f"template{p} a {{}}" for p in range(TEMPLATES)),
        descriptions=descriptions,
    )


# Of 50 classes, 153 descriptions as regions are one batch, that of the long one.
@pytest.mark.parametrize(
    ("count", "short_batches"), [(50, 17), pytest.param(1000, 325 + 12, marks=pytest.mark.slow)]
)
def test_texts_are_encoded_once_in_few_programs_and_full_batches(count, short_batches, monkeypatch):
    """K classes with 80 prompts and 6 descriptions each: names and descriptions in one call, the
    descriptions as regions meet them in another.
    """
    compiled: list[tuple[int, ...]] = []
    ran: list[tuple[int, ...]] = []
    tokenized: list[str] = []
    encode_texts, tokenize = ToyModel.encode_texts, ToyTokenizer.encode

    def traced(self, tokens):
        shape = tokens.shape
        compiled.append(shape)
        jax.debug.callback(lambda: ran.append(shape))
        return encode_texts(self, tokens)

    def noted(self, texts, length):
        tokenized.extend(texts)
        ids, cut = tokenize(self, texts, length)
        for row, text in enumerate(texts):  # unlike words are unlike tokens
            words = text.split()[: length - 1]
            known = ids[row, : len(words)] <= len(COLOURS)
            unlike = [zlib.crc32(word.encode()) % 2**20 + 6 for word in words]
            ids[row, : len(words)] = np.where(known, ids[row, : len(words)], unlike)
        return ids, cut

    monkeypatch.setattr(ToyModel, "encode_texts", traced)
    monkeypatch.setattr(ToyTokenizer, "encode", noted)
    small = toy_encoder(batch_size=BATCH)
    encoder = Encoder(
        small.model,
        small.params,
        tokenizer=small.tokenizer,
        preprocessing=small.preprocessing,
        batch_size=BATCH,
        caption_length=64,
        description_length=64,
    )
    methods = ("name", "description", "name_and_regions")
    evaluate_zero_shot(encoder, many_classes(count), alphas=(0.5,), methods=methods)
    jax.effects_barrier()
    own, shared = count * DESCRIPTIONS // 2, DESCRIPTIONS // 2
    prompts, described = count * TEMPLATES, own + shared
    assert len(tokenized) == prompts + 2 * described
    # Short texts are not as long as the longest; what is left over fills no batch of its own.
    assert sorted(set(compiled)) == [(BATCH, 16), (BATCH, 32)]
    assert len(compiled) == 2
    short = [shape for shape in ran if shape[1] == 16]
    assert len(short) == short_batches
    assert len(ran) == short_batches + 2
