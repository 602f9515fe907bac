"""Prompt templates: those of a file, and three lists that come with the package.

`imagenet_templates.txt` has the 80 of CLIP for ImageNet (github.com/openai/CLIP, MIT license, see
NOTICE). The official GRAIN evaluates every set with 46 of these, 23 of them as for birds.
"""

import functools
from importlib import resources

from grain_jax.data.classification.class_texts import check_templates
from grain_jax.data.records import DEFAULT_TEMPLATES
from grain_jax.data.text_files import read_texts

# Lines of `imagenet_templates.txt`, from 0, that the official evaluation takes.
_PLAIN = (0, 1, 3, 5, 11, 12, 13, 14, 16, 19, 20, 27, 29, 50, 51, 52, 53, 61, 63, 65, 69, 76, 77)
_OF_BIRDS = (
    *(4, 7, 8, 17, 21, 22, 23, 26, 28, 30, 31, 32, 33, 34, 35, 36, 38, 39, 45, 47, 48, 62, 75),
)
_ENDINGS = dict.fromkeys(_PLAIN, ",") | dict.fromkeys(_OF_BIRDS, ", a type of bird,")
TEMPLATE_LISTS = ("single", "imagenet", "official")


@functools.cache
def template_list(name: str) -> tuple[str, ...]:
    """One of `TEMPLATE_LISTS`: "single", "a photo of a {}."; "imagenet", CLIP's 80; "official",
    the 46 of the official GRAIN for every set.
    """
    if name == "single":
        return DEFAULT_TEMPLATES
    packed = resources.files("grain_jax.data.classification") / "imagenet_templates.txt"
    lines = tuple(packed.read_text(encoding="utf-8").splitlines())
    if name == "imagenet":
        return lines
    return tuple(lines[i].removesuffix(".") + _ENDINGS[i] for i in sorted(_ENDINGS))


def read_templates(source: str) -> tuple[str, ...]:
    """One of `TEMPLATE_LISTS` by its name, or the templates of a file. Raises ValueError where
    there is no such file, and unless each template has exactly one "{}".
    """
    if source in TEMPLATE_LISTS:
        return template_list(source)
    try:
        given = read_texts(source, "templates")
    except ValueError as error:
        if "/" in source or "." in source:
            raise
        known = ", ".join(TEMPLATE_LISTS)
        raise ValueError(f"{error} Templates that come with grain_jax: {known}.") from error
    return check_templates(given, source)
