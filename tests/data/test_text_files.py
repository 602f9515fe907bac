import json

import pytest

from grain_jax.data import text_files
from grain_jax.data.text_files import read_texts, split_entry

PROMPTS = """# Prompts

About `classes` and `templates`.

## CIFAR10

```bash
classes = ['cat']
templates = ['a {}.']
```

## EuroSAT

```bash
classes = [
    'forest',
    "brushland or shrubland",  # in another order than the folders
]

templates = [
    'a centered satellite photo of {}.',
]
```

## Code

```python
classes = __import__('os').listdir('.')
templates = [['several'], 'names']
```

## Torn

```
classes = ['cat'
```
"""


def save(path, content) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def refused(source, message, role=""):
    with pytest.raises(ValueError, match=message):
        read_texts(source, role)


def test_an_existing_path_has_no_entry(tmp_path):
    listed = save(tmp_path / "set #1/c#.txt", "cat\n")
    keyed = save(tmp_path / "set #1/l.json", {"c#": ["sharp"], "d": ["flat"]})
    save(tmp_path / "set #1/l.json#d", "no JSON")
    assert read_texts(listed) == ["cat"]
    assert read_texts(f"{keyed}#c#") == ["sharp"]
    assert split_entry(f"{keyed}#d") == (f"{keyed}#d", "")  # as it is, if there is such a file
    assert split_entry("gone #1/x.json#d") == ("gone #1/x.json#d", "")
    refused(f"{listed}#key", "'key' cannot be taken")
    refused(str(tmp_path / "set #2/l.json#d"), "There is no file .*set #2/l.json#d")


def test_only_line_ends_separate_lines(tmp_path):
    content = "\ufeff cat \r\n\r\nbig\u2028dog\x0b\x85x\rfox\t \n"
    path = save(tmp_path / "l.TXT", content.encode())
    assert read_texts(path) == ["cat", "big\u2028dog\x0b\x85x", "fox"]
    refused(save(tmp_path / "t.txt", "cat\nn1\tdog\n"), "Line 2 .* has a tab")
    assert read_texts(save(tmp_path / "u.txt", "cat\nköter\n".encode("utf-16"))) == ["cat", "köter"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": ["x"], "b": {"c": 1, "c": 2}}', "'c' appears twice"),
        ('{"a": NaN}', "NaN is not a value"),
        ('["a",]', "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('["\\ud83d"]', "half a character"),
        ("[" + "9" * 5_000 + "]", "not valid JSON"),
        ('["café"]'.encode("latin-1"), "not text in UTF-8: line 1 .* 0xe9. Save it as UTF-8"),
        ('["a"]'.encode("utf-16-be"), "zero byte"),
        ("", "not valid JSON"),
    ],
)
def test_damaged_json_is_refused(tmp_path, content, message):
    refused(save(tmp_path / "t.json", content), message)


def test_files_that_are_not_text_are_refused(tmp_path, monkeypatch):
    refused(str(tmp_path), "is a folder, and a file is needed")
    (tmp_path / "a.json").write_text("[]")
    refused(str(tmp_path), "is needed, such as 'a.json' in it")
    refused(save(tmp_path / "t.yaml", "- a"), "end in .txt, .json or .md")
    monkeypatch.setattr(text_files, "MAX_BYTES", 10)
    refused(save(tmp_path / "t.json", ["long enough"]), "larger than 10 bytes")


def test_entries_are_found_in_other_case_and_similar_ones_named(tmp_path):
    path = save(tmp_path / "t.json", {"eurosat": ["{c}"], "dtd": ["{}"], "DTD": ["x {}"]})
    assert read_texts(f"{path}#EuroSAT") == ["{c}"]
    assert read_texts(f"{path}#DTD") == ["x {}"]
    refused(f"{path}#Dtd", "no entry 'Dtd'")
    refused(f"{path}#euro_sat", "no entry 'euro_sat'; it has eurosat, ")


def test_prompts_in_markdown_are_lists_under_headings(tmp_path):
    path = save(tmp_path / "prompts.md", PROMPTS)
    assert read_texts(f"{path}#EuroSAT", "classes") == ["forest", "brushland or shrubland"]
    assert read_texts(f"{path}#eurosat", "templates") == ["a centered satellite photo of {}."]
    assert read_texts(f"{path}#Code", "templates") == [["several"], "names"]
    refused(f"{path}#Code", "not lists of texts in Python", "classes")  # nothing is run
    refused(f"{path}#Torn", "not lists of texts in Python", "classes")
    refused(path, "4 sections; pick one .* CIFAR10, EuroSAT", "classes")
    refused(f"{path}#Prompts", "no entry 'Prompts'", "classes")
    refused(f"{path}#EuroSAT", "class names and templates only")
    single = save(tmp_path / "one.md", "## A\n```\ntemplates = ['{}']\n```\n")
    assert read_texts(single, "templates") == ["{}"]
    refused(single, "0 lists called 'classes'", "classes")
    refused(save(tmp_path / "none.md", "# A\nclasses = ['a']\n"), "no section", "classes")
