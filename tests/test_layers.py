"""Rooms import only rooms of lower rows, as `docs/architecture.md` draws them; neighbours never."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import grain_jax

PACKAGE = Path(grain_jax.__file__).parent
TESTS = Path(__file__).parent
ROWS = (
    ("paths", "buckets", "disk", "terminal", "extras"),
    ("config",),
    ("boxes", "results", "runtime", "slow_compile", "cluster"),
    ("data", "losses"),
    ("models", "parallel", "zero_shot"),
    ("training", "inference", "formats", "visualize"),
    ("loading", "answers", "annotation", "inspection_report"),
    ("evaluation", "harnesses"),
    ("trainer", "benchmarking"),
    # Commands: the only ones that know arguments and exit statuses.
    (
        "train",
        "evaluate",
        "evaluate_clip_benchmark",
        "evaluate_compare",
        "evaluate_files",
        "evaluate_notes",
        "evaluate_crops",
        "evaluate_options",
        "evaluate_report",
        "evaluate_compositional",
        "calibrate",
        "evaluate_grounding",
        "evaluate_published",
        "evaluate_images",
        "evaluate_records",
        "evaluate_several",
        "evaluate_leaks",
        "evaluate_watch",
        "evaluate_support",
        "cache_options",
        "evaluate_vocabulary_free",
        "predict",
        "prepare",
        "prepare_inspect",
        "annotate",
        "export",
        "bench",
        "plan",
        "command_line",
        "__main__",
    ),
)
ROW = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
COMMANDS = len(ROWS) - 1


def modules() -> dict[str, Path]:
    """Every module by its name: "data.loader", "data" for the package itself."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the package that a file imports, anywhere in it, for types too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, module = name.partition(".")
            if package != "grain_jax":
                continue
            while module not in known:
                module = module.rpartition(".")[0]
            if module:
                yield module


def violations(known: dict[str, Path]) -> list[str]:
    """Imports that the rows do not allow, as "data.loader imports models.layers"."""
    wrong = []
    for module, path in known.items():
        room = module.partition(".")[0]
        if not module or module == "data.synthetic_birds.__main__":  # a command of its own
            continue
        for imported in imports(path, known):
            other = imported.partition(".")[0]
            allowed = other == room or ROW[other] < ROW[room]
            if ROW[room] in (0, COMMANDS):
                allowed |= ROW[other] == ROW[room]
            if not allowed:
                wrong.append(f"{module} imports {imported}")
    return sorted(set(wrong))


def test_every_room_has_a_row():
    assert {module.partition(".")[0] for module in modules()} - {""} <= set(ROW)


def test_rooms_import_lower_rows_only():
    assert violations(modules()) == []


def circles(known: dict[str, Path]) -> list[list[str]]:
    """Modules that import each other, directly or over others."""
    graph = {module: set(imports(path, known)) - {module} for module, path in known.items()}
    found, done = [], set()

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append([*trail[trail.index(module) :], module])
        elif module not in done:
            for imported in sorted(graph[module]):
                visit(imported, [*trail, module])
            done.add(module)

    for module in known:
        visit(module, [])
    return found


def test_no_modules_import_each_other():
    assert circles(modules()) == []


def test_reading_a_clip_takes_neither_orbax_nor_a_mesh():
    code = "import sys, grain_jax.loading.load; print(*sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    ).stdout.split()
    assert "grain_jax.formats.pretrained" in printed
    unwanted = ("orbax", "grain_jax.parallel", "grain_jax.training.checkpoint", "optax")
    assert [name for name in printed if name.startswith(unwanted)] == []


def test_only_one_room_knows_birds():
    """General code meets a `DataSource`; `data/source.py` chooses among them."""
    for module, path in modules().items():
        if module.startswith("data.synthetic_birds") or module == "data.source":
            continue
        for imported in imports(path, modules()):
            assert not imported.startswith("data.synthetic_birds"), module


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from grain_jax.evaluation import suite", ["evaluation.suite"]),
        ("def f():\n    import grain_jax.models.layers", ["models.layers"]),
        ("from grain_jax.config import TrainConfig", ["config"]),
        ("import jax\nfrom grain_jax import load", []),
    ],
)
def test_the_rule_sees_every_kind_of_import(tmp_path: Path, source: str, expected: list[str]):
    path = tmp_path / "module.py"
    path.write_text(source, encoding="utf-8")
    assert list(imports(path, modules())) == expected


def private_names(path: Path) -> Iterator[str]:
    """Private names of others that a test file imports or reaches into."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("grain_jax"):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "os"):
            names = [node.attr]
        else:
            continue
        for name in names:
            if name.startswith("_") and not name.startswith("__"):
                yield f"{path.relative_to(TESTS)}:{node.lineno} {name}"


def test_tests_use_public_names_only():
    found = [name for path in sorted(TESTS.rglob("*.py")) for name in private_names(path)]
    assert found == []


def test_a_private_name_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "TESTS", tmp_path)
    (tmp_path / "a.py").write_text("from grain_jax.a import _b\nself._c\nd._e(f.__name__)\n")
    assert [*private_names(tmp_path / "a.py")] == ["a.py:1 _b", "a.py:3 _e"]
