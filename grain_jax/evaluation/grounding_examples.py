"""Held-out images with what a model's regions find in them, for a grounding sheet."""

import numpy as np

from grain_jax.boxes import cxcywh_to_xyxy
from grain_jax.data.records import Source, evenly_spaced
from grain_jax.data.transforms import FULL, decode_image
from grain_jax.evaluation.annotations import read_annotations
from grain_jax.inference.encoder import Encoder
from grain_jax.visualize.grounding_sheet import Example, NamedBox

MAX_POOL = 2_000  # descriptions of the split that a query may choose from


def grounding_examples(encoder: Encoder, source: Source, num_visualized: int) -> list[Example]:
    """Some images of a held-out source; each predicted box gets the description of the whole split
    that it matches best. Empty for a model without regions.
    """
    pool = read_annotations(
        evenly_spaced(source, MAX_POOL // 4), encoder.preprocessing, caption_source="original"
    )
    texts = list(dict.fromkeys(phrase.text for phrase in pool.phrases))[:MAX_POOL]
    chosen = evenly_spaced(source, num_visualized)
    features = encoder.images(chosen)
    if features.boxes is None or features.regions is None or not texts:
        return []
    truth = read_annotations(chosen, encoder.preprocessing, caption_source="original")
    texts = list(dict.fromkeys([*texts, *(phrase.text for phrase in truth.phrases)]))
    similarity = features.regions @ encoder.texts(texts, kind="description").T  # [N, Q, T]
    best, boxes = similarity.argmax(axis=2), cxcywh_to_xyxy(features.boxes)
    examples = []
    for i in range(len(chosen)):
        record = chosen[i]
        squashed = encoder.preprocessing.window(record.image) == FULL
        image = decode_image(record.image) if squashed else encoder.preprocessing(record.image)
        caption = record.captions[0].text if record.captions else record.id
        named: dict[tuple[float, ...], list[str]] = {}  # paraphrases share a box
        for phrase in truth.phrases:
            if phrase.image == i:
                for box in phrase.boxes:
                    named.setdefault(tuple(box.tolist()), []).append(phrase.text)
        true = [NamedBox(np.array(box), tuple(said)) for box, said in named.items()]
        predicted = [
            NamedBox(box, (texts[row],), float(similarity[i, query, row]))
            for query, (box, row) in enumerate(zip(boxes[i], best[i], strict=True))
        ]
        examples.append(Example(image, caption, tuple(true), tuple(predicted)))
    return examples
