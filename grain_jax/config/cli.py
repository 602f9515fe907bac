"""Configurations from the command line, and to and from JSON."""

import ast
import contextlib
import dataclasses
import difflib
import importlib.util
import json
import re
import typing
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from grain_jax.config.schema import TrainConfig
from grain_jax.config.validation import leaves
from grain_jax.paths import expand_home

SHORT_NAMES = {"optim.lr": "optim.learning_rate"}  # understood on the command line too

BUILT_IN = {"demo": Path(__file__).parents[1] / "data" / "synthetic_birds" / "demo.py"}
TEXT_LISTS = [
    path for path, (_, declared) in leaves(TrainConfig()).items() if declared == tuple[str, ...]
]


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
        raise ValueError(f"--config={name}: {path!r} is no Python file; needed one ending in .py.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    if get_config is None:
        raise ValueError(f"{path} has no function get_config(variant); see configs/ for examples.")
    config = get_config(variant)
    if not isinstance(config, TrainConfig):
        raise ValueError(
            f"get_config of {path} returned a {type(config).__name__}, needed a "
            "grain_jax.config.TrainConfig."
        )
    return config


def parse_arguments(
    arguments: Sequence[str],
    flag_values: flags.FlagValues,
    *,
    default: str = "demo",
    note: Callable[[str], None] = lambda text: None,
) -> TrainConfig:
    """Parses `--config=...`, overrides `--config.a.b=...` and the flags of `flag_values`.

    `arguments` is without the program's name. Of a setting that is given more than once the last
    counts, as scripts append to a command of their own; `note` then says so. Raises ValueError in
    one line for anything mistyped, and for two files or other flags of which one would be lost.
    """
    name = default
    others = []
    _check_repeated([_in_full(argument) for argument in arguments], note)
    pending = iter(_in_full(argument) for argument in arguments)
    for argument in pending:
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument):
            name = next(pending, "") if match[1] is None else match[1]
        else:
            others.append(argument)
        if match := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            _check_path(match[1])
        if match := re.fullmatch(r"--?config\.([^=]*)(?:=(.*))?", argument, re.DOTALL):
            path, given = match[1], match[2]
            if path in TEXT_LISTS and (given := next(pending, None) if given is None else given):
                others[-1] = f"--config.{path}={texts_as_typed(path, given)!r}"
            elif path in TEXT_LISTS and given is not None:
                others[-1] = f"--config.{path}=()"
    config = load_config(name)
    argv = ["train", *others]
    config_flags.DEFINE_config_dataclass("config", config, flag_values=flag_values, sys_argv=argv)
    try:
        rest = flag_values(argv)
    except flags.Error as error:
        raise ValueError(str(error)) from error
    if len(rest) > 1:
        raise ValueError(f"Unexpected argument {rest[1]!r}; options start with --.")
    config = typing.cast(TrainConfig, flag_values["config"].value)
    for path, (value, declared) in leaves(config).items():
        _assign(config, path, _as_declared(value, declared))
    return config


def texts_as_typed(path: str, given: str) -> tuple[str, ...]:
    """The texts of a list on the command line: one as it is, or all of them as `("a","b")`.

    Raises ValueError for a comma without quotes, which may part two texts or belong to one (folders
    have commas in their names), and for a list that cannot be read.
    """
    quoted = given.strip()[:1] in tuple("([\"'")
    if not quoted and "," not in given:
        return (given,)
    if quoted:
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(given.strip())
            values = (value,) if isinstance(value, str) else value
            if isinstance(values, tuple | list) and all(isinstance(v, str) for v in values):
                return tuple(values)
    bare = given.strip("()[] ").replace('"', "").replace("'", "")
    several = ",".join(f'"{part.strip()}"' for part in bare.split(",") if part.strip())
    raise ValueError(
        f"--config.{path}={given}: needed one text without a comma, or quotes around each of them. "
        f"Several: --config.{path}='({several},)'. One with a comma in it: "
        f"--config.{path}='(\"{bare}\",)'."
    )


def config_to_json(config: TrainConfig) -> str:
    """Every setting, indented, in the order of the classes."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def config_from_json(text: str) -> TrainConfig:
    """The configuration that `config_to_json` wrote; an absent field takes its default.

    Raises ValueError that names a field this version does not have.
    """
    return _from_dict(TrainConfig, json.loads(text), "")


def differences(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[object, object]]:
    """Dotted path -> (old, new) value of each setting that differs."""
    before, after = leaves(old), leaves(new)
    return {
        path: (before[path][0], value)
        for path, (value, _) in after.items()
        if before[path][0] != value
    }


def _from_dict(kind: type, values: dict[str, Any], prefix: str) -> Any:
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


def _as_declared(value: object, declared: object) -> object:
    """`value` with whole numbers as floats where a float is declared: 35 for 35.0, (1, 0) too."""
    if declared is float and type(value) is int:
        return float(value)
    if typing.get_origin(declared) is tuple and isinstance(value, tuple):
        return tuple(_as_declared(item, typing.get_args(declared)[0]) for item in value)
    return value


def _assign(config: object, path: str, value: object) -> None:
    *sections, name = path.split(".")
    for section in sections:
        config = getattr(config, section)
    setattr(config, name, value)


def _check_repeated(arguments: Sequence[str], note: Callable[[str], None]) -> None:
    given: dict[str, str] = {}
    for position, argument in enumerate(arguments):
        if not (match := re.fullmatch(r"--?([\w.]+)(?:=(.*))?", argument, re.DOTALL)):
            continue
        flag, value = match[1], match[2]
        if value is None:  # "--flag value", or a switch, of which "--noflag" is the other side
            following = arguments[position + 1 : position + 2]
            value = "" if not following or following[0].startswith("--") else following[0]
            if re.match(r"no(config\.|\w+$)", flag):
                flag, value = flag.removeprefix("no"), "false"
        if given.setdefault(flag, value) == value:
            continue
        both = f"--{flag} is given twice, {given[flag]!r} and {value!r}"
        if not flag.startswith("config."):
            raise ValueError(f"{both}; give one of them.")
        note(f"{both}: the last one counts")
        given[flag] = value


def _in_full(argument: str) -> str:
    for short, name in SHORT_NAMES.items():
        argument = re.sub(rf"^(--?config\.){re.escape(short)}(?==|$)", rf"\g<1>{name}", argument)
    return argument


def _check_path(path: str) -> None:
    known = list(leaves(TrainConfig()))
    if path in known:
        return
    inside = [name for name in known if name.startswith(path + ".")]
    if inside:
        raise ValueError(
            f"--config.{path} is a section; set one of its fields: {', '.join(inside)}."
        )
    raise ValueError(f"Unknown setting --config.{path}.{_nearest(path, known)}")


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
        return f" Did you mean {candidates[0]}?"
    return f" It has: {', '.join(siblings)}." if siblings else ""


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))
