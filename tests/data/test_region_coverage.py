"""GRAIN on data with few boxes or none: found out before training, recorded, and used so."""

import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from places import HELPERS
from rich.console import Console
from stored_results import stored_results
from tiny_model import tiny_model
from toy_encoder import ToySource, columns, record, toy_encoder, toy_model

import grain_jax
import grain_jax.predict
import grain_jax.train
from grain_jax import evaluate
from grain_jax.config import LossConfig, SyntheticBirdsConfig, TrainConfig
from grain_jax.data.records import Caption, Record, Region
from grain_jax.data.region_coverage import (
    SAMPLE_IMAGES,
    check_regions,
    needs_regions,
    region_coverage,
)
from grain_jax.data.synthetic_birds import SyntheticBirdSource
from grain_jax.data.tfds_records import (
    RecordSource,
    SplitShards,
    encode_record,
    shard_path,
    write_metadata,
    write_shard,
)
from grain_jax.evaluation import report, suite
from grain_jax.evaluation.annotations import read_annotations
from grain_jax.formats import huggingface as huggingface_folder
from grain_jax.formats.metadata import portable_metadata
from grain_jax.formats.model_card import TrainingRun, model_card
from grain_jax.formats.parity import Difference, random_inputs
from grain_jax.inference.predictor import Model
from grain_jax.models.learned import (
    EVERYTHING,
    NOTHING,
    Learned,
    learned_before,
    learned_in,
    learns,
)
from grain_jax.predict import main as predict
from grain_jax.trainer import run as training_run
from grain_jax.training import checkpoint
from grain_jax.training.metrics import MetricsLog, Summary
from grain_jax.training.progress import Screen

REGION = Region((0.0, 0.0, 0.5, 0.5), "a red crest")
TINY = HELPERS / "tiny_world.py"


@dataclass
class Rare:
    """A long split in which the records `where` alone have a region; counts what is read."""

    length: int
    where: tuple[int, ...] = ()
    read: int = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        self.read += 1
        return Record(id=str(index), image=b"", regions=(REGION,) if index in self.where else ())


def test_a_single_box_in_a_long_split_is_found():
    length = 5 * SAMPLE_IMAGES
    spaced = set(np.linspace(0, length - 1, SAMPLE_IMAGES).round().astype(int).tolist())
    between = next(index for index in range(length - 1, 0, -1) if index not in spaced)
    coverage = region_coverage(Rare(length, (between,)))
    assert (coverage.any_regions, coverage.fraction) == (True, 0)
    assert coverage.sentence() == "fewer than 1 in 1,000 images"
    nothing = region_coverage(Rare(length))
    assert not nothing.any_regions
    assert nothing.sentence() == "no image has one"


def test_only_a_sample_is_read_where_it_has_boxes():
    source = Rare(100 * SAMPLE_IMAGES, tuple(range(0, 100 * SAMPLE_IMAGES, 3)))
    coverage = region_coverage(source)
    assert source.read == SAMPLE_IMAGES
    assert coverage.fraction == pytest.approx(1 / 3, abs=0.05)
    assert coverage.sentence().endswith(" % of images (of 1,000 sampled)")
    assert region_coverage(Rare(8, (1,))).sentence() == "12 % of images"


def test_synthetic_birds_know_their_number_of_regions():
    source = SyntheticBirdSource(SyntheticBirdsConfig(num_train_images=40), "train", 32)
    assert source.num_with_regions == sum(bool(source[i].regions) for i in range(40)) == 40


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def prepared(folder: Path, *, boxes: int, count: int = 16) -> Path:
    """A prepared split "train" of which the first `boxes` images have a region."""
    folder.mkdir(parents=True)
    records = [
        Record(f"{i}", png(i), (Caption(f"bird {i}"),), (REGION,) if i < boxes else ())
        for i in range(count)
    ]
    path = shard_path(folder, "train", 0, 1)
    size = write_shard(path, map(encode_record, records)).num_bytes
    write_metadata(folder, {"train": SplitShards((count,), size)})
    return folder


