"""Settings from the command line, and to and from JSON."""

import ast
import contextlib
import dataclasses
import difflib
import importlib.util
import json
import re
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from grain_jax.config.bounds import leaves
from grain_jax.config.migration import (
    REASONS,
    REMOVED,
    SETTINGS,
    migrate,
    migrate_one,
)
from grain_jax.config.schema import TrainConfig, UnknownSettingError
from grain_jax.paths import expand_home

# A field of a command's options: every setting as an option of its own, without a prefix.
SettingsOptions = Annotated[tyro.conf.FlagConversionOff[TrainConfig], tyro.conf.arg(name="")]

BUILT_IN = {"demo": Path(__file__).parents[1] / "data" / "synthetic_birds" / "demo.py"}
DECLARED = {path: declared for path, (_, declared) in leaves(TrainConfig()).items()}
SECTIONS = {path.rpartition(".")[0] for path in DECLARED} - {""}
TRUE, FALSE = ("true", "t", "1", "yes"), ("false", "f", "0", "no")


def load_config(name: str) -> TrainConfig:
    """The configuration of a Python file, `path.py[:variant]`, or of the built-in `demo[:variant]`.

    Raises ValueError for a file that is absent or gives no `TrainConfig`, or an unknown variant.
    """
    path, _, variant = name.partition(":")
    path = str(BUILT_IN[path]) if path in BUILT_IN else expand_home(path)
    if not Path(path).is_file():
        nearby = ", ".join(file.name for file in sorted(Path(path).parent.glob("*.py"))) or "none"
        raise ValueError(
            f"--config={name}: there is no file {path!r}. Python files beside it: {nearby}. "
            "Leave --config out for the built-in demo."
        )
    spec = importlib.util.spec_from_file_location(f"config_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config={name}: {path!r} is not a Python file, which ends in .py.")
    module = importlib.util.module_from_spec(spec)
    with _named(path):
        spec.loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    if get_config is None:
        raise ValueError(f"{path} has no function get_config(variant); see configs/ for examples.")
    with _named(path):
        config = get_config(variant)
    if not isinstance(config, TrainConfig):
        raise ValueError(
            f"get_config of {path} returned a {type(config).__name__}, expected a "
            "grain_jax.config.TrainConfig."
        )
    return config


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Errors about settings that do not exist, with the file and their names of today."""
    try:
        yield
    except (UnknownSettingError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_settings(
    arguments: Sequence[str],
    *,
    default: str = "demo",
    note: Callable[[str], None] = lambda text: None,
) -> tuple[TrainConfig, list[str]]:
    """The base configuration that `--config` names, and `arguments` as the parser takes them.

    A setting is spelled `--optim.learning_rate=3e-4` or, as before version 0.2,
    `--config.optim.learning_rate=3e-4`, with names and values of that time. Of one that is given
    twice the last counts, as scripts append to a command of their own; `note` says so. Raises
    ValueError in one line for an unknown setting, a value that can be read in two ways, and two
    base configurations.
    """
    bases: list[str] = []
    settings: dict[str, list[str]] = {}
    rest: list[str] = []
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        name, equals, value = argument.partition("=")
        given = [value] if equals else []
        if not name.startswith("-") or re.fullmatch(r"-[\d.].*", name):
            rest.append(argument)
            continue
        name = name.lstrip("-").replace("-", "_")
        if name == "config":
            bases += given or [pending.pop(0) if pending else ""]
            continue
        path, off = _path(name)
        if path is None and difflib.get_close_matches(name, ["config"], cutoff=0.7):
            raise ValueError(f"Unknown option --{name}. Did you mean --config?")
        if path is None:
            rest.append(argument)
            continue
        while not equals and pending and not re.match(r"--?[A-Za-z]", pending[0]):
            given.append(pending.pop(0))
            if typing.get_origin(DECLARED.get(path)) is not tuple:
                break
        if path in REMOVED:
            if given not in [[str(value)] for value in REMOVED[path]]:
                raise ValueError(f"--{path} no longer exists: {REASONS[path]}.")
            continue
        older = path
        path, values = _as_parsed(path, ["false"] if off else given)
        if older != path == "loss.variant" and settings.get(path) == ["official"]:
            continue  # two older settings, either of which makes it official
        if settings.setdefault(path, values) != values:
            before, after = (" ".join(words) for words in (settings[path], values))
            if typing.get_origin(DECLARED.get(path)) is tuple:
                raise ValueError(
                    f"--{path} is given twice, {before!r} and {after!r}; give one with all values: "
                    f"""--{path}='("FIRST","SECOND")'."""
                )
            note(f"--{path} is given twice, {before!r} and {after!r}: the last one counts")
            settings[path] = values
    if len(set(bases)) > 1:
        raise ValueError(f"--config is given twice, {bases[0]!r} and {bases[1]!r}; give one.")
    for path, values in settings.items():
        rest += [f"--{path}={values[0]}"] if len(values) == 1 else [f"--{path}", *values]
    return load_config(bases[0] if bases else default), rest


def config_to_json(config: TrainConfig) -> str:
    """Every setting, indented, in the order of the classes."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def config_from_json(text: str) -> TrainConfig:
    """The configuration that `config_to_json` of this or an older version wrote.

    An absent field takes its default. Raises ValueError that names a field this version does not
    have.
    """
    return _from_dict(TrainConfig, migrate(json.loads(text)), "")


