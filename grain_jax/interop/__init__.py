"""Parameters under other names: the official code, later Hugging Face."""