def test_the_count_of_prepare_is_used_only_where_it_is_of_these_records(tmp_path):
    folder = prepared(tmp_path / "set", boxes=3, count=8)
    report_file = folder / "report-train.json"

    def known(split: str = "train", **counts: int) -> int | None:
        report_file.write_text(json.dumps({"figures": counts}))
        return RecordSource(folder, split).num_with_regions

    assert RecordSource(folder, "train").num_with_regions is None  # no report
    assert known(images=8, regions=5, images_with_regions=3) == 3
    assert known(images=8, regions=0) == 0  # also of a report that is older than the count
    assert known(images=8, regions=5) is None
    assert known(images=9, regions=5, images_with_regions=3) is None  # of other records
    assert known("train[:50%]", images=8, regions=5, images_with_regions=3) is None
    assert region_coverage(RecordSource(folder, "train[4:]")).any_regions is False


def config(kind: str = "grain", **loss: object) -> TrainConfig:
    made = TrainConfig(batch_size=32, loss=LossConfig(**loss))
    made.model.type, made.data.dataset, made.data.data_dir = kind, "tfds", "birds"
    return made


def test_no_regions_are_refused_unless_allowed():
    none = region_coverage(Rare(5))
    with pytest.raises(ValueError, match=r"None of the 5 images of split 'train' of .*type=clip"):
        check_regions(config(), none)
    allowed = config()
    allowed.data.allow_no_regions = True
    (note,) = check_regions(allowed, none)
    assert "alpha is 1" in note
    allowed.loss.variant = "official"
    with pytest.raises(ValueError, match="every loss NaN"):
        check_regions(allowed, none)
    described = config("clip", image_description_weight=0.5)
    with pytest.raises(ValueError, match="image_description_weight would do nothing"):
        check_regions(described, none)
    assert needs_regions(described)
    assert not needs_regions(config("clip"))


def test_few_regions_are_noted():
    few = region_coverage(Rare(1_000, tuple(range(20))))
    (note,) = check_regions(config(), few)
    assert "of a batch of 32, about 0.6 train boxes" in note
    assert check_regions(config(), region_coverage(Rare(10, (1, 2)))) == []


def test_what_is_learned_depends_on_data_and_weights():
    assert learns(config(), any_regions=True) == EVERYTHING
    assert learns(config(), any_regions=False) == NOTHING
    assert learns(config("clip"), any_regions=True) == NOTHING
    assert learns(config(box_weight=0.0), any_regions=True) == Learned(regions=True, boxes=False)
    assert learns(config(region_weight=0.0), any_regions=True) == Learned(regions=False, boxes=True)
    window = {"loss": 1.0, "box_l1": 0.1, "region": 1.0}
    assert learned_in(window, config()) == EVERYTHING
    assert learned_in({"loss": 1.0}, config()) == NOTHING
    assert learned_in(window, config(box_weight=0.0)) == Learned(regions=True, boxes=False)
    assert learned_before({}) == EVERYTHING  # a checkpoint older than the keys
    assert learned_before(NOTHING.metadata()) == NOTHING


def train(workdir: Path, data: Path, *arguments: str) -> int:
    return grain_jax.train.main(
        [
            f"--config={TINY}",
            f"--workdir={workdir}",
            "--mesh.cpu_devices=1",
            *("--data.dataset=tfds", f"--data.data_dir={data}"),
            *(
                "--data.synthetic_birds.num_train_images=16000",
                "--data.synthetic_birds.num_eval_images=1500",
            ),
            *("--data.tokenizer=clip", "--model.text.vocab_size=49408"),
            *("--data.eval_split=", "--batch_size=8", "--steps=2"),
            *("--checkpoint.save_interval_steps=1", "--checkpoint.max_to_keep=9"),
            *("--logging.log_interval_steps=1", "--loss.image_description_weight=0"),
            *arguments,
        ]
    )


