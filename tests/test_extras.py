"""Messages on what is not installed name a command that works."""

import importlib.metadata
import re
from pathlib import Path

import grain_jax
from grain_jax import extras
from grain_jax.extras import how_to_install

PACKAGE = Path(grain_jax.__file__).parent


def test_a_checkout_is_named_and_has_the_extra() -> None:
    assert how_to_install("wandb") == f"pip install -e '{PACKAGE.parent}[wandb]'"
    declared = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    for path in PACKAGE.rglob("*.py"):
        for extra in re.findall(r"how_to_install\('(\w+)'\)", path.read_text(encoding="utf-8")):
            assert f"\n{extra} = [" in declared, path


def test_an_installed_package_names_what_the_extra_needs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages/grain_jax/extras.py"))
    needs = ["jax>=0.8", 'torch>=2.4; extra == "torch"', 'wandb>=0.19; extra == "wandb"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needs)
    assert how_to_install("wandb") == "pip install 'wandb>=0.19'"
    assert how_to_install("torch").startswith("pip install 'torch>=2.4' (several GB of CUDA")
    assert "https://download.pytorch.org/whl/cpu" in how_to_install("torch")


def test_no_message_advises_a_package_that_no_index_has() -> None:
    for path in [*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("docs/*.md")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"pip install ['\"]?grain_jax", text), path
