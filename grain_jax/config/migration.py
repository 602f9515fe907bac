"""Settings under the names and values they had before 0.2: in stored runs, exports and flags.

Settings from JSON and the command line pass through here, and those that a Python config file
gives or sets; it cannot read one, or name a section, as it was called.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Now:
    """The path of a setting today, and the values that were spelled differently."""

    path: str
    values: Mapping[Any, Any] = field(default_factory=dict)


_MASKED = {"mask": True, "negative": False}
_DATASETS = {"world": "synthetic_birds", "records": "tfds"}

SETTINGS: dict[str, Now] = {
    "init": Now("pretrained"),
    "model.kind": Now("model.type"),
    "model.vision.init": Now("model.vision.initializer"),
    "model.description_capacity": Now("model.description_capacity_factor"),
    "loss.duplicate_captions": Now("loss.mask_duplicate_captions", _MASKED),
    "loss.duplicate_descriptions": Now("loss.mask_duplicate_descriptions", _MASKED),
    # Two bugs of the official code that are one variant now; a run with either has both.
    "loss.region_labels": Now("loss.variant", {"aligned": "corrected"}),
    "loss.empty_batch": Now("loss.variant", {"zero": "corrected", "nan": "official"}),
    "data.source": Now("data.dataset", _DATASETS),
    "data.directory": Now("data.data_dir"),
    "data.tokenizer": Now("data.tokenizer", {"world": "synthetic_birds"}),
    "data.world.level": Now("data.synthetic_birds.difficulty"),
    "data.world.num_train_images": Now("data.synthetic_birds.num_train_images"),
    "data.world.num_eval_images": Now("data.synthetic_birds.num_eval_images"),
    "data.world.seed": Now("data.synthetic_birds.seed"),
    "optim.lr": Now("optim.learning_rate"),
    "optim.decay": Now("optim.weight_decay_mask"),
    "optim.rate_factors": Now("optim.lr_multipliers"),
    "optim.accumulate": Now("optim.grad_cache_chunks"),
    "optim.max_bad_steps": Now("optim.max_consecutive_nonfinite"),
    "checkpoint.every_steps": Now("checkpoint.save_interval_steps"),
    "checkpoint.keep": Now("checkpoint.max_to_keep"),
    "evaluation.every_steps": Now("evaluation.eval_interval_steps"),
    "evaluation.region_score": Now(
        "evaluation.region_aggregation",
        {"descriptions": "max_over_queries", "queries": "max_over_descriptions"},
    ),
    "evaluation.name_ensemble": Now("evaluation.prompt_ensembling", {"cosine": "score"}),
    "evaluation.num_pictures": Now("evaluation.num_visualized"),
    "logging.every_steps": Now("logging.log_interval_steps"),
}
# Options of commands that are not settings.
OPTIONS: dict[str, Now] = {
    "prepare.on_error": Now("prepare.on_error", {"stop": "raise"}),
    "predict.by": Now("predict.method"),
    "predict.top": Now("predict.top_k"),
    "predict.min_cosine": Now("predict.score_threshold"),
}
# The older options of each command, as paths of the two tables above.
COMMANDS = {
    "evaluate": ("evaluation.region_score", "evaluation.name_ensemble"),
    "predict": ("predict.by", "predict.top", "predict.min_cosine"),
    "prepare": ("prepare.on_error",),
    "data.synthetic_birds": ("data.world.level",),
}
# Fields of the training state, and what checkpoints call them.
STATE = {
    "step": "step",
    "opt_state": "opt_state",
    "nonfinite_steps": "skipped",
    "consecutive_nonfinite": "bad_streak",
}
# Settings that no longer exist, with the values that asked for nothing.
REMOVED: dict[str, tuple[Any, ...]] = {
    "model.decoder.memory_position": ("none",),
    "stop_at_step": (0,),
}
REASONS = {
    "model.decoder.memory_position": "positions of the decoder's memory never improved a result; "
    "version 0.1.0 reads this model",
    "stop_at_step": "set max_steps_this_run, the number of steps of this process, not of the run",
}

# Keys of metrics.jsonl and of results, by their last part.
METRICS = {
    "chance": "random",
    "chance_R@1": "random_R@1",
    "box_recall_ceiling": "box_recall_upper_bound",
    "bad_steps": "nonfinite_steps",
    "bad_streak": "consecutive_nonfinite",
    "bad_batch_ids": "nonfinite_batch_ids",
    "bad_batch_index": "nonfinite_batch_index",
}


def migrate_metrics(logged: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics under today's keys."""
    renamed = {}
    for key, value in logged.items():
        prefix, slash, last = key.rpartition("/")
        renamed[prefix + slash + METRICS.get(last, last)] = value
    return renamed


