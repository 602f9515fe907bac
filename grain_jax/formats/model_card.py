"""README.md of an exported folder: the model, its data, metrics and limits."""

from collections.abc import Sequence

from grain_jax.data.source import DataSource, data_source
from grain_jax.formats.format import TrainingRun
from grain_jax.formats.parity import Difference
from grain_jax.models.bundle import ModelBundle
from grain_jax.models.learned import what_lacks
from grain_jax.zero_shot.calibration import Calibration

_FRONT = """\
---
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags:
- {tag}
# license: none is stated yet. Choose one that your training data allows before you publish.
---
"""

_USE = """\
## Use

Needs `torch`, `pillow` and `transformers` 5. The code of the model is in this folder, hence
`trust_remote_code`; read it first.

```python
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model="{folder}", trust_remote_code=True)
print(classify("photo.jpg", candidate_labels=["{first}", "{second}"]))
{by_description}```

The prompts and the preprocessing of the model's own evaluation are the defaults.

```python
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{folder}", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("{folder}", trust_remote_code=True)
image = Image.open("photo.jpg")
inputs = processor(images=image, text=["{caption}"]{more}, return_tensors="pt")
with torch.no_grad():
    output = model(**inputs)
print(output.logits_per_image)
{print_regions}```
"""

_DESCRIBED = """\
described = {{"{first}": ["{of_first}"], "{second}": ["{of_second}"]}}
print(classify("photo.jpg", descriptions=described, alpha=0.5))  # half whole image, half regions
"""

_REGIONS = """\
boxes = processor.boxes_in_pixels(output.pred_boxes, [image])
print(boxes[0])  # [{queries}, 4]: left, top, right, bottom of each region
print(output.description_scores)  # [1, {queries}, 1]: cosine of each region with each description
"""


def model_card(
    loaded: ModelBundle,
    run: TrainingRun,
    differences: Sequence[Difference],
    *,
    dtype: str,
    calibration: Calibration | None = None,
) -> str:
    """Markdown with front matter, filled from the model and its run, without a license.

    Args:
        differences: of the outputs of the export from those of the model.
        dtype: of the exported weights.
        calibration: what the pipeline of the export uses.
    """
    config, grain = loaded.config, loaded.config.model.type == "grain"
    found = loaded.has_regions and loaded.has_boxes  # else region outputs are None
    data = data_source(config.data, image_size=config.model.image_size)
    first, second = data.example_texts.labels  # in the vocabulary of the model
    of_first, of_second = data.example_texts.descriptions
    described = _DESCRIBED.format(
        first=first, second=second, of_first=of_first, of_second=of_second
    )
    use = _USE.format(
        folder="FOLDER_OR_REPOSITORY",
        first=first,
        second=second,
        by_description=described if loaded.has_regions else "",
        caption=data.example_texts.caption,
        more=', descriptions=["a red crest"]' if found else "",
        print_regions=_REGIONS.format(queries=config.model.decoder.num_queries) if found else "",
    )
    parts = [
        _FRONT.format(tag="grain" if grain else "clip") + f"\n# {config.name}\n",
        _model_description(loaded, trained_here=bool(run.num_images)) + "\n",
        use,
        "## Data\n\n" + _data(loaded, run, data) + "\n",
        "## Metrics\n\n" + (run.metrics or "None were measured.\n"),
        "## Limits\n\n"
        + "\n".join(f"- {limit}" for limit in _limits(loaded, data, calibration))
        + "\n",
        "## How exact this copy is\n\n" + _exactness(differences, dtype=dtype) + "\n",
    ]
    return "\n".join(parts)


def _model_description(loaded: ModelBundle, *, trained_here: bool) -> str:
    model = loaded.config.model
    size = f"{model.image_size} px in patches of {model.vision.patch_size}"
    towers = (
        f"an image tower of depth {model.vision.depth} and width {model.vision.width}, a text "
        f"tower of depth {model.text.depth} and width {model.text.width}"
    )
    if model.type == "clip":
        trained = f" Trained with {_contrast(loaded)}." if trained_here else ""
        return f"A CLIP-like model in the layout of GRAIN: images of {size}; {towers}.{trained}"
    decoder = model.decoder
    return (
        "GRAIN ([arXiv 2412.04429](https://arxiv.org/abs/2412.04429)): a CLIP-like model whose "
        f"{decoder.num_queries} region queries say where a description is in the image. "
        f"Images of {size}; {towers}, a decoder of depth {decoder.depth} and width "
        f"{decoder.width}. "
        + (f"This one has no {lacking}. " if (lacking := what_lacks(loaded.learned)) else "")
        + (
            f"Trained with grain_jax, with {_contrast(loaded)}, and converted from JAX."
            if trained_here
            else "Converted by grain_jax."
        )
    )


