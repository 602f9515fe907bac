"""Flax modules: layers, towers, decoder, and the two models (GRAIN and the CLIP baseline)."""
