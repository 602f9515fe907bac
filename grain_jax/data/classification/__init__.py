"""Labelled images as people have them: class folders, tables of labels, texts of classes."""
