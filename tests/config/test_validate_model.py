"""A model is checked by itself, without a run around it."""

import pytest

from grain_jax.config import ModelConfig
from grain_jax.config.validation import validate_model


def test_a_model_is_checked_without_data_or_a_run():
    model = ModelConfig()
    validate_model(model)
    model.image_size = 230  # between patches: evaluated, and refused only by training
    validate_model(model)
    model.text.width, model.dtype = 500, "float16"  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"model\.dtype"):
        validate_model(model)
    model.dtype, model.text.context_length = "bfloat16", 0
    with pytest.raises(ValueError, match=r"model\.text\.context_length: given 0, expected at l"):
        validate_model(model)
    model.text.context_length = 77
    model.vision.patch_size = 256
    with pytest.raises(ValueError, match=r"(?s)vision\.patch_size.*text\.width"):
        validate_model(model)
