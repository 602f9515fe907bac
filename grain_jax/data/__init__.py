"""Records, data sets, transforms, tokenizers, and batches as a function of the step."""