def differences(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[object, object]]:
    """Dotted path -> (old, new) value of each setting that differs."""
    before, after = leaves(old), leaves(new)
    return {
        path: (before[path][0], value)
        for path, (value, _) in after.items()
        if before[path][0] != value
    }


def _path(name: str) -> tuple[str | None, bool]:
    """The setting that an option names, and whether it turns one off; None: another option.

    Raises ValueError for a setting that does not exist.
    """
    off = re.match(r"no_?(?=config\.)", name)
    path = name[off.end() :] if off else name
    if not path.startswith("config.") and "." not in path and path not in DECLARED:
        return (None, False) if path not in SETTINGS else (path, False)
    path = path.removeprefix("config.")
    if path in REMOVED:
        return path, off is not None
    if path in SECTIONS:
        inside = [known for known in DECLARED if known.startswith(path + ".")]
        raise ValueError(f"--{path} is a section; set one of its fields: {', '.join(inside)}.")
    if migrate_one(path, None)[0] not in DECLARED:
        raise ValueError(f"Unknown setting --{path}.{_nearest(path, [*DECLARED, *SETTINGS])}")
    return path, off is not None


def _as_parsed(path: str, given: list[str]) -> tuple[str, list[str]]:
    """Today's path, and its words as the parser reads them."""
    now, _ = migrate_one(path, None)
    words = [str(migrate_one(path, word)[1]) for word in given]
    declared = DECLARED[now]
    if declared is bool:
        word = words[0].lower() if words else "true"
        if word not in TRUE + FALSE:
            raise ValueError(f"--{now}: given {words[0]!r}, expected true or false.")
        return now, [str(word in TRUE)]
    if declared == tuple[str, ...]:
        return now, [text for word in words for text in _texts_as_typed(now, word)]
    if typing.get_origin(declared) is tuple and len(words) == 1:
        return now, [word for word in re.split(r"[\s,]+", words[0].strip("()[] ")) if word]
    return now, words


def _texts_as_typed(path: str, given: str) -> tuple[str, ...]:
    """The texts of a list on the command line: one as it is, or all of them as `("a","b")`.

    Raises ValueError for a comma without quotes, which may part two texts or belong to one (folders
    have commas in their names), and for a list that cannot be read.
    """
    quoted = given.strip()[:1] in tuple("([\"'")
    if not quoted and "," not in given:
        return (given,) if given else ()
    if quoted:
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(given.strip())
            values = (value,) if isinstance(value, str) else value
            if isinstance(values, tuple | list) and all(isinstance(v, str) for v in values):
                return tuple(values)
    bare = given.strip("()[] ").replace('"', "").replace("'", "")
    several = ",".join(f'"{part.strip()}"' for part in bare.split(",") if part.strip())
    raise ValueError(
        f"--{path}={given}: expected one text without a comma, or quotes around each of them. "
        f"Several: --{path}='({several},)'. One with a comma in it: --{path}='(\"{bare}\",)'."
    )


def _from_dict(kind: type, values: Mapping[str, Any], prefix: str) -> Any:
    types = {item.name: item.type for item in dataclasses.fields(kind)}
    built: dict[str, Any] = {}
    for name, value in values.items():
        if name not in types:
            raise ValueError(
                f"Unknown field {prefix + name!r} in the stored configuration."
                f"{_nearest(name, types)} It was written by another version of grain_jax."
            )
        declared = types[name]
        if dataclasses.is_dataclass(declared):
            assert isinstance(declared, type)
            built[name] = _from_dict(declared, value, f"{prefix}{name}.")
        elif typing.get_origin(declared) is tuple:
            built[name] = tuple(value)
        else:
            built[name] = value
    return kind(**built)


def _nearest(given: str, known: Collection[str]) -> str:
    """ "Did you mean ...?" by spelling, by the same last word elsewhere, or by initials (lr)."""
    section, _, last = given.rpartition(".")
    siblings = {
        name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section
    }
    others = {name.rpartition(".")[2]: name for name in known}
    candidates = [
        *(siblings[name] for name in difflib.get_close_matches(last, siblings, n=1)),
        *(name for short, name in siblings.items() if _initials(short) == last),
        *difflib.get_close_matches(given, known, n=1, cutoff=0.8),
        *([others[last]] if last in others else []),
        *(name for short, name in others.items() if not section and _initials(short) == last),
    ]
    if candidates:
        return f" Did you mean {migrate_one(candidates[0], None)[0]}?"
    return f" It has: {', '.join(siblings)}." if siblings else ""


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))
