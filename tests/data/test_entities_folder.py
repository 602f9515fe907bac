"""Flickr30k Entities given where labelled images or records belong."""

import pytest
from grounding_files import entity, save_image, write_entities

from grain_jax.data.classification.folders import load_zero_shot
from grain_jax.data.tfds_records import RecordSource


@pytest.fixture
def entities(tmp_path):
    root = tmp_path / "flickr30k"
    write_entities(root, "1", ["[/EN#1/people A man] stands ."], [entity("1", 1, 1, 9, 9)])
    save_image(root / "images" / "1.jpg")
    return root


def test_labelled_images_are_asked_for_and_the_commands_named(entities):
    with pytest.raises(ValueError, match="Flickr30k Entities as published") as caught:
        load_zero_shot(entities)
    message = str(caught.value)
    assert f"evaluate grounding --format=flickr30k_entities --data={entities}`" in message
    assert f"prepare --from=flickr30k_entities --input={entities}`" in message


def test_records_are_asked_for(entities):
    with pytest.raises(ValueError, match="prepare --from=flickr30k_entities"):
        RecordSource(entities, "train")


def test_a_set_that_happens_to_have_such_classes_is_read(entities):
    (entities / "labels.csv").write_text("file,label\nimages/1.jpg,man\nimages/2.jpg,dog\n")
    save_image(entities / "images" / "2.jpg")
    assert len(load_zero_shot(entities).source) == 2
