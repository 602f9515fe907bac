"""The field's terms are used everywhere: no name or sentence falls back to a word of our own.

`docs/glossary.md` has the terms. What older runs and commands say is in `config/migration.py`, and
`CHANGELOG.md` is history.
"""

import re

import pytest
from places import REPOSITORY

ROOMS = ("grain_jax", "configs", "launch", "docs", "tests", ".ci", ".github")
SUFFIXES = {".py", ".md", ".svg", ".sh", ".yml", ".toml", ".html", ".css", ""}
HISTORY = {
    "grain_jax/config/migration.py",
    "grain_jax/formats/torch_grain/configuration_grain.py",
    "tests/config/test_cli.py",
    "tests/config/test_migration.py",
    "tests/test_older_files.py",
    "tests/test_words.py",
}
# Captions of a data set, a word that captions have, on which results rest, and a key of older runs.
DATA = {
    '"picture",',
    '"my {} picture",',
    '"a picture of one {} today",',
    '"pets/chance": 0.1,',
}
# What is never written -> what is.
WORDS = {
    r"pictures?\b": "image",
    r"\brate_factors?\b": "lr_multipliers",
    r"\bmax_bad_steps\b|\bbad_streak\b|\bbad_steps?\b": "nonfinite steps",
    r"\bstop_at_step\b": "max_steps_this_run",
    r"\bnum_pictures\b": "num_visualized",
    r"\bdescription_capacity\b": "description_capacity_factor",
    r"\bregion_score\b(?! is)": "region_aggregation",
    r"\bname_ensemble\b": "prompt_ensembling",
    r"\bduplicate_(captions|descriptions)=": "mask_duplicate_captions, mask_duplicate_descriptions",
    r"\bfaithful_loss\b": "official_loss",
    r"\b(model|config)\.kind\b": "model.type",
    r"\bdata\.(directory|world)\b": "data.data_dir, data.synthetic_birds",
    r"\b(checkpoint|evaluation|logging)\.every_steps\b": "..._interval_steps",
    r"\bWorldConfig\b|\bWorldSource\b": "SyntheticBirdsConfig, SyntheticBirdSource",
    r"told by\b|\bways of asking\b": "method",
    r"phrase@0\.5|\bceiling\b|\bhit_chance\b": "Acc@0.5, upper bound, expected recall",
    r"\bSeenText\b|\bview_xyxy\b|\bseen best\b|\bsurest\b": "GroundedText, crop_xyxy, ...",
    r"\bmin_cosine\b": "score_threshold",
    r"\bBadItem\b|\bBatchMaker\b": "InvalidRecordError, Collator",
    r"\bcame along\b|\bcomes along\b": "inherited",
    r"\barms\b|\btrial runs\b": "variants, ablations",
    r"\bof ours\b": "grain_jax's",
    r"\bgo(es)? on with\b": "continues, resumes",
    r"\bwhat is needed\b": "expected",
    r"\bshares? of\b": "fraction of",
    r"witness|strangeness": "in-distribution score, nonconformity score",
    r"(?<!by )\bchance\b": "random baseline, expected value, probability",
    r"\btold *(=(?!=)|:|\.\w)|\bin told\b|\(told\b": "what it is: found, noted, described",
    r" ± {|half width of": "the bounds of the interval",
}


def texts() -> list[tuple[str, str]]:
    found = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
    for room in ROOMS:
        found += [path for path in (REPOSITORY / room).rglob("*") if path.suffix in SUFFIXES]
    names = {path.relative_to(REPOSITORY).as_posix(): path for path in found if path.is_file()}
    return [
        (name, path.read_text(encoding="utf-8"))
        for name, path in sorted(names.items())
        if name not in HISTORY and "golden" not in name and "__pycache__" not in name
    ]


@pytest.mark.parametrize("pattern", WORDS)
def test_a_word_of_our_own_is_nowhere(pattern):
    lines = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if re.search(pattern, line, re.IGNORECASE) and line.strip() not in DATA
    ]
    assert not lines, f"Write {WORDS[pattern]!r}:\n" + "\n".join(lines)


def test_the_words_are_looked_for_where_they_would_be():
    names = [name for name, _ in texts()]
    assert len(names) > 250
    for expected in (
        "README.md",
        "grain_jax/train.py",
        "docs/use.md",
        "launch/slurm.sh",
        ".ci/run",
    ):
        assert expected in names
