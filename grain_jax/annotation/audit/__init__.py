"""Faults of synthetic annotations: found, counted, and decided on."""
