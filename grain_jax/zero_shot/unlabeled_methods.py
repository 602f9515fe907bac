"""Methods that are fitted to images without labels, those that are tested unless others are given;
and two of the same papers that need none: ReCLIP's projection, and the score less that of generic
images.
"""

from collections.abc import Mapping

from grain_jax.zero_shot import (
    learned_vectors,
    priors,
    prompt_weights,
    propagation,
    pseudo_labels,
    transclip,
)
from grain_jax.zero_shot.method import Method
from grain_jax.zero_shot.text_kinds import NAMES

WORD_BIAS = "Liusie et al. 2023, arXiv 2309.04992"
RECLIP = "Hu et al. 2024, arXiv 2308.03793"
BY_NAME, UNLABELED = frozenset({NAMES}), frozenset({"unlabeled"})

UNLABELED_METHODS: Mapping[str, Method] = {
    "zpe": Method(
        "ZPE",
        "Allingham et al. 2023, arXiv 2302.06235",
        BY_NAME,
        prompt_weights.zpe,
        needs=UNLABELED,
    ),
    "prior_matching": Method(
        "prior matching",
        WORD_BIAS,
        BY_NAME,
        priors.prior_matching,
        needs=UNLABELED,
    ),
    "without_generic": Method(
        "name - generic images",
        WORD_BIAS,
        BY_NAME,
        priors.without_generic,
        needs=frozenset({"bank"}),
    ),
    "zlap": Method(
        "ZLaP",
        "Stojnic et al. 2024, arXiv 2404.04072",
        BY_NAME,
        propagation.zlap,
        needs=UNLABELED,
        unit="other",
    ),
    "reclip_projection": Method(
        "ReCLIP projection", RECLIP, BY_NAME, propagation.reclip_projection
    ),
    "reclip_propagation": Method(
        "ReCLIP propagation",
        RECLIP,
        BY_NAME,
        propagation.reclip_propagation,
        needs=UNLABELED,
        unit="other",
    ),
    "transclip": Method(
        "TransCLIP",
        "Zanella et al. 2024, arXiv 2406.01837",
        BY_NAME,
        transclip.transclip,
        needs=UNLABELED,
    ),
    "inmap": Method(
        "InMaP",
        "Qian et al. 2023, arXiv 2310.19752",
        BY_NAME,
        learned_vectors.inmap,
        needs=UNLABELED,
    ),
    "dpa": Method(
        "DPA pseudo-labels",
        "Ali et al. 2025, arXiv 2408.08855",
        BY_NAME,
        pseudo_labels.dpa,
        needs=UNLABELED,
    ),
    "top16": Method(
        "top-16 prototypes",
        "as GRIP, Menghini et al. 2023, arXiv 2306.01669",
        BY_NAME,
        pseudo_labels.top_prototypes,
        needs=UNLABELED,
    ),
    "cluster_vote": Method(
        "cluster vote",
        "as S3A, Zhang et al. 2024, arXiv 2308.12960",
        BY_NAME,
        pseudo_labels.cluster_vote,
        needs=UNLABELED,
    ),
    "head": Method(
        "head",
        "with the objective of POUF, Tanwisuth et al. 2023, arXiv 2305.00350",
        BY_NAME,
        learned_vectors.head,
        needs=UNLABELED,
    ),
}
