"""Example texts of a data set, for a model card."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ExampleTexts:
    """Two class names, a description of each, and a caption."""

    labels: tuple[str, str] = ("dog", "bicycle")
    descriptions: tuple[str, str] = ("a wet nose", "two wheels")
    caption: str = "a dog runs on grass"
