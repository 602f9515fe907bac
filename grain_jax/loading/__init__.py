"""Load weights from a folder, a file or the hub, for inference or to start a run."""
