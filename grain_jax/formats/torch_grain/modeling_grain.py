"""GRAIN in PyTorch: an image tower, a text tower, and a region decoder on image tokens.

Parameters carry the names of the official code, so that one table serves both exports.
B images, P image tokens (CLS first), Q region queries, N texts, T descriptions, E embedding.
"""

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_grain import GrainConfig


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "quick_gelu": _quick_gelu,
}


UNSUPPORTED_ARGUMENTS = {
    "output_attentions": "attention weights are not computed",
    "output_hidden_states": "only last_hidden_state of get_image_features is available",
    "interpolate_pos_encoding": "images have a fixed size",
}


class LayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32 for inputs of any type."""

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
    """Two linear maps with an activation between."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class VisionBlock(GradientCheckpointingLayer):
    """Pre-norm block of the image tower."""

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
    """Pixels [B, 3, S, S] to one token for each patch, row by row."""

    def __init__(self, width: int, patch_size: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size, bias=bias)

    def forward(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.proj.weight.dtype)  # processors give float32
        return self.proj(pixels).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Image tower with learned positions; returns all tokens after the final norm."""

    def __init__(self, config: dict[str, Any], image_size: int) -> None:
        super().__init__()
        width, patch = config["width"], config["patch_size"]
        self.image_size = image_size
        self.patch_embed = PatchEmbed(width, patch, config["patch_bias"])
        has_cls = config["pooling"] == "cls"
        if has_cls:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        else:
            self.register_parameter("cls_token", None)
        self.pos_embed = nn.Parameter(torch.zeros(1, (image_size // patch) ** 2 + has_cls, width))
        eps = config["norm_eps"]
        self.norm_pre = LayerNorm(width, eps=eps) if config["pre_norm"] else nn.Identity()
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config["depth"]))
        self.norm = LayerNorm(width, eps=eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] to all tokens [B, P, D], CLS first if there is one.

        Raises ValueError for images of another size.
        """
        if pixels.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(
                f"The model takes pixels of {(3, self.image_size, self.image_size)}, got "
                f"{tuple(pixels.shape[1:])}; use the image processor of this folder."
            )
        x = self.patch_embed(pixels)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = self.norm_pre(x + self.pos_embed)
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


class AttentionPool(nn.Module):
    """One learned query over the image tokens, then an MLP with a residual (SigLIP)."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = config["width"]
        self.probe = nn.Parameter(torch.zeros(1, 1, width))
        self.attn = Attention(width, config["num_heads"])
        self.norm = LayerNorm(width, eps=config["norm_eps"])
        self.mlp = VisionMlp(width, round(width * config["mlp_ratio"]), config["activation"])

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, P, D] to [B, D]."""
        x = self.attn(self.probe.expand(len(tokens), -1, -1), tokens, tokens)
        return (x + self.mlp(self.norm(x)))[:, 0]


class TextMlp(nn.Module):
    """As `VisionMlp`, under the names of CLIP's text tower."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))


class TextBlock(GradientCheckpointingLayer):
    """Pre-norm block of the text tower."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.causal = config["causal"]
        width, eps = config["width"], config["norm_eps"]
        self.ln_1 = LayerNorm(width, eps=eps)
        self.attn = Attention(width, config["num_heads"])
        self.ln_2 = LayerNorm(width, eps=eps)
        self.mlp = TextMlp(width, round(width * config["mlp_ratio"]), config["activation"])

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, causal=self.causal)
        return x + self.mlp(self.ln_2(x))


