"""Zero-shot image classification with the prompts that the model was evaluated with."""

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from PIL import Image
from transformers import ZeroShotImageClassificationPipeline

from .processing_grain import upright_rgb


class GrainZeroShotPipeline(ZeroShotImageClassificationPipeline):
    """As its base class, with these differences.

    Without `hypothesis_template` the prompts are the model's own; of several, the mean embedding
    stands for a label. Long texts are cut.
    """

    def check_model_type(self, supported_models: Any) -> None:
        """Every model that names this class in its configuration is meant for it."""

    def preprocess(
        self,
        image: Any,
        candidate_labels: Any = None,
        hypothesis_template: str | list[str] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Raises ValueError without labels, or for a template without one "{}"."""
        if isinstance(candidate_labels, str) or not candidate_labels:
            raise ValueError(f"candidate_labels must be a list of texts; got {candidate_labels!r}.")
        templates = hypothesis_template or self.model.config.templates
        templates = [templates] if isinstance(templates, str) else templates
        if odd := [template for template in templates if template.count("{}") != 1]:
            raise ValueError(f"A template needs one {{}} for the label; got {odd[0]!r}.")
        labels = [template.replace("{}", x) for template in templates for x in candidate_labels]
        # Before the base class does, which drops transparency and clips 16 bits.
        if isinstance(image, str) and Path(image).is_file():
            image = Image.open(image)
        if isinstance(image, Image.Image):
            image = upright_rgb(image)
        last = self.model.config.text["pooling"] == "last"
        settings = {"truncation": True, "padding": "max_length" if last else "longest"}
        inputs = super().preprocess(image, labels, "{}", timeout=timeout, tokenizer_kwargs=settings)
        inputs["candidate_labels"] = candidate_labels
        return inputs

    def _forward(self, model_inputs: Any) -> Any:
        labels, texts = model_inputs.pop("candidate_labels"), model_inputs.pop("text_inputs")[0]
        if isinstance(texts, list | tuple):  # a batch, whose pictures share their labels
            texts = texts[0]
        num_labels = len(labels[0] if isinstance(labels[0], list | tuple) else labels)
        output = self.model(**texts, **model_inputs)
        by_template = output.text_embeds.unflatten(0, (-1, num_labels))
        prompts = F.normalize(by_template.mean(dim=0), dim=-1)
        logits = self.model.logit_scale() * output.image_embeds @ prompts.T
        return {"candidate_labels": labels, "logits": logits}
