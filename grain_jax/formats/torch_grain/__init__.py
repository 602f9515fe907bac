"""The files of a Hugging Face model folder; copied into each export, where they stand alone."""
