"""Model formats of other code: the official GRAIN code, Hugging Face, open_clip."""
