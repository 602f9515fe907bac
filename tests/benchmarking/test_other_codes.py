"""Steps of other codes: what is refused, and stand-ins with their interfaces."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from grain_jax.benchmarking import compiled_step, official, open_clip_step
from grain_jax.benchmarking.official import NEEDED, OfficialStep
from grain_jax.benchmarking.open_clip_step import OpenClipStep
from grain_jax.benchmarking.synthetic_batch import synthetic_batch
from grain_jax.benchmarking.torch_peer import POSITIONS, TorchStep, memory_named
from grain_jax.config import TrainConfig

# Not the official code: modules with its interface that keep what they are given.
STAND_IN = {
    "clip/custom_models.py": """
import torch
from torch import nn

class VisionTransformer(nn.Module):
    def __init__(self, **sizes):
        super().__init__()
        self.sizes = sizes

class CLIP(nn.Module):
    def __init__(self, **sizes):
        super().__init__()
        self.sizes = sizes
        self.weight = nn.Parameter(torch.ones(3, 2))
        self.logit_scale = nn.Parameter(torch.tensor(9.0))

    def forward(self, images, captions, descriptions, *, return_hidden_state, use_desc_train):
        self.seen = images, captions, descriptions
        return {"image_embed": self.weight.sum(), "text_embed": self.weight.sum(),
                "desc_embed": self.weight.sum(), "logit_scale": self.logit_scale.exp()}
""",
    "model/tfm.py": """
from torch import nn

class Cross_Attention(nn.Module):
    def __init__(self, **sizes):
        super().__init__()
        self.sizes = sizes

class ObjDecoder(nn.Module):
    def __init__(self, **sizes):
        super().__init__()
        self.sizes = sizes

    def forward(self, features):
        return {"pred_boxes": features}, features, features
""",
    "model/box_utils.py": """
import torch
from torch import nn

class HungarianMatcher(nn.Module):
    def __init__(self, cost_class, cost_bbox, cost_giou):
        super().__init__()

class SetCriterion(nn.Module):
    def __init__(self, num_classes, matcher, weight_dict, eos_coef, losses):
        super().__init__()

def compute_box_loss(name, criterion, boxes, corners, classes, size, n_queries):
    criterion.seen = corners, classes.cuda()
    return boxes["pred_boxes"]
""",
    "model/losses.py": """
from torch import nn

class CLIPLoss(nn.Module):
    def forward(self, image, text, scale):
        return {"loss": image * text}

class WordContrastiveLoss(nn.Module):
    def forward(self, boxes, texts, regions, criterion, corners, queries, present, scale):
        self.seen = present
        return {"word_loss": texts}
""",
    "utils/train_utils.py": """
def optim_policy(backbone, model, lr, wd):
    return [{"params": list(backbone.parameters()), "weight_decay": wd}]