class TextLayers(nn.Module):
    """The blocks of the text tower, one after the other."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(TextBlock(config) for _ in range(config["depth"]))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class Backbone(nn.Module):
    """The two towers and the logit scale."""

    def __init__(self, config: GrainConfig) -> None:
        super().__init__()
        vision, text = config.vision, config.text
        self.visual = VisionTransformer(vision, config.image_size)
        self.token_embedding = nn.Embedding(text["vocab_size"], text["width"])
        self.positional_embedding = nn.Parameter(torch.zeros(text["context_length"], text["width"]))
        self.transformer = TextLayers(text)
        self.ln_final = LayerNorm(text["width"], eps=text["norm_eps"])
        self.text_projection = nn.Parameter(torch.zeros(text["width"], config.embed_dim))
        self.pooling = text["pooling"]
        if text["projection_bias"]:
            self.text_projection_bias = nn.Parameter(torch.zeros(config.embed_dim))
        else:
            self.register_parameter("text_projection_bias", None)
        self.logit_scale = nn.Parameter(torch.zeros(()))
        if config.image_caption == "sigmoid":
            self.logit_bias = nn.Parameter(torch.zeros(()))
        else:
            self.register_parameter("logit_bias", None)
        if config.type == "clip":
            if vision["pooling"] == "map":
                self.visual.attn_pool = AttentionPool(vision)
            self.image_projection = nn.Parameter(torch.zeros(vision["width"], config.embed_dim))

    def encode_text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[N, L] token ids to all tokens [N, L, D] after the final norm, and embeddings [N, E].

        Embeddings are pooled at the first end-of-text, which has the highest id, or at the last
        position. Raises ValueError for more tokens than positions, and for fewer where the last
        position is pooled.
        """
        limit = len(self.positional_embedding)
        if tokens.shape[1] > limit:
            raise ValueError(
                f"Texts of {tokens.shape[1]} tokens do not fit the {limit} positions of the model; "
                f"truncate them: tokenizer(..., truncation=True, max_length={limit})."
            )
        if self.pooling == "last" and tokens.shape[1] < limit:
            raise ValueError(
                f"The model pools at the last of {limit} positions, and texts have "
                f"{tokens.shape[1]}; pad them: tokenizer(..., padding='max_length')."
            )
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = self.ln_final(self.transformer(x))
        if self.pooling == "last":
            pooled = x[:, -1]
        else:
            pooled = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=1)]
        pooled = pooled @ self.text_projection
        bias = self.text_projection_bias
        return x, pooled if bias is None else pooled + bias


class DecoderLayer(GradientCheckpointingLayer):
    """Self-attention of queries, cross-attention to the image, ReLU MLP; pre-norm, as in DETR."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, dropout = config["width"], config["dropout"]
        self.norm1, self.norm2, self.norm3 = LayerNorm(width), LayerNorm(width), LayerNorm(width)
        self.self_attn = Attention(width, config["num_heads"], dropout)
        self.multihead_attn = Attention(width, config["num_heads"], dropout)
        self.linear1 = nn.Linear(width, config["mlp_dim"])
        self.linear2 = nn.Linear(config["mlp_dim"], width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, query: Tensor, memory: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.drop(self.self_attn(y + query, y + query, y))
        y = self.norm2(x) + query
        x = x + self.drop(self.multihead_attn(y, memory, memory))
        y = self.drop(F.relu(self.linear1(self.norm3(x))))
        return x + self.drop(self.linear2(y))


class DecoderLayers(nn.Module):
    """Layers and final norm, called by `RegionDecoder`; gives parameters their official names."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config["depth"]))
        self.norm = LayerNorm(config["width"])


class DecoderTransformer(nn.Module):
    """As `DecoderLayers`, gives parameters their official names."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.pre_norm = LayerNorm(config["width"])
        self.decoder = DecoderLayers(config)


class BoxHead(nn.Module):
    """Region queries to (cx, cy, w, h) in 0..1, in float32."""

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
        if decoder["share_projection"]:
            self.register_parameter("obj_proj", None)
        else:
            self.obj_proj = nn.Parameter(torch.zeros(width, config.embed_dim))
        if config.region_logit_scale == "own":
            self.region_logit_scale = nn.Parameter(torch.zeros(()))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, P, D] to image [B, E], regions [B, Q, E], boxes [B, Q, 4] (cx, cy, w, h in 0..1)."""
        memory = self.transformer.pre_norm(self.proj(tokens))
        query = self.query_embed.weight[None]
        x = torch.zeros_like(query).expand(len(memory), -1, -1)
        for layer in self.transformer.decoder.layers:
            x = layer(x, query, memory)
        x = self.transformer.decoder.norm(x)
        image, regions = x[:, self.num_queries], x[:, : self.num_queries]
        to_region = self.img_proj if self.obj_proj is None else self.obj_proj
        return image @ self.img_proj, regions @ to_region, self.bbox_embed(regions)


def _exact(device: str) -> AbstractContextManager[Any]:
    """A context without autocast."""
    on = device != "meta" and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


def _refuse_unsupported(kwargs: dict[str, bool | None]) -> None:
    """Raises an error for arguments of `CLIPModel` that this model lacks, unless they are off."""
    if unknown := sorted(set(kwargs) - set(UNSUPPORTED_ARGUMENTS)):
        raise TypeError(f"{unknown[0]!r} is not an argument of a GrainModel.")
    if on := [name for name, value in kwargs.items() if value]:
        raise ValueError(f"{on[0]}={kwargs[on[0]]}: {UNSUPPORTED_ARGUMENTS[on[0]]}; leave it out.")


