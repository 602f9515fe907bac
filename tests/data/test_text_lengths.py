"""What a run says about the lengths of its texts before it starts."""

import copy
import random
import re

import numpy as np
import pytest
import tiny_world

import grain_jax.train
from grain_jax.config import DataConfig, ModelConfig, TrainConfig
from grain_jax.config.validation import problems
from grain_jax.data import text_lengths
from grain_jax.data.captions import choose_caption
from grain_jax.data.records import Caption, Record, Region
from grain_jax.data.text_lengths import text_length_notes
from grain_jax.data.tokenizer import ClipTokenizer

BOX = (0.1, 0.1, 0.9, 0.9)
TOKENIZER = ClipTokenizer()


def records(count: int = 300, *, words: int = 30, regions: int = 3) -> list[Record]:
    """Captions of up to `words` words, up to `regions` of up to 5 words; one word is one token."""
    rng = random.Random(0)

    def text(most: int) -> str:
        return " ".join(["dog"] * rng.randint(1, most))

    return [
        Record(
            str(index),
            b"",
            captions=(Caption(text(words)), Caption(text(words // 2), "synthetic")),
            regions=tuple(Region(BOX, text(5)) for _ in range(rng.randint(0, regions))),
        )
        for index in range(count)
    ]


def recipe(**changes: object) -> TrainConfig:
    config = TrainConfig(data=DataConfig(dataset="tfds", data_dir="x"), model=ModelConfig())
    for path, value in changes.items():
        section, name = path.split("__")
        setattr(getattr(config, section), name, value)
    return config


def notes_of(source, config: TrainConfig, *, images_per_stream: int = 64) -> list[str]:
    return text_length_notes(source, config, TOKENIZER, images_per_stream=images_per_stream)


def applied(note: str, config: TrainConfig) -> TrainConfig:
    """`config` with the settings that the note proposes, as the command line reads them."""
    for section, name, value in re.findall(r"--(\w+)\.(\w+)=([\d.]+)", note):
        owner = getattr(config, section)
        setattr(owner, name, type(getattr(owner, name))(value))
    return config


def test_proposed_lengths_save_the_stated_fraction_and_truncate_nothing():
    source = records()
    note, second = notes_of(source, recipe())
    assert "captions have at most 32 tokens" in note
    assert "descriptions have at most 7 tokens" in note
    assert "images have 1." in note
    assert "in place of other lengths, --model.text_tokens_per_image" in second
    config = applied(note, recipe())
    assert (config.data.caption_length, config.data.description_length) == (32, 8)
    capacity = config.model.description_capacity_factor
    # What the step computes: positions of an image's caption and of its places for descriptions.
    saved = 1 - (32 + capacity * 5 * 8) / (77 + 5 * 32)
    assert f"would save {100 * saved:.2g} %" in note
    captions = {caption.text for record in source for caption in record.captions}
    assert not TOKENIZER.encode([*captions], 32)[1].any()
    descriptions = {region.description for record in source for region in record.regions}
    assert not TOKENIZER.encode([*descriptions], 8)[1].any()
    (stream,) = notes_of(source, config)  # only how to leave out the rest of the padding
    assert "text_tokens_per_image" in stream


@pytest.mark.parametrize("images", [8, 256])
def test_the_streams_of_the_sample_have_room_for_their_texts(images):
    source, config = records(1_000), recipe(data__synthetic_caption_probability=0.0)
    *_, note = notes_of(source, config, images_per_stream=images)
    room = applied(note, config).model.text_tokens_per_image
    lengths = np.array(
        [
            len(TOKENIZER.encode([record.captions[0].text], 77)[0].nonzero()[0])
            + sum(len(region.description.split()) + 2 for region in record.regions)
            for record in source
        ]
    )
    rng = np.random.default_rng(0)
    fullest = max(rng.choice(lengths, images).sum() for _ in range(500))
    assert fullest <= room * images
    assert f"would save {100 * (1 - room / (77 + 5 * 32)):.2g} %" in note
    assert notes_of(source, config, images_per_stream=images) == []
    config.model.text_tokens_per_image = 10.0
    (short,) = notes_of(source, config, images_per_stream=images)
    assert f"--model.text_tokens_per_image={room:g} " in short
    cut = round(100 * (1 - 10 / lengths.mean()))
    assert f"{cut} % of their tokens will be cut" in short


@pytest.mark.parametrize(
    ("words", "regions", "changes"),
    [
        (30, 3, {}),
        (30, 3, {"model__type": "clip"}),
        (30, 3, {"model__description_capacity_factor": 0.6}),
        (30, 3, {"data__caption_length": 16, "data__description_length": 8}),
        (30, 3, {"data__caption_length": 16, "model__text_tokens_per_image": 18.0}),
        (50, 3, {"model__type": "clip", "data__caption_length": 77}),
        (12, 2, {"data__max_regions": 10}),  # 33 tokens are the least that 11 texts may have
        (70, 9, {"data__max_regions": 10, "model__text_tokens_per_image": 33.0}),
        (12, 2, {"data__max_regions": 10, "model__description_capacity_factor": 0.5}),
        (2, 1, {"data__max_regions": 10, "loss__region_weight": 0.0}),
        (70, 5, {"data__description_length": 8, "model__text_tokens_per_image": 20.0}),
        (30, 5, {"data__description_length": 3, "model__text_tokens_per_image": 20.0}),
    ],
)
@pytest.mark.parametrize("images", [1, 64])
def test_validation_accepts_every_proposal(words, regions, changes, images):
    """Each by itself, and all of them together."""
    config = recipe(**changes)
    config.steps = 1
    config.model.decoder.num_queries = 10
    assert problems(config) == []
    source = records(100, words=words, regions=regions)
    notes = [note for note in notes_of(source, config, images_per_stream=images) if "--" in note]
    assert notes
    for note in notes:
        assert problems(applied(note, copy.deepcopy(config))) == [], note
    together = copy.deepcopy(config)
    for note in notes:
        applied(note, together)
    assert problems(together) == [], notes


def test_a_room_that_holds_every_text_is_not_too_short():
    """Captions cut to 4 tokens by the tokenizer are no reason for more."""
    config = recipe(data__caption_length=4, model__type="clip", model__text_tokens_per_image=4.0)
    notes = notes_of(records(100), config)
    assert not any("text_tokens_per_image" in note for note in notes)


@pytest.mark.parametrize("batch_size", [16, 256])
def test_the_batches_of_the_sample_fit_the_capacity(batch_size):
    source = records(1_000)
    config = recipe()
    config.batch_size = batch_size
    note, _ = notes_of(source, config)
    capacity = applied(note, config).model.description_capacity_factor
    counts = np.array([len(record.regions) for record in source])
    rng = np.random.default_rng(0)
    fullest = max(rng.choice(counts, batch_size).sum() for _ in range(500))
    assert fullest <= capacity * batch_size * config.data.max_regions
    mean = counts.mean() / config.data.max_regions
    assert mean < capacity < mean * (2 if batch_size == 16 else 1.3)


@pytest.mark.parametrize(
    "changes",
    [
        {"text__pooling": "last"},
        {"model__text_tokens_per_image": 40.0},
        {"model__text_tokens_per_image": 30.0, "model__type": "clip"},
    ],
)
def test_no_note_where_nothing_would_be_saved(changes):
    pooling = changes.pop("text__pooling", "end")
    config = recipe(**changes)
    config.model.text.pooling = pooling
    assert notes_of(records(), config) == []


def test_truncated_texts_are_counted_in_a_note():
    config = recipe(data__caption_length=16, data__description_length=8)
    cut, *_ = notes_of(records(), config)
    assert re.match(r"\d\d? % of captions have more tokens than data.caption_length = 16", cut)
    assert "up to 32" in cut
    config.model.text.context_length = 24
    cut, *_ = notes_of(records(), config)
    assert "more than 24" in cut


@pytest.mark.parametrize("synthetic", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("joined", [0.0, 0.5, 1.0])
def test_captions_that_training_may_choose_are_counted(synthetic, joined):
    both = records(3, regions=1)
    alone = Record("alone", b"", captions=(Caption("cat", "synthetic"),))
    config = DataConfig(synthetic_caption_probability=synthetic, region_caption_probability=joined)
    rng = random.Random(0)
    for record in (*both, alone):
        drawn = {choose_caption(record, record.regions, config, rng) for _ in range(100)}
        assert set(text_lengths.possible_captions(record, config)) == drawn


def test_a_slow_source_is_sampled_for_a_bounded_time(monkeypatch):
    monkeypatch.setattr(text_lengths, "SECONDS", -1.0)
    for images in (1_000, 40):
        found = text_lengths.text_lengths(records(images), recipe(), TOKENIZER)
        part = images / text_lengths.PARTS
        assert min(images, text_lengths.MIN_IMAGES) <= found.images
        assert found.images <= text_lengths.MIN_IMAGES + part


def test_the_check_prints_the_note(tmp_path, monkeypatch, capsys):
    """As typed, with the data replaced by records of another source."""
    source = records(48, words=6)
    monkeypatch.setattr("grain_jax.trainer.inputs.open_training_source", lambda *a, **k: source)
    arguments = [f"--config={tiny_world.__file__}", f"--workdir={tmp_path}/run", "--check"]
    assert grain_jax.train.main(arguments) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "--data.caption_length=8" in printed
    assert "of the text tower's positions (48 images sampled)" in printed
