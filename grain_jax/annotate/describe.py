"""Describe images by a multimodal model: a caption, the primary subject and its visual features.

  python -m grain_jax.annotate describe --images=DIR --endpoint=http://localhost:8000/v1 \
      --model=NAME --output=ANN

The endpoint speaks the OpenAI protocol (vLLM, SGLang, `transformers serve`, hosted ones); its key,
if it wants one, is read from the environment variable GRAIN_JAX_API_KEY. A run that ended in any
way continues when the same command is given again. --dry_run counts requests, tokens and cost.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from rich.console import Console
from rich.table import Table
from tyro.conf import arg

from grain_jax.annotate.stage import StageOptions, run_and_report, selection_rows
from grain_jax.annotation.chat import ChatModel
from grain_jax.annotation.describe import REQUESTS_PER_IMAGE, Describe, DescribeSettings
from grain_jax.annotation.endpoint import API_KEY, Endpoint, EndpointSettings
from grain_jax.annotation.estimate import Tokens, estimate_tokens
from grain_jax.annotation.local_model import LocalModel
from grain_jax.annotation.prompts import read_prompts
from grain_jax.annotation.run import StageReport, plan_stage
from grain_jax.command_line import (
    Count,
    ExitStatus,
    NotParsed,
    OptionalPath,
    OptionalText,
    RequiredPath,
    default_is,
    integer,
    one_word,
    parse,
    status_of,
)

# Fields of a request that --extra_body cannot set: rows would be of another model than they say.
OWN_FIELDS = {"model", "messages", "stream", "response_format"}
OWN_FIELDS_ARE = (
    "--model, --prompts, the images and the form of an answer decide on it; leave it out"
)


def _number(text: str) -> float:
    """A number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"{text!r} should be a number of at least 0")
    return value


def _seconds(text: str) -> float:
    if not (value := _number(text)):
        raise ValueError(f"{text!r} should be more than 0 seconds")
    return value


def _whole(text: str) -> int:
    if (value := integer(text)) < 0:
        raise ValueError(f"{text!r} should be a whole number of at least 0")
    return value


def _extra_fields(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{text!r} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f'{text!r} should be a JSON object, as in {{"top_p": 0.9}}')
    if own := sorted(OWN_FIELDS & value.keys()):
        raise ValueError(f"{own[0]!r} cannot be set here, as {OWN_FIELDS_ARE}")
    return value


Whole = Annotated[int, one_word(_whole, "N")]
Price = Annotated[float | None, one_word(_number, "X"), default_is("unknown")]


@dataclass(frozen=True, kw_only=True)
class Options(StageOptions):
    """What `annotate describe` takes."""

    output: Annotated[RequiredPath, arg(metavar="ANN")]  # folder of annotations
    # what the model is called at the endpoint, on the hub, or its folder
    model: Annotated[str, one_word(str, "NAME")]
    # "transformers" loads the model in this process
    backend: Literal["endpoint", "transformers"] = "endpoint"
    # address up to and with /v1
    endpoint: OptionalText = None
    # environment variable with the key of the endpoint
    api_key_env: Annotated[str, one_word(str, "NAME")] = API_KEY
    concurrency: Count = 32  # images that are asked about at once
    timeout: Annotated[float, one_word(_seconds, "SECONDS")] = 120.0  # of a request
    retries: Whole = 6  # of a request that may succeed later
    # 0 for the likeliest answer
    temperature: Annotated[float, one_word(_number, "X")] = 0.0
    max_tokens: Count = 512  # of an answer
    # more fields of each request; null removes one
    extra_body: Annotated[
        dict[str, Any] | None, one_word(_extra_fields, "JSON"), default_is("none")
    ] = None
    # TOML file with other questions
    prompts: OptionalPath = None
    max_phrases: Count = 10  # visual features of an image
    max_image_side: Whole = 768  # pixels that larger images are shrunk to; 0: none
    # count images, requests, tokens and cost, and ask nothing
    dry_run: bool = False
    price_prompt: Price = None  # of a million tokens that are read
    price_completion: Price = None  # of a million tokens that are written


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    try:
        options = parse(Options, arguments, command="annotate describe", description=__doc__)
    except NotParsed as parsed:
        return parsed.status
    if options.dry_run:
        return _dry_run(options)
    return run_and_report(
        functools.partial(_open, options),
        options.spec(options.output),
        print_more=functools.partial(_print_tokens, options),
    )


