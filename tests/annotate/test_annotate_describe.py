"""`annotate describe` against an endpoint in another process: what is asked, and the rows."""

import json
import os

import pytest
from chat_server import EXPECTED_TOKENS, caption_of, features_of
from described import check, describe, names, sent
from PIL import Image

pytest.importorskip("pyarrow")

from grain_jax.annotation.images import as_jpeg, load_image
from grain_jax.data.annotation_files import StageFiles, read_annotations
from grain_jax.data.transforms import decode_image

pytestmark = pytest.mark.multiprocess


def test_every_image_is_described_once(images, server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GRAIN_JAX_API_KEY", "sk-very-secret")
    before = len(server.log())
    assert describe(images, tmp_path, server, "--price_prompt=10", "--price_completion=50") == 0
    check(images, tmp_path)
    asked = server.log()[before:]
    assert len(asked) == 24
    assert {each["key"] for each in asked} == {"Bearer sk-very-secret"}
    assert {each["format"] for each in asked} == {"json_schema"}
    assert {each["messages"] for each in asked} == {2, 4}
    printed = capsys.readouterr().out
    assert f"{24 * EXPECTED_TOKENS[0]:,}" in printed
    assert "0.05" in printed  # 2,400 tokens of 10 and 480 of 50 a million
    assert not any(b"very-secret" in path.read_bytes() for path in tmp_path.rglob("*.*"))
    row = read_annotations(tmp_path).rows(0)["describe"]
    assert row.provenance.model == "tiny"
    assert json.loads(row.provenance.sampling)["max_tokens"] == 512
    assert row.outputs["prompt_tokens"] == 2 * EXPECTED_TOKENS[0]
    # Given again, nothing is left.
    assert describe(images, tmp_path, server) == 0
    assert len(server.log()) == before + 24


def test_structured_output_is_given_up_where_the_server_refuses_it(images, server, tmp_path):
    for mode, expected in (("no schema", "json_object"), ("no format", None)):
        before = len(server.log())
        server.behave(mode)
        output = tmp_path / mode
        assert describe(images, output, server, quick=("--concurrency=1",)) == 0
        check(images, output)
        formats = [each["format"] for each in server.log()[before:]]
        assert formats.count(expected) == 24
        assert formats[-20:] == [expected] * 20


@pytest.mark.parametrize(
    "mode", ["429", "500", "503", "half", "html", "not json", "no choices", "drop", "huge"]
)
def test_what_passes_is_tried_again(images, server, tmp_path, mode):
    server.behave(mode, times=2)
    assert describe(images, tmp_path, server, quick=("--retries=4", "--concurrency=2")) == 0
    check(images, tmp_path)


def test_a_slow_answer_is_tried_again(images, server, tmp_path):
    server.behave("hang", times=1)
    assert describe(images, tmp_path, server, quick=("--timeout=0.7", "--retries=2")) == 0
    check(images, tmp_path)


def test_garbage_is_rows_with_errors_and_can_be_tried_again(images, server, tmp_path, capsys):
    server.behave("garbage")
    assert describe(images, tmp_path, server) == 3
    found = list(read_annotations(tmp_path))
    assert [each.image for each in found] == names(images)
    reasons = {each.errors["describe"].partition(":")[0] for each in found}
    assert {"refusal", "empty answer", "no subject"} <= reasons
    assert "--retry_errors tries them again" in capsys.readouterr().out
    server.behave("ok")
    assert describe(images, tmp_path, server) == 0  # nothing to do
    assert all(each.errors for each in read_annotations(tmp_path))
    assert describe(images, tmp_path, server, "--retry_errors") == 0
    check(images, tmp_path)


def test_an_answer_at_the_limit_of_tokens_loses_its_last_phrase(images, server, tmp_path):
    server.behave("limit")
    assert describe(images, tmp_path, server, "--shard=0/2") == 0
    for each in read_annotations(tmp_path):
        assert each.descriptions == tuple(features_of(sent(images, each.image))[:-1])


def test_a_request_that_is_refused_is_a_row_with_an_error(images, server, tmp_path):
    server.behave("413", times=1)
    assert describe(images, tmp_path, server, quick=("--concurrency=1",)) == 0
    (failed,) = (each for each in read_annotations(tmp_path) if each.errors)
    assert failed.errors["describe"].startswith("HTTP 413: status 413")
    check(images, tmp_path, failed=(failed.image,))


def test_images_that_cannot_be_read_are_rows_with_errors(server, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "good.png")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:40])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_text("<html>404</html>")
    os.symlink("nowhere", folder / "link.png")
    assert describe(folder, tmp_path / "ann", server) == 0
    found = {each.image: each.errors for each in read_annotations(tmp_path / "ann")}
    assert sorted(found) == ["cut.png", "empty.jpg", "good.png", "page.jpg"]
    assert found["good.png"] == {}
    assert "HTML page" in found["page.jpg"]["describe"]
    assert all(
        found[name]["describe"].startswith("corrupt image: ") for name in ("cut.png", "empty.jpg")
    )


