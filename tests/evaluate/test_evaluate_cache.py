"""`python -m grain_jax.evaluate`: embeddings that are kept."""

import pytest
from stored_results import stored_results
from toy_encoder import ToyModel
from toy_evaluations import written

from grain_jax import evaluate


def test_a_second_evaluation_reads_embeddings(run, images, tmp_path, monkeypatch, capsys):
    """The model is called for texts that are new, and not at all where none is."""
    cache = tmp_path / "cache"
    arguments = [f"--checkpoint={run.folder}", f"--data={images}", f"--cache={cache}"]
    assert evaluate.main(arguments) == 0
    first = stored_results(written(run.folder))
    said = " ".join(capsys.readouterr().out.split())
    assert f"0 images and 0 texts read from {cache}, 3 and 9 encoded" in said

    def called(*arguments, **options):
        raise AssertionError("the model was called")

    monkeypatch.setattr(ToyModel, "encode_images", called)
    template = tmp_path / "templates.txt"
    template.write_text("one {}\n")
    assert evaluate.main([*arguments, f"--templates={template}"]) == 0
    assert "3 images and 6 texts read from" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(ToyModel, "encode_texts", called)
    again = tmp_path / "again.json"
    assert evaluate.main([*arguments, f"--output={again}"]) == 0
    assert stored_results(again) == first
    with pytest.raises(AssertionError, match="the model was called"):
        evaluate.main([*arguments[:2], "--cache=none", f"--output={tmp_path / 'none.json'}"])


def test_a_cache_that_cannot_be_written_is_refused(run, images, tmp_path, capsys):
    (tmp_path / "file").touch()
    given = [f"--checkpoint={run.folder}", f"--data={images}", f"--cache={tmp_path / 'file'}"]
    assert evaluate.main(given) == 2
    assert "cannot hold embeddings" in capsys.readouterr().err
    assert run.asked == []
