"""Images that are looked at and tested too."""

import numpy as np
import pytest
from toy_encoder import ToySource, bird_set

from grain_jax.data.records import Record
from grain_jax.evaluation.shared_images import HashedImages, refuse_shared


def test_drawn_images_of_other_shapes_are_other_images():
    wide, square = np.zeros((2, 8, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    tested = bird_set(source=ToySource(Record("square", square, label="red")))
    where = "images of --support"
    refuse_shared(HashedImages.of([Record("wide", wide)]), tested, where=where)
    with pytest.raises(ValueError, match="'square', there 'same', first"):
        refuse_shared(HashedImages.of([Record("same", square.copy())]), tested, where=where)
