"""The exported model in PyTorch: initialized, trained, saved and refused as it should."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_model import LABELS, model_config, tiny_model, torch_params

from grain_jax import export
from grain_jax.formats import huggingface as huggingface_folder
from grain_jax.formats.grain_reference import to_official
from grain_jax.losses.contrastive import contrastive_loss
from grain_jax.losses.sigmoid import sigmoid_loss
from grain_jax.models.image_text import build_model

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")
torch.set_num_threads(1)  # of models so small, threads would only wait for each other


def batch(count: int = 4) -> dict:
    generator = torch.Generator().manual_seed(0)
    config = model_config()
    tokens = torch.randint(1, 10, (count, 8), generator=generator)
    tokens[:, -1] = config.text.vocab_size - 1
    pixels = torch.randn(count, 3, config.image_size, config.image_size, generator=generator)
    return {"pixel_values": pixels, "input_ids": tokens}


def fresh(**changes):
    """A model with fresh weights."""
    torch.manual_seed(0)
    model = huggingface_folder.torch_model(tiny_model(**changes))
    return type(model)(model.config)


def test_initialization_is_that_of_jax():
    """Each tensor has the spread of its parameter in JAX, biases and norms too."""
    wide = {"vision__width": 96, "text__width": 96, "decoder__width": 96, "embed_dim": 96}
    wide |= {"decoder__mlp_dim": 192, "region_logit_scale": "own"}
    wide |= {"vision__depth": 1, "decoder__depth": 1}  # the text tower draws by its depth
    config = model_config(**wide)
    images, texts = np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 4), np.int32)
    variables = jax.jit(build_model(config).init)(jax.random.key(0), images, texts)
    params = jax.tree.map(np.asarray, nn.unbox(variables["params"]))
    ours = to_official(params, config, unused=False)
    theirs = torch_params(fresh(**wide))
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        few = 0.5 if value.size < 500 else 0.1
        np.testing.assert_allclose(theirs[name].std(), value.std(), rtol=few, err_msg=name)
        np.testing.assert_allclose(
            theirs[name].mean(), value.mean(), atol=5 * value.std() / value.size**0.5, err_msg=name
        )


@pytest.mark.parametrize("kind", ["grain", "clip"])
def test_training_lowers_the_loss(kind):
    model = fresh(type=kind).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        output = model(**batch(), return_loss=True)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output["loss"].item())
    assert losses[-1] < losses[0] - 0.5
    untrained = {name for name, p in model.named_parameters() if p.grad is None}
    assert all("bbox_embed" in name or name == "decoder.obj_proj" for name in untrained)
    assert bool(untrained) == (kind == "grain")


def test_the_loss_is_that_of_jax():
    model = fresh()
    output = model(**batch(), return_loss=True)
    arrays = (output.image_embeds, output.text_embeds, model.logit_factor())
    arrays = [jnp.asarray(tensor.detach().numpy()) for tensor in arrays]
    expected, _ = contrastive_loss(*arrays, key=None)
    np.testing.assert_allclose(output.loss.item(), expected, rtol=1e-5)


def test_the_sigmoid_loss_is_that_of_jax_and_starts_as_siglip():
    model = fresh(sigmoid=True)
    assert (model.logit_factor().item(), model.logit_bias.item()) == (pytest.approx(10), -10)
    torch.nn.init.constant_(model.backbone.logit_bias, -3.0)
    output = model(**batch(), return_loss=True)
    arrays = (output.image_embeds, output.text_embeds, model.logit_factor(), model.logit_bias)
    arrays = [jnp.asarray(tensor.detach().numpy()) for tensor in arrays]
    expected, _ = sigmoid_loss(*arrays, key=None)
    np.testing.assert_allclose(output.loss.item(), expected, rtol=1e-5)
    output.loss.backward()
    assert model.backbone.logit_bias.grad.item() != 0
    assert fresh().logit_bias is None


def test_dropout_is_on_in_training_alone():
    model = fresh().eval()
    inputs = batch()
    first, second = (model(**inputs).region_embeds for _ in range(2))
    assert torch.equal(first, second)
    model.train()
    first, second = (model(**inputs).region_embeds for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-3)


def test_compile_has_no_graph_break(auto):
    model, inputs = auto[0].eval(), batch()
    inputs["description_ids"] = inputs["input_ids"]
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected, found = model(**inputs), compiled(**inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)
    found.logits_per_image.sum().backward()
    model.zero_grad()


def test_gradient_checkpointing_changes_no_gradient():
    model = fresh(decoder__dropout=0.0).train()
    blocks = [
        (block := model.backbone.visual.blocks[0], block.norm1),
        (block := model.backbone.transformer.resblocks[0], block.ln_1),
        (block := model.decoder.transformer.decoder.layers[0], block.norm1),
    ]
    calls = []
    for kind, (_, first) in enumerate(blocks):
        first.register_forward_hook(lambda *_, kind=kind: calls.append(kind))
    gradients = []
    for times in (1, 2):  # the second time each block is computed again on the way back
        model.zero_grad()
        calls.clear()
        model(**batch(), return_loss=True).loss.backward()
        assert [calls.count(kind) for kind in range(3)] == [times] * 3
        gradients.append([next(block.parameters()).grad.clone() for block, _ in blocks])
        enable = getattr(model, "activation_checkpointing_enable", None)  # its later name
        (enable or model.gradient_checkpointing_enable)()
    torch.testing.assert_close(*gradients)


def test_unsupported_arguments_of_clip_are_refused_unless_off():
    model, inputs = fresh().eval(), batch()
    off = {"output_hidden_states": False, "output_attentions": None}
    output = model(**inputs, **off, interpolate_pos_encoding=False)
    features = model.get_image_features(inputs["pixel_values"], **off).pooler_output
    torch.testing.assert_close(torch.nn.functional.normalize(features), output.image_embeds)
    for call in (model, model.get_image_features, model.get_text_features):
        given = inputs if call is model else {}
        first = () if call is model else (next(iter(inputs.values())),)
        with pytest.raises(ValueError, match="output_attentions=True: attention weights"):
            call(*first, **given, output_attentions=True)
        with pytest.raises(TypeError, match="'pixels' is not an argument"):
            call(*first, **given, pixels=None)


def test_scores_are_exact_under_autocast():
    model, inputs = fresh().eval(), batch()
    inputs["description_ids"] = inputs["input_ids"]
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs, return_loss=True)
        assert (
            model.get_image_features(inputs["pixel_values"]).pooler_output.dtype == torch.bfloat16
        )
    assert output.loss.dtype == torch.float32
    for scores, rows in (
        (output.logits_per_image, output.image_embeds),
        (output.description_scores, output.region_embeds),
    ):
        assert scores.dtype == torch.float32
        cosines = rows @ output.text_embeds.T
        scale = model.logit_factor() if scores is output.logits_per_image else 1.0
        torch.testing.assert_close(scores, scale * cosines)


def test_it_runs_on_meta_tensors_and_as_a_replica():
    """Offloaded, and split over GPUs by DataParallel, whose replicas list no parameters."""
    model = fresh().to("meta")
    inputs = {name: value.to("meta") for name, value in batch().items()}
    assert model(**inputs).logits_per_image.shape == (4, 4)
    replica = fresh()
    replica.parameters = lambda *_, **__: iter(())
    assert replica(**batch()).logits_per_image.shape == (4, 4)
    assert not model.accepts_loss_kwargs


def test_other_attention_is_refused(folder):
    auto = transformers.AutoModel.from_pretrained
    with pytest.raises(ValueError, match="attn_implementation='eager'; expected 'sdpa'"):
        auto(folder, trust_remote_code=True, attn_implementation="eager")


@pytest.mark.parametrize("kind", ["grain", "clip"])
def test_features_come_as_those_of_a_clip_of_transformers(kind):
    model, inputs = fresh(type=kind).eval(), batch()
    output = model(**inputs)
    image = model.get_image_features(inputs["pixel_values"])
    text = model.get_text_features(inputs["input_ids"])
    for found, embed in ((image, output.image_embeds), (text, output.text_embeds)):
        unit = torch.nn.functional.normalize(found.pooler_output, dim=-1)
        torch.testing.assert_close(unit, embed)
    assert (
        image.last_hidden_state.shape[1] - 1
        == (model.config.image_size // model.config.vision["patch_size"]) ** 2
    )
    assert text.last_hidden_state.shape[:2] == inputs["input_ids"].shape
    if kind == "clip":
        projected = image.last_hidden_state[:, 0] @ model.backbone.image_projection
        torch.testing.assert_close(image.pooler_output, projected)
    tokens, pooled = model.get_text_features(inputs["input_ids"], return_dict=False)
    assert torch.equal(tokens, text.last_hidden_state)
    assert torch.equal(pooled, text.pooler_output)
    assert model.logit_scale is model.backbone.logit_scale  # whose exponent scales the logits
    cosines = output.image_embeds @ output.text_embeds.T
    torch.testing.assert_close(output.logits_per_image, model.logit_scale.exp() * cosines)
    model.config.return_dict = False
    assert torch.equal(model(**inputs)[0], output.logits_per_image)


def test_a_scale_beyond_its_bound_can_come_back():
    model = fresh()
    torch.nn.init.constant_(model.backbone.logit_scale, 9.0)
    assert model.logit_factor().item() == pytest.approx(100)
    model.logit_factor().backward()
    assert model.backbone.logit_scale.grad.item() == pytest.approx(100)


@pytest.mark.parametrize(
    "changes",
    [{"type": "clip"}, {"decoder__share_projection": True, "region_logit_scale": "own"}],
    ids=["clip", "shared projection"],
)
def test_saved_and_loaded_it_is_the_same(changes, tmp_path):
    model = fresh(**changes).eval()
    model.save_pretrained(tmp_path)
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    where = {"_name_or_path": str(tmp_path)}
    assert again.config.to_dict() == model.config.to_dict() | where
    before, after = torch_params(model), torch_params(again)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    assert ("decoder.obj_proj" in before) == (changes.get("type") == "grain")
    outputs = [m(**batch(), return_dict=False) for m in (model, again)]
    assert len(outputs[0]) == (4 if "type" in changes else 6)
    for left, right in zip(*outputs, strict=True):
        assert torch.equal(left, right)


def test_missing_weights_are_initialized(tmp_path):
    """From weights without a decoder, as one that starts from CLIP has it."""
    whole = fresh()
    rest = {name: p for name, p in whole.state_dict().items() if not name.startswith("decoder.")}
    torch.manual_seed(0)
    model = type(whole).from_pretrained(None, config=whole.config, state_dict=rest)
    for name, value in torch_params(model).items():
        if name in rest:
            np.testing.assert_array_equal(value, rest[name].numpy())
        assert np.isfinite(value).all()
    assert model.decoder.query_embed.weight.std() > 0.5


def test_bfloat16_weights(loaded, auto, tmp_path):
    out = tmp_path / "half"
    arguments = [f"--checkpoint={loaded[1]}", "--to=huggingface", f"--out={out}"]
    assert export.main([*arguments, "--dtype=bfloat16"]) == 0
    size = (out / "model.safetensors").stat().st_size
    model = transformers.AutoModel.from_pretrained(out, trust_remote_code=True)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert size < 0.7 * sum(p.numel() for p in model.parameters()) * 4
    inputs = auto[1](images=Image.new("RGB", (30, 20), "red"), text=LABELS, return_tensors="pt")
    with torch.no_grad():
        half, whole = model(**inputs), auto[0](**inputs)
    for name in ("image_embeds", "text_embeds", "region_embeds", "pred_boxes"):
        torch.testing.assert_close(half[name], whole[name], atol=0.05, rtol=0)
    report = json.loads((out / "parity.json").read_text())
    changed = {entry["output"]: entry["absolute"] for entry in report["rounding"]}
    assert max(entry["absolute"] for entry in report["differences"]) < 1e-4
    assert 1e-4 < changed["image_embeds"] < 0.05
    assert "rounded to bfloat16" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ({"pixel_values": torch.zeros(1, 3, 16, 16)}, "use the image processor"),
        ({"input_ids": torch.zeros(1, 20, dtype=torch.long)}, "20 tokens do not fit the 12"),
        ({"return_loss": True}, "as many images as texts, pair by pair; got None and None"),
        ({**batch(2), "input_ids": batch(3)["input_ids"], "return_loss": True}, "got 2 and 3"),
    ],
)
def test_inputs_that_do_not_fit_are_explained(inputs, named):
    with pytest.raises(ValueError, match=named):
        fresh()(**inputs)


def test_settings_that_do_not_exist_are_refused():
    config = type(fresh().config)
    with pytest.raises(ValueError, match="vision has no 'layers'; it has patch_size"):
        config(vision={"layers": 3})
    with pytest.raises(ValueError, match="type='siglip'"):
        config(type="siglip")
