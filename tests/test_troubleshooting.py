"""`docs/troubleshooting.md`: every message that it quotes as grain_jax's own is in the source."""

import ast
import re

import pytest
from places import REPOSITORY

PAGE = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (`.+?`) \|", re.MULTILINE)


def own_messages():
    """First cells of the tables under "Messages of grain_jax", without their backticks."""
    section = PAGE.partition("\n## Messages of grain_jax\n")[2].partition("\n## ")[0]
    return [cell.strip("`") for cell in ROW.findall(section)]


def strings_of(text):
    """Every string of a Python file; what is put into an f-string is a line break."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "\n" for part in node.values
            )
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            yield "\n".join(
                text for side in (node.left, node.right) for text in strings_of(ast.unparse(side))
            )


def strings():
    found = [
        text
        for path in sorted((REPOSITORY / "grain_jax").rglob("*.py"))
        for text in strings_of(path.read_text(encoding="utf-8"))
    ]
    launchers = (REPOSITORY / "launch").rglob("*.sh")
    return found + [line for path in launchers for line in path.read_text().splitlines()]


SOURCE = strings()


def is_said(message):
    """Whether one string of the source has all parts of the message, in their order."""
    parts = [re.escape(part.strip(" ")) for part in message.split("...")]
    pattern = re.compile(".*?".join(parts), re.DOTALL)
    return any(pattern.search(text) for text in SOURCE)


@pytest.mark.parametrize("message", own_messages())
def test_a_quoted_message_is_still_in_the_source(message):
    assert is_said(message)


def test_what_nobody_says_is_not_found():
    assert len(own_messages()) > 25
    assert not is_said("The moon is made of ... cheese")
    assert not is_said("devices; sizes must multiply to ... does not fit")  # in their order


def test_every_file_and_link_that_is_named_exists():
    for name in re.findall(r"`((?:tests|launch|docs|configs)/[\w/]+\.(?:py|sh|md))", PAGE):
        assert (REPOSITORY / name).exists(), name
    for page, _, heading in re.findall(r"\]\((\w+\.md)(#([\w-]+))?\)", PAGE):
        text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
        headings = [
            re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
            for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        ]
        assert not heading or heading in headings, (page, heading)