def _contrast(loaded: ModelBundle) -> str:
    sigmoid = loaded.config.loss.image_caption == "sigmoid"
    kind = "sigmoid (as SigLIP)" if sigmoid else "softmax (as CLIP)"
    return f"contrast of images and captions by {kind}"


def _data(loaded: ModelBundle, run: TrainingRun, source: DataSource) -> str:
    config = loaded.config
    if not run.num_images:
        return (
            f"The weights were read from `{run.name}`, not trained here. Before you publish this "
            "copy, state what they were trained on and under which terms."
        )
    length = f"for {loaded.step:,} steps of batch {config.batch_size:,}, seed {config.seed}"
    return source.origin(num_images=f"{run.num_images:,}", length=length)


def _limits(loaded: ModelBundle, source: DataSource, calibration: Calibration | None) -> list[str]:
    config, spec = loaded.config, loaded.preprocessing
    model, data = config.model, config.data
    shape = "squashed to a square" if spec.resize == "squash" else "cut to their centre square"
    limits = [
        f"Images are {shape} of {spec.image_size} px; things smaller than a few "
        f"patches of {model.vision.patch_size} px are not recognized.",
        f"Texts are truncated to {data.caption_length} tokens, descriptions of regions to "
        f"{data.description_length}.",
        "Scores of classes are a softmax over the given labels: they always sum to 1, also where "
        "no label is right" + _calibrated(calibration),
        "The model reproduces omissions and errors of the training texts about people and places; "
        "it was not examined for bias.",
    ]
    if model.type == "grain" and (lacking := what_lacks(loaded.learned)):
        alpha = "" if loaded.has_regions else " `alpha` is 1."
        limits.insert(2, f"It has no {lacking}: its outputs for them are None.{alpha}")
    elif model.type == "grain":
        limits.insert(
            2,
            f"Every image gets {model.decoder.num_queries} boxes, also where nothing "
            "matches, and none has a confidence: rank them by `description_scores`.",
        )
    limits = [*source.limits(), *limits]
    spec_of_tokenizer = loaded.tokenizer.spec()
    if spec_of_tokenizer["kind"] == "words":
        known = len(spec_of_tokenizer["words"])
        limits.append(
            f"Its vocabulary has {known} English words; all others become the same unknown word."
        )
    return limits


def _calibrated(calibration: Calibration | None) -> str:
    """The rest of a sentence about scores."""
    if calibration is None:
        return ", and are not calibrated."
    by = "name" if calibration.alpha is None else f"description with alpha={calibration.alpha:g}"
    parts = [
        (calibration.none_of_these, "`none_of_these` says where none is"),
        (calibration.label_sets, "`in_set` which labels to consider"),
        (calibration.seen_cosine, "`num_seen` how many descriptions a region shows"),
    ]
    said = ", ".join(text for fitted, text in parts if fitted is not None)
    others = "the temperature alone" if calibration.class_shift is None else "no calibration"
    return (
        f". By {by} they are calibrated for images like those of {len(calibration.classes)} "
        f"classes (`calibration` in `config.json`){': ' * bool(said)}{said}. Other classes and "
        f"texts get {others}, other methods and alphas none of it."
    )


def _exactness(differences: Sequence[Difference], *, dtype: str) -> str:
    worst = max(differences, key=lambda found: min(found.absolute, found.relative))
    inputs = " and ".join(dict.fromkeys(found.inputs for found in differences))
    text = (
        f"Computed in float32 on {inputs} inputs, no output differs from the JAX model's by more "
        f"than {min(worst.absolute, worst.relative):.1e} (`{worst.output}`; relative to the "
        "largest value, where that is above 1); `parity.json` lists all differences."
    )
    if dtype != "float32":
        text += f" The weights are rounded to {dtype}; `rounding` there lists the differences."
    return text