""",
    "configs/cc_config.py": "max_boxes = 5\n",
}


def small() -> TrainConfig:
    config = TrainConfig(batch_size=2)
    config.model.dtype, config.model.image_size = "float32", 32
    config.data.caption_length, config.data.description_length = 12, 6
    return config


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for file, text in STAND_IN.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.torch
def test_the_official_modules_get_the_sizes_and_the_batch_of_the_settings(checkout):
    pytest.importorskip("torch")
    config, path = small(), list(sys.path)
    step = OfficialStep(checkout, config)
    step.run()
    assert sys.path == path
    assert step.wait() == pytest.approx(6 * 6 + 6 + 6)  # the three losses of the weights at 1
    assert float(step.backbone.logit_scale.detach()) == pytest.approx(4.6052)  # clamped
    assert float(step.backbone.weight.detach().max()) < 1  # updated
    batch = synthetic_batch(config)
    images, captions, descriptions = step.backbone.seen
    assert images.shape == (2, 3, 32, 32)
    assert captions.shape == (2, POSITIONS)
    np.testing.assert_array_equal(captions[:, :12], batch.captions)
    assert not captions[:, 12:].any()
    real = batch.region_mask
    np.testing.assert_array_equal(descriptions[:, :6], batch.descriptions[real])
    corners, _ = step.criterion.seen
    center, size = batch.boxes[..., :2], batch.boxes[..., 2:]
    expected = np.concatenate([center - size / 2, center + size / 2], -1) * 224
    np.testing.assert_allclose(corners[real], expected[real], rtol=1e-4)
    assert not corners[~real].any()
    np.testing.assert_array_equal(step.words.seen, real.flatten())
    assert step.backbone.sizes["transformer_layers"] == config.model.text.depth
    assert step.backbone.sizes["vision_model"].sizes["embed_dim"] == config.model.vision.width
    assert step.decoder.sizes["num_queries"] == 6
    assert step.peak_bytes() is None


@pytest.mark.torch
def test_a_checkout_with_other_files_is_named(checkout):
    pytest.importorskip("torch")
    config = small()
    config.data.max_regions = 3
    with pytest.raises(ValueError, match="max_boxes = 5"):
        OfficialStep(checkout, config)
    (checkout / "model" / "losses.py").write_text("CLIPLoss = None\n")
    with pytest.raises(ValueError, match="has no WordContrastiveLoss"):
        OfficialStep(checkout, small())
    (checkout / "model" / "losses.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(ValueError, match=r"losses\.py could not be imported"):
        OfficialStep(checkout, small())
    (checkout / "model" / "losses.py").unlink()
    with pytest.raises(ValueError, match=r"has no model/losses\.py.*c6bf85e"):
        OfficialStep(checkout, small())


def test_a_model_that_the_official_code_cannot_be_is_refused(tmp_path):
    config = small()
    config.model.vision.qk_norm, config.model.embed_dim = False, 64
    with pytest.raises(ValueError, match=r"embed_dim = 64; it has 512; model\.vision\.qk_norm"):
        OfficialStep(tmp_path, config)
    config = small()
    config.data.caption_length = 100
    assert official.problems(config) == ["texts of 100 tokens; it has 77"]


def test_a_model_that_open_clip_cannot_be_is_refused():
    config = small()
    with pytest.raises(ValueError, match=r"model\.type = 'grain'; it has 'clip'"):
        OpenClipStep(config)
    config.model.type, config.data.caption_length = "clip", 78
    assert open_clip_step.problems(config) == ["captions of 78 tokens; it has 77"]


@pytest.mark.parametrize("make", [OpenClipStep, lambda config: OfficialStep(Path("x"), config)])
def test_without_torch_it_says_how_to_install_it(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    config = small()
    config.model.type = "clip" if make is OpenClipStep else "grain"
    with pytest.raises(ValueError, match="needs torch, which is not installed: pip install"):
        make(config)


@pytest.mark.torch
def test_open_clip_without_torchvision_is_said(monkeypatch):
    pytest.importorskip("torch")
    package = ModuleType("open_clip")
    monkeypatch.setitem(sys.modules, "open_clip", package)
    monkeypatch.setitem(sys.modules, "open_clip.model", None)
    config = small()
    config.model.type = "clip"
    with pytest.raises(ValueError, match=r"open_clip could not be imported.*torchvision"):
        OpenClipStep(config)


@pytest.mark.torch
def test_open_clip_s_model_gets_the_sizes_of_the_settings(monkeypatch):
    """By a stand-in for the package, which keeps what it is given."""
    torch = pytest.importorskip("torch")

    class Model(torch.nn.Module):
        def __init__(self, **sizes):
            super().__init__()
            self.sizes = sizes
            self.weight = torch.nn.Parameter(torch.ones(2, 2))

        def forward(self, images, captions):
            self.seen = images, captions
            return self.weight.sum(), self.weight.sum(), torch.ones(())

    models, losses = ModuleType("open_clip.model"), ModuleType("open_clip.loss")
    vars(models)["CLIP"] = Model
    vars(losses)["ClipLoss"] = lambda: lambda image, text, scale: image * text
    monkeypatch.setitem(sys.modules, "open_clip", ModuleType("open_clip"))
    monkeypatch.setitem(sys.modules, "open_clip.model", models)
    monkeypatch.setitem(sys.modules, "open_clip.loss", losses)
    config = small()
    config.model.type = "clip"
    step = OpenClipStep(config)
    step.run()
    assert step.wait() == pytest.approx(16)
    assert step.model.sizes["vision_cfg"]["layers"] == config.model.vision.depth
    assert step.model.sizes["vision_cfg"]["head_width"] == 64
    assert step.model.seen[1].shape == (2, POSITIONS)
    assert any("no norm of q and k" in one for one in step.differences)


def test_float32_is_computed_alike_on_a_gpu(monkeypatch):
    """By a stand-in for torch that keeps what it is given: JAX takes TF32 there by default."""
    given: list[str] = []
    torch: Any = SimpleNamespace(
        from_numpy=lambda array: SimpleNamespace(to=lambda device: array),
        set_float32_matmul_precision=given.append,
    )
    TorchStep(torch, small())
    assert given == []  # on a CPU neither has TF32
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    TorchStep(torch, small())
    with jax.default_matmul_precision("highest"):
        TorchStep(torch, small())
    assert given == ["high", "highest"]


def test_a_lack_of_memory_in_torch_is_told_from_other_errors():
    class OutOfMemoryError(RuntimeError):
        """As torch's of a GPU is called."""

    lack = pytest.raises(compiled_step.OutOfMemoryError, match=r"^official, by torch: 80 GiB$")
    with lack, memory_named("official"):
        raise OutOfMemoryError("80 GiB\nand advice")
    with pytest.raises(RuntimeError, match="shapes"), memory_named("official"):
        raise RuntimeError("shapes differ")


@pytest.mark.torch
def test_a_lack_of_memory_in_torch_on_a_cpu_is_one_too():
    torch = pytest.importorskip("torch")
    lack = pytest.raises(compiled_step.OutOfMemoryError, match="open_clip")
    with lack, memory_named("open_clip"):
        torch.empty(1 << 60, dtype=torch.uint8)


def test_every_file_of_the_checkout_is_part_of_the_stand_in():
    assert set(STAND_IN) == set(NEEDED)
