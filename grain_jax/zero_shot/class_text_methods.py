"""Methods that need texts of the classes alone: no labelled, unlabelled or captioned images."""

from collections.abc import Mapping

from grain_jax.zero_shot import by_text, debiased, label_sets, weighted
from grain_jax.zero_shot.method import Method
from grain_jax.zero_shot.text_kinds import (
    ACCEPT,
    CONTEXTS,
    CUPL,
    NAMED_DESCRIPTIONS,
    NAMES,
    PAIRS,
    REGIONS,
    REJECT,
    SUBCLASSES,
    SYNONYMS,
    WAFFLE,
    controls_of,
)
from grain_jax.zero_shot.waffle import CONTROLS

MENON = "Menon & Vondrick 2023, arXiv 2210.07183"
ROTH = "Roth et al. 2023, arXiv 2306.07282"
# What tables call each of `waffle.CONTROLS`.
TITLES = {
    "shared": "shared random",
    "scrambled": "scrambled",
    "random": "random",
    "swapped": "swapped",
}


def _controls() -> dict[str, Method]:
    """By name and description, and by description alone, with texts that a control chose."""
    methods = {}
    for control in CONTROLS:
        named, whole, regions = controls_of(control)
        title = TITLES[control]
        methods[f"{control}_named_description"] = Method(
            f"name + {title} description", ROTH, frozenset({named}), by_text.by_mean_cosine(named)
        )
        methods[f"{control}_description"] = Method(
            f"{title} description",
            ROTH,
            frozenset({whole}),
            by_text.by_descriptions_of(whole, regions),
            by_text.every_alpha,
            optional_texts=frozenset({regions}),
        )
    return methods


SWAPPED_REGIONS = controls_of("swapped")[2]
CLASS_TEXT_METHODS: Mapping[str, Method] = {
    "named_description": Method(
        "name + description",
        MENON,
        frozenset({NAMED_DESCRIPTIONS}),
        by_text.by_mean_cosine(NAMED_DESCRIPTIONS),
    ),
    "cupl": Method(
        "CuPL",
        "Pratt et al. 2023, arXiv 2209.03320",
        frozenset({CUPL}),
        by_text.by_mean_embedding(CUPL),
    ),
    "waffle": Method("WaffleCLIP", ROTH, frozenset({WAFFLE}), by_text.by_mean_cosine(WAFFLE)),
    **_controls(),
    "name_and_swapped_regions": Method(
        "name + swapped regions",
        ROTH,
        frozenset({NAMES, SWAPPED_REGIONS}),
        by_text.by_name_and_regions_of(SWAPPED_REGIONS),
        by_text.mixed_alphas,
        regions=True,
        prompt_ensembling=True,
    ),
    "autoclip": Method(
        "AutoCLIP",
        "Metzen et al. 2024, arXiv 2309.16414",
        frozenset({NAMES}),
        weighted.by_weighted_templates,
    ),
    "perceptionclip": Method(
        "PerceptionCLIP",
        "An et al. 2024, arXiv 2308.01313",
        frozenset({CONTEXTS}),
        weighted.by_name_in_contexts,
        unit="log_probability",
    ),
    "wca_regions": Method(
        "WCA on regions",
        "Li et al. 2024, arXiv 2406.02915",
        frozenset({NAMES, REGIONS}),
        weighted.by_weighted_regions,
        regions=True,
    ),
    "chils": Method(
        "CHiLS",
        "Novack et al. 2023, arXiv 2302.02551",
        frozenset({NAMES, SUBCLASSES}),
        label_sets.by_subclasses,
        unit="other",
        prompt_ensembling=True,
    ),
    "fudd": Method(
        "FuDD",
        "Esfandiarpoor & Bach 2024, arXiv 2311.07593",
        frozenset({NAMES, PAIRS}),
        label_sets.by_pairs,
        unit="other",
        prompt_ensembling=True,
    ),
    "loki": Method(
        "Loki",
        "Roberts et al. 2023, arXiv 2307.12226",
        frozenset({NAMES}),
        label_sets.by_label_distance,
        unit="other",
        prompt_ensembling=True,
    ),
    "conse": Method(
        "ConSE",
        "Norouzi et al. 2014, arXiv 1312.5650",
        frozenset({NAMES}),
        label_sets.by_combined_names,
        prompt_ensembling=True,
    ),
    "synonyms": Method(
        "most frequent synonym",
        "Parashar et al. 2024, arXiv 2401.12425",
        frozenset({SYNONYMS}),
        by_text.by_mean_embedding(SYNONYMS),
    ),
    "roboshot": Method(
        "RoboShot",
        "Adila et al. 2024, arXiv 2309.04344",
        frozenset({NAMES, REJECT}),
        debiased.by_name_without_directions,
        optional_texts=frozenset({ACCEPT}),
        prompt_ensembling=True,
    ),
}
