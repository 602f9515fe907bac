"""Labelled images in class folders or with a table of labels, and the texts of their classes."""
