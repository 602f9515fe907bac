"""Tests of composition: captions that differ in a word or in its place, and their images."""
