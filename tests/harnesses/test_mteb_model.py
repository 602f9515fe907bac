"""The model as mteb takes it: our embeddings, and mteb's accuracy is ours."""

import numpy as np
import pytest
from PIL import Image
from tiny_model import tiny_model, write_run

from grain_jax.data.records import Record, ZeroShotSet
from grain_jax.evaluation.zero_shot import evaluate_zero_shot
from grain_jax.harnesses.mteb_model import MtebModel
from grain_jax.inference.encoder import Encoder
from grain_jax.inference.inputs import ImageInputs

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
NAMES = ("red", "blue", "tail", "crest", "long bird")
TASK = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}


@pytest.fixture(scope="module")
def bundle():
    """Weights so large that images differ in what they are most similar to."""
    import dataclasses

    import jax

    loaded = tiny_model()
    params = jax.tree.map(lambda leaf: 6 * leaf if leaf.ndim > 1 else leaf, loaded.params)
    return dataclasses.replace(loaded, params=params)


@pytest.fixture(scope="module")
def model(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "tiny"
    write_run(bundle, folder)
    return MtebModel(str(folder), batch_size=8)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    found = []
    for i in range(30):
        pixels = rng.integers(0, 256, (3, 3 + i % 3, 3)).astype(np.uint8)
        found.append(Image.fromarray(pixels).resize((40 + i, 37)))
    return found


def test_embeddings_are_those_of_our_own_evaluation(bundle, model, images):
    encoder = Encoder.from_bundle(bundle)
    ours = encoder.images(ImageInputs(images[:3], bundle.preprocessing, skip=False)).image
    theirs = model.encode([{"image": images[:2]}, {"image": images[2:3]}], **TASK)
    np.testing.assert_allclose(theirs, ours, atol=1e-6)
    words = encoder.texts(["red", "blue", "tail"], kind="caption")
    batches = [{"text": ["red", "blue"]}, {"text": ["tail"]}]
    found = model.encode(batches, prompt_type="query", batch_size=2, **TASK)
    np.testing.assert_allclose(found, words, atol=1e-6)
    both = model.encode([{"text": ["red"], "image": images[:1]}], **TASK)
    np.testing.assert_allclose(both, words[:1] + ours[:1], atol=1e-6)
    cosines = ours.astype(np.float64) @ words.T
    np.testing.assert_allclose(model.similarity(ours, 3 * words), cosines, atol=1e-6)
    pairs = model.similarity_pairwise(torch.from_numpy(ours), words)
    np.testing.assert_allclose(pairs, np.diag(cosines), atol=1e-6)


def test_other_weights_are_another_revision(bundle, model, tmp_path):
    import dataclasses

    import jax

    other = dataclasses.replace(bundle, params=jax.tree.map(lambda leaf: leaf + 1, bundle.params))
    write_run(other, tmp_path / "tiny")
    again = MtebModel(tmp_path / "tiny", step=7)
    assert (again.name, model.name) == ("grain_jax/tiny", "grain_jax/tiny")
    assert again.revision != model.revision
    assert len(model.revision) == 12


def test_what_it_cannot_take_is_named(model, tmp_path):
    with pytest.raises(ValueError, match="A batch holds audio; this model takes images and texts"):
        model.encode([{"audio": [b""]}], **TASK)
    with pytest.raises(ValueError, match="the task has no inputs"):
        model.encode([], **TASK)
    with pytest.raises(ValueError, match="device='cuda' is PyTorch's"):
        MtebModel(tmp_path, device="cuda")


class Drawn:
    """Images with labels, as a `Source`."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index, /):
        pixels = np.asarray(self.images[index])
        return Record(id=f"{index}", image=pixels, label=self.labels[index])


@pytest.mark.filterwarnings("ignore")
def test_the_accuracy_that_mteb_measures_is_ours(bundle, model, images):
    mteb = pytest.importorskip("mteb", reason='pip install -e ".[mteb]" (docs/evaluation.md)')
    datasets = pytest.importorskip("datasets")
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification

    labels = [NAMES[i * i % len(NAMES)] for i in range(len(images))]

    class Task(AbsTaskZeroShotClassification):
        metadata = TaskMetadata(
            name="DrawnZeroShot",
            description="Drawn images of 5 classes.",
            reference=None,
            dataset={"path": "none", "revision": "1"},
            type="ZeroShotClassification",
            category="i2t",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="accuracy",
            modalities=["text", "image"],
        )
        input_column_name = "image"

        def load_data(self, *args, **kwargs):
            features = datasets.Features(
                {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
            )
            columns = {"image": images, "label": labels}
            split = datasets.Dataset.from_dict(columns, features=features)
            self.dataset, self.data_loaded = datasets.DatasetDict({"test": split}), True

        def get_candidate_labels(self):
            return [f"a photo of a {name}" for name in NAMES]

    found = mteb.evaluate(model, Task(), cache=None, co2_tracker=False, show_progress_bar=False)
    judged = found.task_results[0].get_score()
    dataset = ZeroShotSet(
        "drawn", Drawn(images, labels), NAMES, templates=("a photo of a {}",), descriptions={}
    )
    answers = []
    results = evaluate_zero_shot(
        Encoder.from_bundle(bundle),
        dataset,
        alphas=(1.0,),
        methods=("name",),
        on_scores=lambda m, a, start, scores, labels: answers.extend(scores.argmax(1).tolist()),
    )
    ours = next(r.value for r in results if r.method == "name")
    assert len(set(answers)) >= 2
    assert 0 < ours < 1
    assert ours == pytest.approx(judged, abs=1e-12)
    assert found.model_name == "grain_jax/tiny"
    assert found.model_revision == model.revision