def _open(options: Options) -> Describe:
    settings = _checked_settings(options)
    if options.backend == "transformers":
        local = LocalModel(options.model, settings.sampling)
        return Describe(options.images, settings, lambda: local)
    open_model: Callable[[], ChatModel] = functools.partial(Endpoint, _where(options))
    return Describe(options.images, settings, open_model)


def _checked_settings(options: Options) -> DescribeSettings:
    """Raises ValueError for options that do not fit together, before any model is opened."""
    if (options.price_prompt is None) != (options.price_completion is None):
        raise ValueError(
            "--price_prompt and --price_completion make the cost together; give both, or neither."
        )
    settings = _settings(options)
    if options.backend == "transformers":
        _refuse_endpoint_options(options)
        LocalModel.check(settings.sampling)
    elif Endpoint.exposes_key(where := _where(options)):
        Console(stderr=True).print(
            f"Note: the key in ${where.api_key_env} is sent to {where.url} without encryption; "
            "give an address with https:// where others can read that network.",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    return settings


def _where(options: Options) -> EndpointSettings:
    if options.endpoint is None:
        raise ValueError("--endpoint is missing; give its address, as http://localhost:8000/v1.")
    return EndpointSettings(
        url=options.endpoint,
        model=options.model,
        sampling=_settings(options).sampling,
        api_key_env=options.api_key_env,
        timeout=options.timeout,
        retries=options.retries,
    )


def _refuse_endpoint_options(options: Options) -> None:
    """Raises ValueError for what only an endpoint takes."""
    defaults = {each.name: each.default for each in dataclasses.fields(Options)}
    for name in ("endpoint", "api_key_env", "concurrency", "timeout", "retries"):
        if getattr(options, name) != defaults[name]:
            raise ValueError(
                f"--{name} is for --backend=endpoint, and --backend=transformers does not use it; "
                "leave one of them out."
            )


def _settings(options: Options) -> DescribeSettings:
    sampling = {"temperature": options.temperature, "max_tokens": options.max_tokens}
    return DescribeSettings(
        model=options.model,
        prompts=read_prompts(options.prompts),
        sampling=sampling | (options.extra_body or {}),
        max_phrases=options.max_phrases,
        max_image_side=options.max_image_side,
        concurrency=1 if options.backend == "transformers" else options.concurrency,
    )


def _dry_run(options: Options) -> int:
    try:
        stage = _open_nothing(options)
        selection = plan_stage(stage, options.spec(options.output))
        tokens = estimate_tokens(
            options.images, selection.images, _settings(options), options.output
        )
    except (ValueError, OSError, ImportError) as error:
        Console(stderr=True).print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
        return status_of(error)
    table = Table(title="Dry run", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, count in selection_rows(selection):
        table.add_row(name, f"{count:,}")
    table.add_row("images to describe", f"{len(selection.images):,}")
    table.add_row("requests", f"{REQUESTS_PER_IMAGE * len(selection.images):,}")
    basis = "as of the rows so far" if tokens.measured else "estimated"
    table.add_row(f"tokens to read, {basis}", f"{tokens.prompt:,}")
    table.add_row(f"tokens to write, {basis}", f"{tokens.completion:,}")
    _add_cost(options, tokens, table)
    Console().print(table)
    return ExitStatus.DONE


def _open_nothing(options: Options) -> Describe:
    """The stage without a model, for what it would do."""

    def open_model() -> ChatModel:
        raise AssertionError("a dry run asks nothing")

    return Describe(options.images, _checked_settings(options), open_model)


def _print_tokens(options: Options, report: StageReport, table: Table) -> None:
    tokens = Tokens(report.totals["prompt_tokens"], report.totals["completion_tokens"], True)
    if tokens.prompt or tokens.completion:
        table.add_row("tokens read", f"{tokens.prompt:,}")
        table.add_row("tokens written", f"{tokens.completion:,}")
        _add_cost(options, tokens, table)


def _add_cost(options: Options, tokens: Tokens, table: Table) -> None:
    if options.price_prompt is None or options.price_completion is None:
        return
    read, written = options.price_prompt, options.price_completion
    cost = (tokens.prompt * read + tokens.completion * written) / 1e6
    table.add_row("cost at these prices", f"{cost:,.2f}")
