"""Zero-shot image classification with the prompt that the model was evaluated with."""

from typing import Any

from transformers import ZeroShotImageClassificationPipeline


class GrainZeroShotPipeline(ZeroShotImageClassificationPipeline):
    """As its base class; without `hypothesis_template` the prompt is the model's own."""

    def check_model_type(self, supported_models: Any) -> None:
        """Every model that names this class in its configuration is meant for it."""

    def _sanitize_parameters(self, **kwargs: Any) -> Any:
        kwargs.setdefault("hypothesis_template", self.model.config.prompt)
        return super()._sanitize_parameters(**kwargs)
