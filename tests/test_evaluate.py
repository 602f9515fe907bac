import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from toy_encoder import ToyModel, ToyTokenizer, half, picture

from grain_jax import evaluate
from grain_jax.config import DataConfig, EvaluationConfig, TrainConfig, WorldConfig
from grain_jax.data.records import Caption, Record, Region
from grain_jax.data.storage import encode_record, shard_path, write_metadata, write_shard
from grain_jax.data.transforms import Preprocessing


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder that stands for a run of the toy model; what `load` was asked for is noted."""
    folder = tmp_path / "run"
    folder.mkdir()
    asked = []

    def load(path, *, step=None, best=False, mesh=None):
        asked.append((path, step, best))
        if path != folder:
            raise ValueError(f"{str(path)!r} holds no run.")
        return SimpleNamespace(
            model=ToyModel(),
            params={},
            config=TrainConfig(
                data=DataConfig(
                    world=WorldConfig(num_train_images=30, num_eval_images=25),
                    caption_length=8,
                    description_length=4,
                ),
                evaluation=EvaluationConfig(alphas=(1.0, 0.5, 0.0), batch_size=8),
            ),
            tokenizer=ToyTokenizer(),
            preprocessing=Preprocessing(32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
            templates=("a {} thing",),
            step=7,
        )

    monkeypatch.setattr(evaluate.checkpoint, "load", load)
    return SimpleNamespace(folder=folder, asked=asked)


def png(*colours: str) -> bytes:
    """The toy's picture, enlarged so that squashing to 32 pixels keeps what its queries look at."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:4, :4] = picture(*colours)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "colours"
    for colour, part in (("red", "green"), ("green", "blue"), ("blue", "red")):
        (root / colour).mkdir(parents=True)
        (root / colour / "1.png").write_bytes(png(colour, part, part))
    described = {"red": ["green part"], "green": ["blue part"], "blue": ["red part"]}
    (root / "descriptions.json").write_text(json.dumps(described))
    return root


@pytest.fixture
def records(tmp_path):
    root = tmp_path / "records"
    root.mkdir()
    splits = {}
    for split, colours in (("dev", ("red", "green", "blue")), ("train", ("green", "red"))):
        own = [
            Record(
                id=f"{split}{i}",
                image=png(colour, "blue", "green"),
                captions=(Caption(f"a {colour} thing"),),
                regions=(Region(half(0), "blue part"), Region(half(1), "green part")),
            )
            for i, colour in enumerate(colours)
        ]
        path = shard_path(root, split, 0, 1)
        splits[split] = write_shard(path, [encode_record(record) for record in own])
    write_metadata(root, splits)
    return root


def figures(path) -> dict[str, float]:
    return json.loads(path.read_text())["results"]


def test_labelled_images_are_classified(run, images, capsys):
    status = evaluate.main(
        [f"--checkpoint={run.folder}", f"--data={images}", "--alphas=1,0", "--step=7"]
    )
    assert status == 0
    results = figures(run.folder / "evaluation_colours.json")
    assert results["colours/name"] == 1.0
    assert results["colours/description/alpha0"] == 1.0
    assert results["colours/description/alpha1"] == 0.0  # the whole says another colour
    assert run.asked == [(run.folder, 7, False)]
    report = json.loads((run.folder / "evaluation_colours.json").read_text())
    assert report["step"] == 7
    assert report["settings"]["alphas"] == [1.0, 0.0]
    printed = capsys.readouterr().out
    assert "Zero-shot classification" in printed
    assert "evaluation_colours.json" in printed.replace("\n", "")


def test_prepared_records_are_retrieved_and_grounded(run, records):
    output = run.folder / "out.json"
    arguments = [f"--checkpoint={run.folder}", f"--data={records}", "--split=dev"]
    assert evaluate.main([*arguments, "--best", f"--output={output}"]) == 0
    results = figures(output)
    assert results["dev/retrieval/mean_R@1"] == 1.0
    assert results["dev/phrase_accuracy"] == 1.0
    assert results["dev/constant_box_recall"] == 1.0
    assert run.asked == [(run.folder, None, True)]
    assert evaluate.main([*arguments, "--tasks=grounding", f"--output={output}"]) == 0
    assert not any("retrieval" in key for key in figures(output))


def test_without_data_the_run_is_measured_as_at_its_end(run, capsys):
    assert evaluate.main([f"--checkpoint={run.folder}"]) == 0
    results = figures(run.folder / "evaluation.json")
    assert results["unseen/classes"] == 50
    assert "headline/alpha" in results
    assert "best alpha on the validation species" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=nowhere"], "no folder 'nowhere'"),
        (["--data={records}", "--split=test"], "no split 'test'"),
        (["--data={records}", "--split=dev", "--tasks=zero_shot"], "not 'zero_shot'"),
        (["--data={records}", "--classes=c.json"], "--classes goes with labelled images"),
        (["--data={images}", "--tasks=retrieval"], "--tasks goes with prepared records"),
        (["--data={images}", "--descriptions=none.json"], "no file 'none.json'"),
        (["--split=dev"], "--split goes with --data"),
        (["--checkpoint=elsewhere"], "holds no run"),
    ],
)
def test_mistakes_are_one_line(run, images, records, arguments, message, capsys):
    given = [text.format(images=images, records=records) for text in arguments]
    assert evaluate.main([f"--checkpoint={run.folder}", *given]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("Error: ")
    assert message in " ".join(printed.err.split())
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_alphas_outside_the_range_are_refused(run, capsys):
    with pytest.raises(SystemExit):
        evaluate.main([f"--checkpoint={run.folder}", "--alphas=2"])
    assert "numbers from 0 to 1" in capsys.readouterr().err
