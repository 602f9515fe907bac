"""Zero-shot, retrieval and grounding on cached embeddings, and the report."""
