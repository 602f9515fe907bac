"""What a training step costs: synthetic batches, counted operations, measured times."""
