"""A training run: opened and checked, evaluated on the way, stopped and resumed."""
