"""Texts with boxes as published benchmarks of grounding have them: readers of their files."""
