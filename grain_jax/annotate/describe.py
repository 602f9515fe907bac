"""Describe images by a multimodal model: a caption, the primary subject and its visual features.

  python -m grain_jax.annotate describe --images=DIR --endpoint=http://localhost:8000/v1 \
      --model=NAME --output=ANN

Of several endpoints, with commas between them, each gets images as fast as it answers. An endpoint
speaks the OpenAI protocol (vLLM, SGLang, `transformers serve`, hosted ones); its key, if it
wants one, is read from the environment variable GRAIN_JAX_API_KEY. A run that ended in any
way continues when the same command is given again. --dry_run counts requests, tokens and cost.
"""

import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from grain_jax.annotate.stage import Note, StageCommand, StageOptions, WorkerStage, run_command
from grain_jax.annotation.chat import ChatModel
from grain_jax.annotation.describe import REQUESTS_PER_IMAGE, Describe, DescribeSettings
from grain_jax.annotation.endpoint import API_KEY, Endpoint, EndpointSettings, same_address
from grain_jax.annotation.endpoint_pool import EndpointPool
from grain_jax.annotation.estimate import Tokens, estimate_tokens
from grain_jax.annotation.local_model import LocalModel
from grain_jax.annotation.prompts import read_prompts
from grain_jax.annotation.run import Annotator, Selection, StageReport
from grain_jax.command_line import (
    Count,
    OptionalPath,
    RequiredPath,
    default_is,
    integer,
    one_word,
)

DESCRIPTION = __doc__
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


def _addresses(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(","))
    if not all(found):
        raise ValueError(f"{text!r} should be an address, or several with commas between them")
    for one, other in itertools.combinations(found, 2):
        if same_address(one, other):
            twice = f"{one!r} is given twice" if one == other else f"{one!r} and {other!r} are one"
            raise ValueError(f"{twice}, and would get twice --concurrency")
    return found


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
    # address up to and with /v1; several of the same model share the images
    endpoint: Annotated[
        tuple[str, ...] | None, one_word(_addresses, "URL[,URL]"), default_is("none")
    ] = None
    # environment variable with the key of the endpoint
    api_key_env: Annotated[str, one_word(str, "NAME")] = API_KEY
    concurrency: Count = 32  # images asked about at once, at each endpoint, by each worker
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
    price_prompt: Price = None  # of a million tokens that are read
    price_completion: Price = None  # of a million tokens that are written


class DescribeCommand(StageCommand[Options]):
    """`annotate describe`."""

    stage, options, description = "describe", Options, DESCRIPTION

    def output(self, options: Options) -> Path:
        return options.output

    def check(self, options: Options, note: Note) -> None:
        if (options.price_prompt is None) != (options.price_completion is None):
            raise ValueError(
                "--price_prompt and --price_completion make the cost together; give both, or "
                "neither."
            )
        if options.backend == "transformers":
            _refuse_endpoint_options(options)
            LocalModel.check(_settings(options).sampling)
            return
        for where in _places(options):
            if Endpoint.exposes_key(where):
                note(
                    f"Note: the key in ${where.api_key_env} is sent to {where.url} without "
                    "encryption; give an address with https:// where others can read that network."
                )

    def open_stage(self, options: Options, note: Note) -> Describe:
        settings = _settings(options)
        if options.backend == "transformers":
            local = LocalModel(options.model, settings.sampling)
            return Describe(options.images, settings, lambda: local)
        return Describe(options.images, settings, functools.partial(_connect, options, note))

    def open_to_plan(self, options: Options, note: Note) -> Describe:
        def open_model() -> ChatModel:
            raise AssertionError("a dry run asks nothing")

        return Describe(options.images, _settings(options), open_model)

    def for_workers(self, options: Options, note: Note) -> WorkerStage:
        input_hash = self.open_to_plan(options, note).input_hash
        return WorkerStage(input_hash, functools.partial(self.open_stage, options))

    def uses_gpu(self, options: Options) -> bool:
        return options.backend == "transformers"

    def environment(self, options: Options) -> dict[str, str]:
        name = options.api_key_env
        return {name: os.environ[name]} if options.endpoint and name in os.environ else {}

    def planned(
        self, options: Options, stage: Annotator, selection: Selection
    ) -> Iterator[tuple[str, str]]:
        tokens = estimate_tokens(
            options.images, selection.images, _settings(options), options.output
        )
        basis = "as of the rows so far" if tokens.measured else "estimated"
        yield "images to describe", f"{len(selection.images):,}"
        yield "requests", f"{REQUESTS_PER_IMAGE * len(selection.images):,}"
        yield f"tokens to read, {basis}", f"{tokens.prompt:,}"
        yield f"tokens to write, {basis}", f"{tokens.completion:,}"
        yield from _cost(options, tokens)

    def done(
        self, options: Options, report: StageReport, measured: Mapping[str, float]
    ) -> Iterator[tuple[str, str]]:
        tokens = Tokens(report.totals["prompt_tokens"], report.totals["completion_tokens"], True)
        if tokens.prompt or tokens.completion:
            yield "tokens read", f"{tokens.prompt:,}"
            yield "tokens written", f"{tokens.completion:,}"
            yield from _cost(options, tokens)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(DescribeCommand(), arguments)


def _connect(options: Options, note: Note) -> ChatModel:
    endpoints = [Endpoint(where) for where in _places(options)]
    if len(endpoints) == 1:
        return endpoints[0]
    return EndpointPool(endpoints, bound=options.concurrency, note=note)


def _places(options: Options) -> list[EndpointSettings]:
    if options.endpoint is None:
        raise ValueError("--endpoint is missing; give its address, as http://localhost:8000/v1.")
    return [
        EndpointSettings(
            url=url,
            model=options.model,
            sampling=_settings(options).sampling,
            api_key_env=options.api_key_env,
            timeout=options.timeout,
            retries=options.retries,
        )
        for url in options.endpoint
    ]


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
    at_once = options.concurrency * len(options.endpoint or ())
    return DescribeSettings(
        model=options.model,
        prompts=read_prompts(options.prompts),
        sampling=sampling | (options.extra_body or {}),
        max_phrases=options.max_phrases,
        max_image_side=options.max_image_side,
        concurrency=1 if options.backend == "transformers" else at_once,
    )


def _cost(options: Options, tokens: Tokens) -> Iterator[tuple[str, str]]:
    if options.price_prompt is not None and options.price_completion is not None:
        read, written = options.price_prompt, options.price_completion
        cost = (tokens.prompt * read + tokens.completion * written) / 1e6
        yield "cost at these prices", f"{cost:,.2f}"