def test_grain_without_boxes_is_refused_before_anything_is_compiled(tmp_path, capsys, monkeypatch):
    data = prepared(tmp_path / "data", boxes=0)
    monkeypatch.setattr(grain_jax.train, "model_of_run", None)  # which comes before compiling
    assert train(tmp_path / "run", data) == 2
    assert "allow_no_regions" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_grain_without_boxes_is_marked_in_its_checkpoint(tmp_path, capsys, monkeypatch):
    """The loop is left out: what it adds, `follow_regions`, has a test of its own."""
    data, folder, runs = prepared(tmp_path / "data", boxes=0), tmp_path / "run", []
    monkeypatch.setattr(grain_jax.train, "train", lambda run, *_: runs.append(run))

    def finish(run, screen, signals) -> None:
        run.checkpoints.save(run.state, step=1)
        run.checkpoints.wait()

    monkeypatch.setattr(grain_jax.train, "finish", finish)
    assert train(folder, data, "--data.allow_no_regions=true") == 0
    said = capsys.readouterr().out
    assert "no image has one" in said
    assert "alpha is 1 wherever the model is used" in said
    (run,) = runs
    assert run.encoder.learned == NOTHING
    stored = checkpoint.read_metadata(folder / "checkpoints", 1)
    assert (stored["regions_trained"], stored["boxes_trained"]) == (False, False)
    loaded = checkpoint.load(folder)
    assert not loaded.has_regions
    assert not loaded.has_boxes
    assert portable_metadata(loaded)["regions_trained"] is False  # of every export
    again = dataclasses.replace(loaded, learned=EVERYTHING)
    assert again.has_regions
    assert again.has_boxes


def test_a_model_without_trained_regions_scores_the_whole_image():
    notes: list[str] = []
    loaded = dataclasses.replace(toy_model().loaded, learned=NOTHING)
    model = Model(loaded, note=notes.append)
    assert any("alpha is 1" in note for note in notes)
    image, described = columns("red", "green", "blue"), {"crow": ["black"], "finch": ["red"]}
    (answer,) = model.classify(image, descriptions=described)
    (whole,) = toy_model(regions=False).classify(image, descriptions=described)
    assert [one.score for one in answer.ranked] == [one.score for one in whole.ranked]
    assert answer.ranked[0].grounded[0].query is None
    with pytest.raises(ValueError, match="GRAIN model without trained region embeddings"):
        model.classify(image, descriptions=described, alpha=0.5)
    with pytest.raises(ValueError, match="no regions to find a phrase in"):
        model.ground(image, ["a red crest"])
    assert model.embed_images(image).boxes_xyxy is None


def test_predict_draws_no_box_and_says_so(tmp_path, capsys, monkeypatch):
    def load(path, *, step, best, batch_size, note, calibration):
        loaded = dataclasses.replace(toy_model().loaded, learned=NOTHING)
        return Model(loaded, batch_size=batch_size, note=note)

    monkeypatch.setattr(grain_jax.predict, "load", load)
    file = tmp_path / "bird.png"
    Image.fromarray(columns("red", "green", "blue")).save(file)
    (tmp_path / "d.json").write_text(json.dumps({"crow": ["black"], "finch": ["red"]}))
    arguments = [f"--descriptions={tmp_path / 'd.json'}", f"--json={tmp_path / 'o.json'}"]
    assert predict([str(file), "--checkpoint=run", *arguments, f"--out={tmp_path / 'cards'}"]) == 0
    written = json.loads((tmp_path / "o.json").read_text())
    assert "no box is shown, alpha is 1" in capsys.readouterr().err
    assert written["request"]["alpha"] == 1
    assert "boxes_xyxy" not in written["images"][0]
    assert (tmp_path / "cards/bird.png").is_file()


