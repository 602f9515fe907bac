"""Pure loss functions of arrays and masks."""
