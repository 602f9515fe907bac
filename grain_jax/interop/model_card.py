"""README.md of an exported folder: what the model is, was trained on, reaches, and cannot do."""

from collections.abc import Sequence
from pathlib import Path

from grain_jax.config import TrainConfig
from grain_jax.evaluation.curves import read_metrics
from grain_jax.evaluation.tables import headline, result_tables
from grain_jax.interop.parity import Difference
from grain_jax.training.checkpoint import FOLDER, LoadedModel, complete_steps, read_metadata
from grain_jax.training.learned import what_lacks

METRICS = "metrics.jsonl"

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
picture = Image.open("photo.jpg")
inputs = processor(images=picture, text=["{caption}"]{more}, return_tensors="pt")
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
boxes = processor.boxes_in_pixels(output.pred_boxes, [picture])
print(boxes[0])  # [{queries}, 4]: left, top, right, bottom of each region
print(output.description_scores)  # [1, {queries}, 1]: cosine of each region with each description
"""


def model_card(
    loaded: LoadedModel, run: Path, differences: Sequence[Difference], *, dtype: str
) -> str:
    """Markdown with front matter, filled from the run; `run` as given to `read_model`.

    The license is left to whoever publishes. `differences`: those of the export.
    """
    config, grain = loaded.config, loaded.config.model.kind == "grain"
    found = loaded.has_regions and loaded.has_boxes  # else there is nothing to ask of regions
    world = config.data.source == "world"
    # Words that the model knows: those of the world are few.
    first, second = (
        ("bird with a red crest", "bird with yellow legs") if world else ("dog", "bicycle")
    )
    of_first, of_second = ("a red crest", "yellow legs") if world else ("a wet nose", "two wheels")
    described = _DESCRIBED.format(
        first=first, second=second, of_first=of_first, of_second=of_second
    )
    use = _USE.format(
        folder="FOLDER_OR_REPOSITORY",
        first=first,
        second=second,
        by_description=described if loaded.has_regions else "",
        caption=config_caption(config),
        more=', descriptions=["a red crest"]' if found else "",
        print_regions=_REGIONS.format(queries=config.model.decoder.num_queries) if found else "",
    )
    parts = [
        _FRONT.format(tag="grain" if grain else "clip") + f"\n# {config.name}\n",
        _what(loaded, ours=bool(_num_images(loaded, run))) + "\n",
        use,
        "## Data\n\n" + _data(loaded, run) + "\n",
        "## Metrics\n\n" + _metrics(loaded, run),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(loaded)) + "\n",
        "## How exact this copy is\n\n" + _exactness(differences, dtype=dtype) + "\n",
    ]
    return "\n".join(parts)


def config_caption(config: TrainConfig) -> str:
    """A text such as the model was trained on."""
    return "a bird with a red crest" if config.data.source == "world" else "a dog runs on grass"


def _what(loaded: LoadedModel, *, ours: bool) -> str:
    model = loaded.config.model
    size = f"{model.image_size} px in patches of {model.vision.patch_size}"
    towers = (
        f"an image tower of depth {model.vision.depth} and width {model.vision.width}, a text "
        f"tower of depth {model.text.depth} and width {model.text.width}"
    )
    if model.kind == "clip":
        return f"A CLIP-like model in the layout of GRAIN: pictures of {size}; {towers}."
    decoder = model.decoder
    return (
        "GRAIN ([arXiv 2412.04429](https://arxiv.org/abs/2412.04429)): a CLIP-like model whose "
        f"{decoder.num_queries} region queries say where a description is in the picture. "
        f"Pictures of {size}; {towers}, a decoder of depth {decoder.depth} and width "
        f"{decoder.width}. "
        + (f"This one has no {lacking}. " if (lacking := what_lacks(loaded.learned)) else "")
        + ("Trained with grain_jax and converted from JAX." if ours else "Converted by grain_jax.")
    )


def _data(loaded: LoadedModel, run: Path) -> str:
    config, data = loaded.config, loaded.config.data
    if not (num_images := _num_images(loaded, run)):
        return (
            f"The weights were read from `{run.name}`, not trained here. Whoever publishes this "
            "copy has to say what they were trained on, and under which terms."
        )
    count = f"{num_images:,}"
    length = f"for {loaded.step:,} steps of batch {config.batch_size:,}, seed {config.seed}"
    if data.source == "world":
        return (
            f"{count} drawn pictures of the procedural world of grain_jax (level "
            f"{data.world.level}, seed {data.world.seed}), made by code and free of any "
            f"photograph, {length}."
        )
    return (
        f"{count} pictures of the split `{data.train_split}` of the data set "
        f"`{Path(data.directory).name}`, {length}. The export knows no more of their origin: "
        "whoever publishes this model has to say where they come from, and under which terms."
    )


def _num_images(loaded: LoadedModel, run: Path) -> int:
    """That the run was trained on; 0 for weights that come from elsewhere."""
    checkpoints = run / FOLDER if (run / FOLDER).is_dir() else run
    if not complete_steps(checkpoints):
        return 0
    return int(read_metadata(checkpoints, loaded.step)["num_images"])


def _metrics(loaded: LoadedModel, run: Path) -> str:
    """The figures logged at the step of these weights."""
    if not _num_images(loaded, run):
        return "None were measured on the way here.\n"
    folder = run if (run / METRICS).exists() else run.parent
    logged = [entry for entry in read_metrics(folder / METRICS) if entry["step"] == loaded.step]
    results = {
        name: value for entry in logged for name, value in entry.items() if isinstance(value, float)
    }
    tables = result_tables(results)
    if not tables:
        return f"None were measured at step {loaded.step:,}.\n"
    sentence = headline(results)
    found = [f"**{sentence}**\n"] if sentence else []
    found.append(f"At step {loaded.step:,}, by the JAX model, as its run logged them.\n")
    return "\n".join([*found, *(table.markdown() for table in tables)])


def _limits(loaded: LoadedModel) -> list[str]:
    config, spec = loaded.config, loaded.preprocessing
    model, data = config.model, config.data
    shape = "squashed to a square" if spec.resize == "squash" else "cut to their centre square"
    limits = [
        f"Pictures are {shape} of {spec.image_size} px; what is smaller than a few patches of "
        f"{model.vision.patch_size} px of that is not seen.",
        f"Texts end after {data.caption_length} tokens, descriptions of regions after "
        f"{data.description_length}; the rest is cut off.",
        "Scores of classes are a softmax over the labels that are offered: they always sum to 1, "
        "also where no label is right, and are not calibrated.",
        "What the training texts leave out or get wrong about people and places, the model does "
        "too; it was not examined for bias.",
    ]
    if model.kind == "grain" and (lacking := what_lacks(loaded.learned)):
        alpha = "" if loaded.has_regions else " `alpha` is 1."
        limits.insert(2, f"It has no {lacking}: its outputs for them are None.{alpha}")
    elif model.kind == "grain":
        limits.insert(
            2,
            f"Every picture gets {model.decoder.num_queries} boxes, whatever it shows, and none "
            "comes with a confidence: rank them by `description_scores`.",
        )
    if data.source == "world":
        limits.insert(0, "It knows drawn birds only, and is of no use on photographs.")
    spec_of_tokenizer = loaded.tokenizer.spec()
    if spec_of_tokenizer["kind"] == "words":
        known = len(spec_of_tokenizer["words"])
        limits.append(f"It knows {known} English words; all others are the same unknown word.")
    return limits


def _exactness(differences: Sequence[Difference], *, dtype: str) -> str:
    worst = max(differences, key=lambda found: min(found.absolute, found.relative))
    inputs = " and ".join(dict.fromkeys(found.inputs for found in differences))
    text = (
        f"Computed in float32 on {inputs} inputs, no output differs from the JAX model's by more "
        f"than {min(worst.absolute, worst.relative):.1e} (`{worst.output}`; of the largest value, "
        "where that is above 1); all of them are in `parity.json`."
    )
    if dtype != "float32":
        text += f" The weights are rounded to {dtype}; `rounding` there says what that changes."
    return text