def test_large_images_are_sent_small_and_upright(server, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (400, 100), (200, 30, 30)).save(folder / "a.jpg", exif=exif)
    assert describe(folder, tmp_path / "ann", server, "--max_image_side=200") == 0
    expected = as_jpeg(load_image("a.jpg", folder), 200)
    assert decode_image(expected).shape == (200, 50, 3)
    assert read_annotations(tmp_path / "ann")[0].captions == (caption_of(expected),)


def test_rows_of_another_model_are_kept_until_asked(images, server, tmp_path, capsys):
    assert describe(images, tmp_path, server, "--temperature=0.5") == 0
    assert describe(images, tmp_path, server) == 0
    assert "12 rows were made by another model" in capsys.readouterr().out
    assert len(StageFiles(tmp_path, "describe")) == 12
    assert describe(images, tmp_path, server, "--redo_changed") == 0
    assert len(StageFiles(tmp_path, "describe")) == 24
    sampling = read_annotations(tmp_path).rows(3)["describe"].provenance.sampling
    assert json.loads(sampling)["temperature"] == 0.0


def test_replaced_images_are_described_anew_where_asked(server, tmp_path, capsys):
    folder, output = tmp_path / "images", tmp_path / "ann"
    folder.mkdir()
    for name, color in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (8, 8), color).save(folder / name)
    assert describe(folder, output, server) == 0
    Image.new("RGB", (8, 8), "green").save(folder / "a.png")
    assert describe(folder, output, server) == 0
    assert len(StageFiles(output, "describe")) == 2
    assert describe(folder, output, server, "--redo_replaced", "--dry_run") == 0
    assert "file was replaced" in capsys.readouterr().out
    assert describe(folder, output, server, "--redo_replaced") == 0
    assert len(StageFiles(output, "describe")) == 3
    check(folder, output)
    assert describe(folder, output, server, "--redo_replaced") == 0
    assert len(StageFiles(output, "describe")) == 3


def test_a_dry_run_asks_and_writes_nothing(images, server, tmp_path, capsys):
    before = len(server.log())
    output = tmp_path / "ann"
    assert (
        describe(images, output, server, "--dry_run", "--price_prompt=2", "--price_completion=0")
        == 0
    )
    printed = capsys.readouterr().out
    assert "24" in printed
    assert "estimated" in printed
    assert "cost" in printed
    assert not output.exists()
    assert len(server.log()) == before
    assert describe(images, output, server, "--shard=0/2") == 0
    done = len(read_annotations(output))
    capsys.readouterr()
    assert describe(images, output, server, "--dry_run") == 0
    printed = capsys.readouterr().out
    assert f"{(12 - done) * 2 * EXPECTED_TOKENS[0]:,}" in printed
    assert "as of the rows so far" in printed


def test_fields_of_requests_can_be_added_and_removed(images, server, tmp_path):
    body = '{"temperature": null, "seed": 7}'
    assert describe(images, tmp_path, server, f"--extra_body={body}", "--shard=0/3") == 0
    asked = server.log()[-1]
    assert asked["seed"] == 7
    assert "temperature" not in asked
    assert asked["max_tokens"] == 512
