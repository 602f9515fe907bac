"""Detectors: models that find texts, or example images, in images."""
