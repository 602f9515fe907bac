"""Code files of a Hugging Face model folder; each export has a copy, which runs on its own."""