def migrate(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings as JSON holds them, under today's names.

    What a stored run says of where one process stopped (`stop_at_step`) is left out. Raises
    ValueError for a removed setting that asked for something, and for an old name beside a new one.
    """
    result: dict[str, Any] = {}
    for path, value in _flat(stored):
        if path in REMOVED:
            if value not in REMOVED[path] and path != "stop_at_step":
                raise ValueError(f"{path} = {value!r} no longer exists: {REASONS[path]}.")
            continue
        now, value = migrate_one(path, value)
        *sections, name = now.split(".")
        inner = result
        for section in sections:
            inner = inner.setdefault(section, {})
        if now == "loss.variant" and inner.get(name) == "official":
            continue
        if inner.get(name, value) != value and now != "loss.variant":
            raise ValueError(f"{path} = {value!r} beside {now} = {inner[name]!r}; leave one out.")
        inner[name] = value
    return result


def migrate_one(path: str, value: Any) -> tuple[str, Any]:
    """Today's path and value of the setting `path`; both as given where nothing has changed."""
    now = SETTINGS.get(path) or OPTIONS.get(path)
    if now is None:
        return path, value
    return now.path, now.values.get(value, value) if isinstance(value, str) else value


def migrate_fields(
    given: Mapping[str, Any], fields: Collection[str], *, section: str
) -> dict[str, Any]:
    """The values `given` to a settings class with these `fields`, under today's names.

    `section`: the last part of the path of its settings, "" for those of the run. A name that is
    known to neither stays as it is. Raises ValueError as `migrate` does.
    """
    own = {path: path.rpartition(".")[2] for path in (*SETTINGS, *REMOVED)}
    own = {name: path for path, name in own.items() if _section(path) == section}
    result = {}
    for name, value in given.items():
        if name in fields:  # its values may have been spelled differently
            result[name] = migrate_one(own[name], value)[1] if name in own else value
    for name, value in given.items():
        if name in fields:
            continue
        path = own.get(name)
        if path is None:
            result[name] = value
            continue
        if path in REMOVED:
            if value not in REMOVED[path]:
                raise ValueError(f"{name} = {value!r} no longer exists: {REASONS[path]}.")
            continue
        today, value = migrate_one(path, value)
        today = today.rpartition(".")[2]
        if today == "variant" and value == "corrected":
            continue  # one of the two bugs was off: the other one decides
        if result.setdefault(today, value) != value:
            raise ValueError(
                f"{name} = {value!r} beside {today} = {result[today]!r}, as {name} is called now; "
                f"give {today} alone."
            )
    return result


def _section(path: str) -> str:
    return path.rpartition(".")[0].rpartition(".")[2]


def migrate_options(arguments: Sequence[str], command: str) -> list[str]:
    """The command line of a `command` with today's names and values of its older options.

    What follows "--" stays as it is.
    """
    older = {path.rpartition(".")[2]: path for path in COMMANDS[command]}
    result: list[str] = []
    value_of = ""  # the setting whose value is the next argument
    for position, argument in enumerate(arguments):
        if argument == "--":
            return [*result, *arguments[position:]]
        if value_of and not argument.startswith("--"):
            argument = migrate_one(value_of, argument)[1]
        value_of = ""
        name, equals, value = argument.partition("=")
        path = older.get(name[2:].replace("-", "_")) if name.startswith("--") else None
        if path is not None:
            now, value = migrate_one(path, value)
            value_of = "" if equals else path
            argument = f"--{now.rpartition('.')[2]}{equals}{value}"
        result.append(argument)
    return result


def renamed_to(name: str, fields: Collection[str] = ()) -> list[str]:
    """Today's paths of older settings, or sections of settings, that were called `name`.

    Only those of a class with these `fields`, where there are any.
    """
    found = {
        now.path.rsplit(".", 1)[0] if old.split(".")[-2:-1] == [name] else now.path
        for old, now in SETTINGS.items()
        if name in old.split(".")[-2:] and old != now.path and name not in now.path.split(".")
    }
    own = {path for path in found if path.rpartition(".")[2] in fields}
    return sorted(own or found)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found
