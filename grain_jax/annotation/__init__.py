"""Stages that annotate images: descriptions by a multimodal model, boxes by a detector."""
