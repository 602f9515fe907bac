"""GRAIN in PyTorch: image and text towers, and region queries between them.

Parameters carry the names of the official code, so that one table serves both exports. Shape
letters: B images, P image tokens (CLS first), Q region queries, N texts, T descriptions, E embedding.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_grain import GrainConfig


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": _quick_gelu}


class LayerNorm(nn.LayerNorm):
    """Computes in float32 whatever the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def _heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class VisionAttention(nn.Module):
    """Self-attention with LayerNorm on q and k of each head."""

    def __init__(self, width: int, num_heads: int, qk_norm: bool, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        head = width // num_heads
        self.q_norm = LayerNorm(head, eps=eps) if qk_norm else nn.Identity()
        self.k_norm = LayerNorm(head, eps=eps) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class VisionMlp(nn.Module):
    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class VisionBlock(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, eps = config["width"], config["norm_eps"]
        self.norm1 = LayerNorm(width, eps=eps)
        self.attn = VisionAttention(width, config["num_heads"], config["qk_norm"], eps)
        self.norm2 = LayerNorm(width, eps=eps)
        hidden = round(width * config["mlp_ratio"])
        self.mlp = VisionMlp(width, hidden, config["activation"])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    def __init__(self, config: dict[str, Any], image_size: int) -> None:
        super().__init__()
        width, patch = config["width"], config["patch_size"]
        self.image_size = image_size
        self.patch_embed = PatchEmbed(width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (image_size // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config["depth"]))
        self.norm = LayerNorm(width, eps=config["norm_eps"])

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] to all tokens, CLS first. Raises ValueError for another size."""
        if pixels.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(
                f"The model takes pixels of {(3, self.image_size, self.image_size)}, got "
                f"{tuple(pixels.shape[1:])}; use the image processor of this folder."
            )
        x = self.patch_embed(pixels)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Attention(nn.Module):
    """Attention with the parameters of `nn.MultiheadAttention`, batch first."""

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            _heads(F.linear(x, weight, bias), self.num_heads)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class TextMlp(nn.Module):
    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))


class TextBlock(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, eps = config["width"], config["norm_eps"]
        self.ln_1 = LayerNorm(width, eps=eps)
        self.attn = Attention(width, config["num_heads"])
        self.ln_2 = LayerNorm(width, eps=eps)
        self.mlp = TextMlp(width, round(width * config["mlp_ratio"]), config["activation"])

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, causal=True)
        return x + self.mlp(self.ln_2(x))


class TextLayers(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(TextBlock(config) for _ in range(config["depth"]))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class Backbone(nn.Module):
    """The two towers and what scales their product."""

    def __init__(self, config: GrainConfig) -> None:
        super().__init__()
        vision, text = config.vision, config.text
        self.visual = VisionTransformer(vision, config.image_size)
        self.token_embedding = nn.Embedding(text["vocab_size"], text["width"])
        self.positional_embedding = nn.Parameter(torch.zeros(text["context_length"], text["width"]))
        self.transformer = TextLayers(text)
        self.ln_final = LayerNorm(text["width"], eps=text["norm_eps"])
        self.text_projection = nn.Parameter(torch.zeros(text["width"], config.embed_dim))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        if config.kind == "clip":
            self.image_projection = nn.Parameter(torch.zeros(vision["width"], config.embed_dim))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """[N, L] token ids to [N, E], pooled at the first end-of-text, which has the highest id."""
        limit = len(self.positional_embedding)
        if tokens.shape[1] > limit:
            raise ValueError(
                f"Texts of {tokens.shape[1]} tokens do not fit the {limit} positions of the model; "
                f"truncate them: tokenizer(..., truncation=True, max_length={limit})."
            )
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = self.transformer(x)
        x = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=1)]
        return self.ln_final(x) @ self.text_projection


class DecoderLayer(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, dropout = config["width"], config["dropout"]
        self.norm1, self.norm2, self.norm3 = LayerNorm(width), LayerNorm(width), LayerNorm(width)
        self.self_attn = Attention(width, config["num_heads"], dropout)
        self.multihead_attn = Attention(width, config["num_heads"], dropout)
        self.linear1 = nn.Linear(width, config["mlp_dim"])
        self.linear2 = nn.Linear(config["mlp_dim"], width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, query: Tensor, memory: Tensor, memory_key: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.drop(self.self_attn(y + query, y + query, y))
        y = self.norm2(x) + query
        x = x + self.drop(self.multihead_attn(y, memory_key, memory))
        y = self.drop(F.relu(self.linear1(self.norm3(x))))
        return x + self.drop(self.linear2(y))


class DecoderLayers(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config["depth"]))
        self.norm = LayerNorm(config["width"])


class DecoderTransformer(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.pre_norm = LayerNorm(config["width"])
        self.decoder = DecoderLayers(config)


class BoxHead(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, size) for size in (width, width, 4))

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x))))).float().sigmoid()


class RegionDecoder(nn.Module):
    """Image tokens to a box and an embedding for each region query, and one for the image."""

    def __init__(self, config: GrainConfig) -> None:
        super().__init__()
        decoder = config.decoder
        width, self.num_queries = decoder["width"], decoder["num_queries"]
        self.proj = nn.Linear(config.vision["width"], width, bias=False)
        self.query_embed = nn.Embedding(self.num_queries + 1, width)
        self.transformer = DecoderTransformer(decoder)
        self.bbox_embed = BoxHead(width)
        self.img_proj = nn.Parameter(torch.zeros(width, config.embed_dim))
        self.obj_proj = nn.Parameter(torch.zeros(width, config.embed_dim))
        self.sincos = decoder["memory_position"] == "sincos"
        if config.region_logit_scale == "own":
            self.region_logit_scale = nn.Parameter(torch.zeros(()))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, P, D] to image [B, E], regions [B, Q, E], boxes [B, Q, 4] (cx, cy, w, h in 0..1)."""
        memory = self.transformer.pre_norm(self.proj(tokens))
        memory_key = memory
        if self.sincos:
            side = round((memory.shape[1] - 1) ** 0.5)
            memory_key = memory + _grid_positions(side, memory.shape[2]).to(memory)
        query = self.query_embed.weight[None]
        x = torch.zeros_like(query).expand(len(memory), -1, -1)
        for layer in self.transformer.decoder.layers:
            x = layer(x, query, memory, memory_key)
        x = self.transformer.decoder.norm(x)
        image, regions = x[:, self.num_queries], x[:, : self.num_queries]
        return image @ self.img_proj, regions @ self.obj_proj, self.bbox_embed(regions)


def _grid_positions(side: int, width: int) -> Tensor:
    """2-D sine-cosine positions of a square grid in rows, with zeros for the CLS token before."""
    frequency = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    one = torch.cat([angle.sin(), angle.cos()], dim=1)
    y, x = one[:, None].expand(-1, side, -1), one[None].expand(side, -1, -1)
    return F.pad(torch.cat([y, x], dim=-1).flatten(0, 1), (0, 0, 1, 0)).float()


@dataclass
class GrainOutput(ModelOutput):
    """Embeddings have unit length; what was not asked for is None."""

    loss: Tensor | None = None  # image against text, both ways, with `return_loss`
    logits_per_image: Tensor | None = None  # [B, N]
    logits_per_text: Tensor | None = None  # [N, B]
    image_embeds: Tensor | None = None  # [B, E]
    text_embeds: Tensor | None = None  # [N, E]
    region_embeds: Tensor | None = None  # [B, Q, E]
    pred_boxes: Tensor | None = None  # [B, Q, 4], cx, cy, w, h in 0..1 of the image
    description_embeds: Tensor | None = None  # [T, E]
    description_scores: Tensor | None = None  # [B, Q, T], cosines


class GrainModel(PreTrainedModel):
    """GRAIN, or the CLIP baseline with the same towers (`config.kind`)."""

    config_class = GrainConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    _no_split_modules = ["VisionBlock", "TextBlock", "DecoderLayer"]

    def __init__(self, config: GrainConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config)
        if config.kind == "grain":
            self.decoder = RegionDecoder(config)
            if config.decoder["share_projection"]:
                self.decoder.obj_proj = self.decoder.img_proj
        self.post_init()

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """[B, E], not normalised: the image query's embedding (CLIP: the projected CLS token)."""
        return self._images(pixel_values)[0]

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[N, E], not normalised. The mask changes nothing: attention is causal up to the end."""
        return self.backbone.encode_text(input_ids)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        description_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_loss: bool = False,
        **kwargs: Any,
    ) -> GrainOutput:
        """Whatever the given inputs allow. `description_ids`: texts to compare regions with."""
        output = GrainOutput()
        if pixel_values is not None:
            image, regions, boxes = self._images(pixel_values)
            output.image_embeds = F.normalize(image, dim=-1)
            if regions is not None:
                output.region_embeds, output.pred_boxes = F.normalize(regions, dim=-1), boxes
        if input_ids is not None:
            output.text_embeds = F.normalize(self.backbone.encode_text(input_ids), dim=-1)
        if description_ids is not None:
            embeds = F.normalize(self.backbone.encode_text(description_ids), dim=-1)
            output.description_embeds = embeds
            if output.region_embeds is not None:
                output.description_scores = output.region_embeds @ embeds.T
        if output.image_embeds is not None and output.text_embeds is not None:
            logits = self.logit_scale() * output.image_embeds @ output.text_embeds.T
            output.logits_per_image, output.logits_per_text = logits, logits.T
            if return_loss:
                target = torch.arange(len(logits), device=logits.device)
                both = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
                output.loss = both / 2
        return output

    def logit_scale(self) -> Tensor:
        """The factor on the cosines of images and texts."""
        return self.backbone.logit_scale.exp().clamp(1.0, self.config.max_logit_scale)

    def _images(self, pixels: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        tokens = self.backbone.visual(pixels)
        if self.config.kind == "clip":
            return tokens[:, 0] @ self.backbone.image_projection, None, None
        return self.decoder(tokens)