def test_learned_parts_are_recorded_from_the_window_that_trained_them(monkeypatch):
    monkeypatch.setattr(training_run, "STEPS_WITHOUT_BOX", 20)
    recorded: list[Learned] = []
    written: list[tuple[int, dict]] = []
    run = object.__new__(training_run.Run)  # only what this part of the loop looks at
    run.config, run.learned, run.last_box_step = config(box_weight=0.0), NOTHING, 0
    run.checkpoints = object.__new__(checkpoint.Checkpoints)
    run.log = object.__new__(MetricsLog)
    monkeypatch.setattr(run.checkpoints, "set_learned", recorded.append)
    monkeypatch.setattr(run.log, "write", lambda step, values: written.append((step, values)))
    screen = Screen(Console(file=io.StringIO(), width=200))
    for step, values in (
        (10, {}),
        (20, {}),
        (30, {"box_l1": 0.1, "region": 2.0}),
        (40, {}),
    ):
        summary = Summary(step, {"loss": 1.0} | values, 1.0, 0.1, {}, 0)
        training_run.follow_regions(run, summary, screen)
    taught = Learned(regions=True, boxes=False)
    assert recorded == [NOTHING, NOTHING, taught, taught]
    assert written == [(20, {"steps_without_boxes": 20})]
    said = screen.console.file.getvalue()
    assert said == "Up to step 20, 20 steps had no box to learn from.\n"


@pytest.mark.parametrize(
    ("learned", "metrics"),
    [
        (EVERYTHING, {"box_iou", "box_recall", "box_recall_upper_bound", "phrase_accuracy"}),
        (Learned(regions=False, boxes=True), {"box_iou", "box_recall", "box_recall_upper_bound"}),
        (Learned(regions=True, boxes=False), set()),
    ],
)
def test_metrics_of_untrained_parts_are_omitted(learned, metrics):
    source = ToySource(record("0", "red", "green", "blue"), record("1", "green", "red", "green"))
    encoder = toy_encoder()
    encoder = encoder.with_params(encoder.params, learned=learned)
    features = encoder.images(source)
    truth = read_annotations(source, encoder.preprocessing, caption_source="original")
    found = suite.evaluate_grounding(features, truth, encoder, "dev")
    assert {result.metric for result in found} == metrics


def test_the_best_is_chosen_by_what_is_measured():
    birds = TrainConfig()
    assert suite.best_metric_name(birds) == "validation/description/alpha0"
    birds.loss.region_weight = 0.0
    assert suite.best_metric_name(birds) == "validation/description/alpha1"


def test_untrained_boxes_are_not_shown_but_regions_are_used():
    loaded = dataclasses.replace(toy_model().loaded, learned=Learned(regions=True, boxes=False))
    notes: list[str] = []
    model = Model(loaded, note=notes.append)
    assert notes == ["This GRAIN model has no trained boxes: no box is shown."]
    image = columns("red", "green", "blue")
    (answer,) = model.classify(image, descriptions={"a": ["red"], "b": ["blue"]})
    assert model.default_alpha == 0.5
    seen = answer.ranked[0].grounded[0]
    assert seen.query is not None
    assert seen.box_xyxy is None
    with pytest.raises(ValueError, match="without trained boxes"):
        model.ground(image, ["red"])


def test_the_report_names_what_is_missing():
    assert report.what_ran(config(), EVERYTHING).startswith("GRAIN trained on")
    assert "GRAIN (no trained boxes)" in report.what_ran(config(), Learned(True, False))
    both = "GRAIN (no trained region embeddings or boxes)"
    assert both in report.what_ran(config(), NOTHING)


