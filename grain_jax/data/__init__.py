"""Records, the procedural world, transforms, tokenizers, and batches as a function of the step."""
