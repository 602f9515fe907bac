"""Weights from a folder, a file or the hub: as a model to use, or as the start of a run."""