@pytest.mark.torch
def test_an_exported_pipeline_scores_the_whole_image_without_trained_regions():
    pytest.importorskip("torch")
    pytest.importorskip("transformers", minversion="5")
    from grain_jax.formats.torch_grain.configuration_grain import GrainConfig
    from grain_jax.formats.torch_grain.processing_grain import GrainZeroShotPipeline

    def default_alpha(**settings: bool) -> float:
        pipeline = object.__new__(GrainZeroShotPipeline)  # only what this default looks at
        pipeline.model = SimpleNamespace(config=GrainConfig(description_length=8, **settings))
        pipeline.tokenizer = SimpleNamespace(model_max_length=8)
        pipeline.token_ids = lambda texts, length: texts
        alpha = pipeline.description_query(["a"], {"a": ["red"]}, None).alpha
        if alpha == 1:
            with pytest.raises(ValueError, match="no trained regions"):
                pipeline.description_query(["a"], {"a": ["red"]}, 0.5)
        return alpha

    assert default_alpha() == 0.5  # also of exports that are older than the setting
    assert default_alpha(**Learned(regions=True, boxes=False).metadata()) == 0.5
    assert default_alpha(**NOTHING.metadata()) == 1
    folder_config = huggingface_folder.torch_model(
        dataclasses.replace(tiny_model(), learned=NOTHING)
    ).config
    assert (folder_config.regions_trained, folder_config.boxes_trained) == (False, False)


@pytest.mark.torch
def test_an_exported_model_has_no_untrained_outputs():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers", minversion="5")
    loaded = tiny_model()
    inputs = random_inputs(loaded.config.model, count=1)
    pixels = torch.from_numpy(inputs.pixels.transpose(0, 3, 1, 2).copy())
    tokens = torch.from_numpy(inputs.tokens.astype(np.int64))
    names = {"region_embeds", "description_scores", "pred_boxes"}

    def given(learned: Learned | None) -> set[str]:
        model = huggingface_folder.torch_model(
            dataclasses.replace(loaded, learned=learned or NOTHING)
        )
        if learned is None:  # an export from before these settings
            stored = model.config.to_dict()
            del stored["regions_trained"], stored["boxes_trained"]
            model.config = type(model.config).from_dict(stored)
        assert names <= set(huggingface_folder.torch_outputs(model, inputs))  # is compared
        return names & set(model(pixel_values=pixels, description_ids=tokens))

    assert given(None) == given(EVERYTHING) == names
    assert given(Learned(regions=True, boxes=False)) == names - {"pred_boxes"}
    assert given(Learned(regions=False, boxes=True)) == {"pred_boxes"}
    assert given(NOTHING) == set()
    with pytest.raises(ValueError, match="the boxes of this model were never trained"):
        huggingface_folder.processor(loaded).boxes_in_pixels(None, [(10, 10)])


def test_the_model_card_states_untrained_regions_and_has_no_region_example(tmp_path):
    differences, whole = [Difference("random", "image_embeds", 1e-6, 1e-6)], tiny_model()

    def card(learned: Learned) -> str:
        loaded = dataclasses.replace(whole, learned=learned)
        return model_card(loaded, TrainingRun(tmp_path.name), differences, dtype="float32")

    for text in ("alpha=0.5", "pred_boxes", "rank them by `description_scores`"):
        assert text in card(EVERYTHING)
        assert text not in card(NOTHING)
    assert "It has no trained region embeddings or boxes" in card(NOTHING)
    assert "`alpha` is 1" in card(NOTHING)
    without_boxes = card(Learned(regions=True, boxes=False))
    assert "alpha=0.5" in without_boxes
    assert "pred_boxes" not in without_boxes


def test_evaluate_prints_which_metrics_are_omitted(tmp_path, capsys, monkeypatch):
    loaded = dataclasses.replace(toy_model().loaded, learned=NOTHING)
    monkeypatch.setattr(evaluate, "read_model", lambda path, **_: loaded)
    for label in ("red", "blue"):
        (tmp_path / "birds" / label).mkdir(parents=True)
        Image.fromarray(columns(label)).save(tmp_path / "birds" / label / "0.png")
    described = tmp_path / "birds/descriptions.json"
    described.write_text(json.dumps({"red": ["a red part"], "blue": ["a blue part"]}))
    output = tmp_path / "results.json"
    arguments = ["--checkpoint=run", f"--data={tmp_path / 'birds'}", f"--output={output}"]
    assert evaluate.main([*arguments, f"--descriptions={described}"]) == 0
    assert "no trained region embeddings or boxes" in capsys.readouterr().err
    results = stored_results(output)
    assert "birds/description/alpha1" in results
    assert "birds/description/alpha0" not in results
