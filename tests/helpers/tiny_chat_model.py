"""A real multimodal model of `transformers`, tiny, that knows one conversation."""

from pathlib import Path
from typing import Any

import pytest

# Turns with their roles, and images where they stand in them.
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %}"
    "{{ p['text'] }}{% endif %}{% endfor %}{% endif %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def write_chat_model(folder: Path, conversation: list[dict[str, Any]]) -> Path:
    """A LLaVA of two tiny towers with a tokenizer of bytes.

    It was trained until it says the turns of the assistant in `conversation` by heart; to anything
    else it says noise.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = _tokenizer(transformers)
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    vision = transformers.CLIPVisionConfig(
        **tower, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = transformers.LlamaConfig(
        **tower,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
        bos_token_id=tokenizer.convert_tokens_to_ids("<s>"),
        eos_token_id=tokenizer.convert_tokens_to_ids("</s>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<pad>"),
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config)
    side = {"height": 28, "width": 28}
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=side)
    processor = transformers.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model is slower with more
    _teach(model, processor, conversation)
    torch.set_num_threads(threads)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _teach(model: Any, processor: Any, conversation: list[dict[str, Any]]) -> None:
    """Trains until every token that the model should say is the likeliest one."""
    import torch

    inputs = processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, return_tensors="pt"
    )
    tokens = inputs["input_ids"][0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(1000):
        logits = model(**inputs).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, tokens[1:])
        if (torch.softmax(logits, -1).gather(1, tokens[1:, None]) > 0.7).all():
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError(f"not learned: loss {loss.item():.3f}")


def _tokenizer(transformers):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ("<pad>", "<s>", "</s>", "<image>")
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        extra_special_tokens={"image_token": "<image>"},
        chat_template=TEMPLATE,
    )