@dataclass
class GrainOutput(ModelOutput):
    """Outputs of `GrainModel`. Embeddings have unit length, in float32.

    Outputs that the inputs do not allow, or that were not trained, are None.
    """

    loss: Tensor | None = None  # symmetric contrastive loss, with `return_loss`
    logits_per_image: Tensor | None = None  # [B, N]
    logits_per_text: Tensor | None = None  # [N, B]
    image_embeds: Tensor | None = None  # [B, E]
    text_embeds: Tensor | None = None  # [N, E]
    region_embeds: Tensor | None = None  # [B, Q, E]
    pred_boxes: Tensor | None = None  # [B, Q, 4], cx, cy, w, h in 0..1 of the image
    description_embeds: Tensor | None = None  # [T, E]
    description_scores: Tensor | None = None  # [B, Q, T], cosines


class GrainModel(PreTrainedModel):
    """GRAIN, or the CLIP baseline with the same towers (`config.type`)."""

    config_class = GrainConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # Trainer would infer it from **kwargs
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["VisionBlock", "TextBlock", "DecoderLayer"]

    def __init__(self, config: GrainConfig) -> None:
        super().__init__(config)
        if config._attn_implementation not in (None, "sdpa"):
            raise ValueError(
                f"attn_implementation={config._attn_implementation!r}; expected 'sdpa' or none."
            )
        self.backbone = Backbone(config)
        if config.type == "grain":
            self.decoder = RegionDecoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initializes as the official code: torch's defaults in the image tower, CLIP's
        initialization in the text tower, Xavier in the decoder.

        Children are initialized before their parents. transformers does not call this for modules
        of remote code without own parameters, so the blocks are initialized with their towers.
        """
        init, config = nn.init, self.config
        if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm | nn.Embedding):
            module.reset_parameters()
        elif isinstance(module, Attention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)
            init.zeros_(module.out_proj.bias)
        elif isinstance(module, AttentionPool):
            init.normal_(module.probe, std=0.02)
        elif isinstance(module, VisionTransformer):
            if module.cls_token is not None:
                init.normal_(module.cls_token, std=1e-6)
            init.normal_(module.pos_embed, std=0.02)
        elif isinstance(module, Backbone):
            init.normal_(module.token_embedding.weight, std=0.02)
            init.normal_(module.positional_embedding, std=0.01)
            init.normal_(module.text_projection, std=config.text["width"] ** -0.5)
            if module.text_projection_bias is not None:
                init.zeros_(module.text_projection_bias)
            sigmoid = module.logit_bias is not None
            start = config.init_sigmoid_scale if sigmoid else config.init_logit_scale
            init.constant_(module.logit_scale, math.log(start))
            if sigmoid:
                init.constant_(module.logit_bias, config.init_logit_bias)
            if config.type == "clip":
                init.normal_(module.image_projection, std=config.vision["width"] ** -0.5)
            width, depth = config.text["width"], config.text["depth"]
            residual = (2 * depth * width) ** -0.5
            for block in module.transformer.resblocks:
                init.normal_(block.attn.in_proj_weight, std=width**-0.5)
                init.normal_(block.attn.out_proj.weight, std=residual)
                init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
                init.normal_(block.mlp.c_proj.weight, std=residual)
        elif isinstance(module, RegionDecoder):
            for projection in (module.img_proj, module.obj_proj):
                if projection is not None:
                    init.normal_(projection, std=config.decoder["width"] ** -0.5)
            for weight in module.transformer.decoder.layers.parameters():
                if weight.dim() == 2:
                    init.xavier_uniform_(weight)
            if config.region_logit_scale == "own":
                init.constant_(module.region_logit_scale, math.log(config.init_logit_scale))

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding of the text tower."""
        return self.backbone.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """The token embedding of the text tower."""
        self.backbone.token_embedding = value

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Tensor, **kwargs: bool | None
    ) -> BaseModelOutputWithPooling:
        """`pooler_output` [B, E]: the embedding of the image query (CLIP: the projected CLS token),
        not normalised. `last_hidden_state` [B, P, D]: all tokens of the image tower after its final
        norm (those of `CLIPModel` are before it).
        """
        _refuse_unsupported(kwargs)
        tokens = self.backbone.visual(pixel_values)
        return BaseModelOutputWithPooling(tokens, self._images(tokens)[0])

    @can_return_tuple
    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: bool | None
    ) -> BaseModelOutputWithPooling:
        """`pooler_output` [N, E], not normalised. `last_hidden_state` [N, L, D]: all tokens.

        `attention_mask`, which tokenizers return, has no effect: attention is causal up to the end
        of text, or texts fill all positions.
        """
        _refuse_unsupported(kwargs)
        return BaseModelOutputWithPooling(*self.backbone.encode_text(input_ids))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        description_ids: Tensor | None = None,
        return_loss: bool | None = None,
        **kwargs: bool | None,
    ) -> GrainOutput:
        """Computes all outputs that the inputs allow. Cosines and loss are float32, also under
        autocast.

        Regions or boxes are None where `config.regions_trained` or `config.boxes_trained` is False,
        as they are untrained; set it to True to train them.

        Args:
            input_ids: [N, L] texts to compare images with.
            pixel_values: [B, 3, S, S] images.
            attention_mask: without effect, as in `get_text_features`.
            description_ids: [T, L] texts to compare regions with.
            return_loss: compute the loss of image i and text i by `config.image_caption`, with the
                other pairs of this batch as negatives. Boxes and regions have no loss.

        Raises ValueError without inputs, for a loss of unequal numbers of images and texts, and for
        options of `CLIPModel` that this model does not have.
        """
        _refuse_unsupported(kwargs)
        given = (pixel_values, input_ids, description_ids)
        if not return_loss and all(value is None for value in given):
            raise ValueError("Give pixel_values, input_ids or description_ids.")
        image = regions = boxes = text = described = scores = logits = loss = None
        if pixel_values is not None:
            image, regions, boxes = self._images(self.backbone.visual(pixel_values))
            regions = regions if self.config.regions_trained else None
            boxes = boxes if self.config.boxes_trained else None
            image = F.normalize(image.float(), dim=-1)
            regions = None if regions is None else F.normalize(regions.float(), dim=-1)
        if input_ids is not None:
            text = F.normalize(self.backbone.encode_text(input_ids)[1].float(), dim=-1)
        if description_ids is not None:
            described = F.normalize(self.backbone.encode_text(description_ids)[1].float(), dim=-1)
        with _exact(self.backbone.logit_scale.device.type):
            if regions is not None and described is not None:
                scores = regions @ described.T
            if image is not None and text is not None:
                logits = self.logit_factor() * image @ text.T
                if self.logit_bias is not None:
                    logits = logits + self.logit_bias.float()
        if return_loss:
            if logits is None or logits.shape[0] != logits.shape[1]:
                raise ValueError(
                    "return_loss needs as many images as texts, pair by pair; got "
                    f"{None if image is None else len(image)} and "
                    f"{None if text is None else len(text)}."
                )
            loss = self._loss(logits)
        return GrainOutput(
            loss=loss,
            logits_per_image=logits,
            logits_per_text=None if logits is None else logits.T,
            image_embeds=image,
            text_embeds=text,
            region_embeds=regions,
            pred_boxes=boxes,
            description_embeds=described,
            description_scores=scores,
        )

    def _loss(self, logits: Tensor) -> Tensor:
        """Of a batch of images and their texts, [B, B], as `config.image_caption` says."""
        if self.logit_bias is not None:
            sign = 2 * torch.eye(len(logits), device=logits.device) - 1
            return -F.logsigmoid(sign * logits).sum() / len(logits)
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    @property
    def logit_bias(self) -> Tensor | None:
        """The parameter that is added to the logits of images and texts, or None."""
        return self.backbone.logit_bias

    @property
    def logit_scale(self) -> Tensor:
        """The parameter, a logarithm as in `CLIPModel`; bounded only in `logit_factor`."""
        return self.backbone.logit_scale

    def logit_factor(self) -> Tensor:
        """The factor on the cosines of images and texts."""
        return self._factor(self.backbone.logit_scale)

    def region_logit_factor(self) -> Tensor:
        """The factor on `description_scores` in training; with "shared", equal to `logit_factor`.

        Raises AttributeError for a model without regions.
        """
        own = self.config.region_logit_scale == "own"
        return self._factor(self.decoder.region_logit_scale) if own else self.logit_factor()

    def _factor(self, log_scale: Tensor) -> Tensor:
        # Straight-through, so that the gradient outside the bounds is not zero.
        log_scale = log_scale.float()
        clipped = log_scale.clamp(0.0, math.log(self.config.max_logit_scale))
        return (log_scale + (clipped - log_scale).detach()).exp()

    def _images(self, tokens: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Tokens of the image tower to image [B, E], regions [B, Q, E] and boxes [B, Q, 4]."""
        if self.config.type == "clip":
            visual = self.backbone.visual
            pooled = tokens[:, 0] if visual.cls_token is not None else visual.attn_pool(tokens)
            return pooled @ self.backbone.image_projection, None, None
        return self.decoder(tokens)
