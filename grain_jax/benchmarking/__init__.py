"""What training costs: synthetic batches, counted operations, measured times, other codes."""
