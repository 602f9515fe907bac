"""Labelled images, and captions of other images, of the sets of a suite."""

import pytest
from labelled_looks import measured, write_images
from plain_text import plain

from grain_jax import evaluate

SUITE = """
methods = ["name", "gda", "x_more"]

[[images]]
name = "colours"
support = "labelled"
shots = 4
bank = "records"
crops = 2

[[images]]
name = "others"
bank = "records"
"""


def test_a_set_of_a_suite_has_images_of_its_own(run, images, support, bank, tmp_path, capsys):
    """The figures are those of the same images given on the command line; a bank is read once."""
    write_images(tmp_path / "others", 3, start=400)
    file = tmp_path / "mine.toml"
    file.write_text(SUITE, encoding="utf-8")
    status, report, results = measured(run, f"--suite={file}", f"--cache={tmp_path / 'cache'}")
    assert status == 0
    notes = plain(capsys.readouterr().err)
    assert notes.count("bank: 3 of 15 images have no caption") == 1
    assert "others: 1 method is left out: gda needs two labelled images or more" in notes
    given = [f"--data={images}", f"--support={support}", "--shots=4", f"--bank={bank}"]
    _, alone, same = measured(run, *given, "--methods=name,gda,x_more", "--cache=none")
    assert {"colours/gda", "colours/x_more", "others/x_more"} <= results.keys()
    assert "others/gda" not in results
    assert {name: results[name] for name in same} == pytest.approx(same)
    for name in ("support", "bank"):
        assert report["zero_shot_sets"]["colours"][name] == alone[name]
    assert "support" not in report["zero_shot_sets"]["others"]
    capsys.readouterr()
    _, _, by_name = measured(run, f"--suite={file}", "--methods=name", "--cache=none")
    assert set(by_name) < set(results)
    notes = plain(capsys.readouterr().err)
    assert "colours: none of the methods looks at its support, which is unread; " in notes
    assert "gda, tip_x, " in notes
    assert "colours: none of the methods looks at random crops, so its" in notes
    assert "wca, wca_cupl do." in notes
    assert "bank: 3 of 15" not in notes


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('support = "labelled"\n', "", "shots of 'colours' goes with support; give both"),
        ("shots = 4", "shots = 0", "shots of 'colours' should be at least 1"),
        ("shots = 4", "shots = 4\nsupport_seed = -1", "support_seed of 'colours' should be 0"),
        ('"labelled"', '"labeled"', "labeled' of its support; did you mean '"),
        (
            '"labelled"',
            '"colours"',
            "9 of 9 images of the set are among the labelled images of its support",
        ),
        ('"labelled"', '"owls"', "its support has images of classes like 'owl'"),
        (
            'bank = "records"',
            'bank = "records"\nbank_split = "bare"',
            "captions as its bank, or another bank_split.",
        ),
        ('bank = "records"', 'bank = "records"\nbank_split = "other"', "Set 'colours' of suite"),
    ],
)
def test_what_a_suite_cannot_mean_is_refused(
    before, after, message, run, images, support, bank, tmp_path, capsys
):
    write_images(tmp_path / "others", 3, start=400)
    write_images(tmp_path / "owls", 2, start=500, looks={"owl": "red", "wren": "blue"})
    file = tmp_path / "mine.toml"
    file.write_text(SUITE.replace(before, after, 1), encoding="utf-8")
    assert evaluate.main([f"--checkpoint={run}", f"--suite={file}"]) == 2
    assert message in plain(capsys.readouterr().err)


def test_with_a_suite_labelled_images_are_written_in_its_file(run, support, tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_text(SUITE, encoding="utf-8")
    given = [f"--checkpoint={run}", f"--suite={file}", f"--support={support}"]
    assert evaluate.main(given) == 2
    assert "--support is of one set; write it under the set in the suite's file" in plain(
        capsys.readouterr().err
    )
