"""Real detectors of `transformers` with random weights, small enough for a test, as folders."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from grain_jax.data.clip_bpe import clip_tables

OWL_SIDE = 96
SHORTEST, LONGEST = 96, 192
MAX_TOKENS = 32  # of a prompt; 256 in the published models
WORDS = (
    *("a", "an", "the", "red", "small", "bird", "dog", "ball", "bus", "stop", "stand", "##ing"),
    *("of", "with", "black", "wings", "st", "bernard", "who", "'", "s", ",", "-", "!", "1", "2"),
)


def write_owl(folder: Path, kind: str = "owlv2") -> Path:
    """An OWLv2 or OWL-ViT with the tokenizer of CLIP."""
    torch, transformers = _libraries()
    prefix = {"owlv2": "Owlv2", "owlvit": "OwlViT"}[kind]
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision = {**text, "hidden_size": 24, "image_size": OWL_SIDE, "patch_size": 16}
    config = getattr(transformers, f"{prefix}Config")(
        text_config=text, vision_config=vision, projection_dim=16
    )
    torch.manual_seed(0)
    _random(getattr(transformers, f"{prefix}ForObjectDetection")(config)).save_pretrained(folder)
    write_clip_tokenizer(folder)
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": f"{prefix}ImageProcessor",
            "size": {"height": OWL_SIDE, "width": OWL_SIDE},
            "do_center_crop": False,
            "resample": {"owlv2": 2, "owlvit": 3}[kind],
        },
    )
    return folder


def write_grounding_dino(folder: Path, kind: str = "grounding-dino") -> Path:
    """A Grounding DINO with a BERT tokenizer of a few words and of single letters."""
    torch, transformers = _libraries()
    prefix = {"grounding-dino": "GroundingDino", "mm-grounding-dino": "MMGroundingDino"}[kind]
    swin = {
        "image_size": 96,
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 4,
        "out_indices": [2, 3, 4],
        "model_type": "swin",
    }
    bert = {
        "model_type": "bert",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 1200,
    }
    config = getattr(transformers, f"{prefix}Config")(
        backbone_config=swin,
        text_config=bert,
        d_model=32,
        num_queries=12,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_text_len=MAX_TOKENS,
        disable_custom_kernels=True,
    )
    torch.manual_seed(0)
    _random(getattr(transformers, f"{prefix}ForObjectDetection")(config)).save_pretrained(folder)
    write_bert_tokenizer(folder)
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "GroundingDinoImageProcessor",
            "size": {"shortest_edge": SHORTEST, "longest_edge": LONGEST},
        },
    )
    return folder


WRITERS: dict[str, Callable[[Path, str], Path]] = {
    "owlv2": write_owl,
    "owlvit": write_owl,
    "grounding-dino": write_grounding_dino,
    "mm-grounding-dino": write_grounding_dino,
}


def write_detector(folder: Path, kind: str) -> Path:
    """A detector of one of the types of `DETECTORS`."""
    return WRITERS[kind](folder, kind)


def write_clip_tokenizer(folder: Path) -> None:
    """CLIP's vocabulary, which is part of the package."""
    vocabulary, merges = clip_tables()
    _write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "pad_token": "!", "model_max_length": 16}
    _write_json(folder / "tokenizer_config.json", settings)


def write_bert_tokenizer(folder: Path) -> None:
    """A vocabulary whose special tokens have the numbers that Grounding DINO's code expects."""
    words = [f"[unused{number}]" for number in range(1200)]
    for number, word in ((0, "[PAD]"), (100, "[UNK]"), (101, "[CLS]"), (102, "[SEP]")):
        words[number] = word
    words[1012], words[1029] = ".", "?"
    letters = "abcdefghijklmnopqrstuvwxyz"
    known = dict.fromkeys([*WORDS, *letters, *(f"##{letter}" for letter in letters)])
    for number, word in enumerate(known, start=200):
        words[number] = word
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    _write_json(folder / "tokenizer_config.json", settings)


def image_processor(kind: str):
    """The class of `transformers` that resizes images in NumPy and Pillow."""
    _, transformers = _libraries()
    name = {"owlv2": "Owlv2", "owlvit": "OwlViT"}.get(kind, "GroundingDino") + "ImageProcessor"
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


def _libraries():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)  # of several, each small step would wait for the slowest
    return torch, transformers


def _random(model):
    """Weights large enough that boxes and scores differ from place to place."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embeddings" not in name:
                parameter.normal_(std=0.6 / parameter.shape[-1] ** 0.5)
    return model


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
