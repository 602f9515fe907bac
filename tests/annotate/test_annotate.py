"""`python -m grain_jax.annotate`: its stages, and options of `describe` that cannot be right."""

import sys

import pytest
from described import describe

pytest.importorskip("pyarrow")

from grain_jax import annotate

pytestmark = pytest.mark.multiprocess


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--endpoint=localhost:8000", "should be an address"),
        ("--endpoint=http://me:word@host/v1", "must not have a user"),
        ("--shard=3/3", "0/n"),
        ("--extra_body=[1]", "JSON object"),
        ('--extra_body={"model": "other"}', "'model'"),
        ('--extra_body={"seed": 1, "messages": null}', "'messages'"),
        ('--extra_body={"stream": true}', "'stream'"),
        ('--extra_body={"response_format": null}', "'response_format'"),
        ("--temperature=-1", "at least 0"),
        ("--prompts=/nowhere.toml", "/nowhere.toml"),
        ("--images=/nowhere", "--images=/nowhere is not a folder"),
    ],
)
def test_a_mistake_is_named(images, tmp_path, capsys, option, said):
    given = {
        "--images": str(images),
        "--output": str(tmp_path / "ann"),
        "--endpoint": "http://localhost:9/v1",
        "--model": "tiny",
    }
    name, _, value = option.partition("=")
    given[name] = value
    assert annotate.main(["describe", *(f"{key}={each}" for key, each in given.items())]) == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", "").split())
    assert not (tmp_path / "ann").exists()


def test_an_option_that_a_backend_does_not_use_is_refused(images, tmp_path, capsys):
    given = [f"--images={images}", f"--output={tmp_path / 'ann'}", "--model=tiny"]
    for option in ("--endpoint=http://x/v1", "--concurrency=4", "--timeout=3", "--retries=0"):
        assert annotate.main(["describe", *given, "--backend=transformers", option]) == 2
        assert f"{option.partition('=')[0]} is for --backend=endpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--backend=transformers", "--endpoint=http://x/v1"), "--endpoint is for"),
        (("--backend=transformers", "--concurrency=4"), "--concurrency is for"),
        (("--backend=transformers", '--extra_body={"seed": 7}'), "'seed'"),
        ((), "--endpoint is missing"),
        (("--endpoint=localhost:8000",), "should be an address"),
        (("--endpoint=http://localhost:9/v1", "--price_prompt=2"), "give both"),
        (("--endpoint=http://localhost:9/v1", "--price_completion=2"), "give both"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry_run",)])
def test_a_dry_run_refuses_what_the_run_does(images, tmp_path, capsys, options, said, dry):
    given = [f"--images={images}", f"--output={tmp_path / 'ann'}", "--model=tiny"]
    assert annotate.main(["describe", *given, *options, *dry]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_key_is_not_sent_in_the_open_without_a_word(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GRAIN_JAX_API_KEY", "sk-very-secret")
    given = [f"--images={images}", f"--output={tmp_path / 'ann'}", "--model=tiny", "--dry_run"]
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for url, expected in (
        ("http://192.0.2.1/v1", True),
        ("http://models.example/v1", True),
        ("http://127.0.0.1:9/v1", False),
        ("http://localhost:9/v1", False),
        ("https://models.example/v1", False),
    ):
        assert annotate.main(["describe", *given, f"--endpoint={url}"]) == 0
        assert ("without encryption" in capsys.readouterr().err) == expected, url
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://proxy.example:3128")
    assert annotate.main(["describe", *given, "--endpoint=http://models.example/v1"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "would be sent to the proxy proxy.example" in said
    assert "very-secret" not in said
    assert annotate.main(["describe", *given, "--endpoint=https://models.example/v1"]) == 0
    assert annotate.main(["describe", *given, "--endpoint=http://localhost:9/v1"]) == 0
    monkeypatch.delenv("GRAIN_JAX_API_KEY")
    assert annotate.main(["describe", *given, "--endpoint=http://models.example/v1"]) == 0


def test_without_pyarrow_the_way_to_install_it_is_said(
    images, server, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert describe(images, tmp_path / "ann", server) == 2
    assert "[annotate]" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["describe", "ground", "audit", "review"])
def test_help_says_what_a_stage_is_for(stage, capsys):
    assert annotate.main([stage, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"python -m grain_jax.annotate {stage} --" in said.partition("options")[0]


def test_stages_are_listed_and_a_wrong_one_is_named(capsys):
    assert annotate.main(["--help"]) == 0
    assert "describe" in capsys.readouterr().out
    assert annotate.main(["descibe", "--images=x"]) == 2
    assert "is it 'describe'?" in capsys.readouterr().err
    assert annotate.main([]) == 2
    assert "no stage is given" in capsys.readouterr().err
