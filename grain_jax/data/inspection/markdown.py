"""The report of an inspection as a page of Markdown."""

from collections.abc import Iterator, Mapping, Sequence

from grain_jax.data.inspection.sections import Section, Table

Figures = Mapping[str, Sequence[str]]  # key of a section -> names of files beside the page


def markdown(title: str, sections: Sequence[Section], figures: Figures) -> str:
    """The report as Markdown; each with its figures."""
    return "\n".join(_markdown_lines(title, sections, figures)).rstrip() + "\n"


def _markdown_lines(title: str, sections: Sequence[Section], figures: Figures) -> Iterator[str]:
    yield f"# {_escaped(title)}"
    yield ""
    for section in sections:
        yield f"## {section.title}"
        yield ""
        for note in section.notes:
            yield f"- {_escaped(note)}"
        if section.notes:
            yield ""
        for table in section.tables:
            yield from _markdown_table(table)
            yield ""
        for name in figures.get(section.key, ()):
            yield f"![{section.title}]({name})"
            yield ""


def _markdown_table(table: Table) -> Iterator[str]:
    columns = len(table.rows[0]) if table.rows else len(table.header)
    header = table.header or ("",) * columns
    yield "| " + " | ".join(_escaped(cell) for cell in header) + " |"
    yield "| --- |" + (" ---: |" if table.numeric else " --- |") * (columns - 1)
    for row in table.rows:
        yield "| " + " | ".join(_escaped(cell) for cell in row) + " |"


def _escaped(text: str) -> str:
    """The text with what Markdown or HTML would take for markup escaped."""
    for character in "\\`*_[]<>|#":
        text = text.replace(character, f"\\{character}")
    return text
