"""A model behind an OpenAI-compatible endpoint (vLLM, SGLang, `transformers serve`, hosted)."""

import datetime
import email.utils
import json
import os
import random
import ssl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from grain_jax.annotation.chat import Answer, Cancelled, RequestFailed
from grain_jax.annotation.connection import (
    Broken,
    Connection,
    NotConnected,
    Response,
    is_loopback,
    proxy_of,
)
from grain_jax.annotation.run import StageStopped
from grain_jax.data.captions import clean_text

API_KEY = "GRAIN_JAX_API_KEY"  # environment variable
MAX_WAIT = 300.0  # seconds that a server's Retry-After is followed
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds of the back-off
MAX_TOKENS = 2**40  # of an answer, as the server counts them; more is not a count
MAX_FAILED = 20  # requests one after the other, without an answer to any between them
PROBE_SECONDS = 10.0
TRANSIENT = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
# How JSON is asked for, best first; the next where the server refuses one.
STRUCTURES = ("json_schema", "json_object", "none")


@dataclass(frozen=True)
class EndpointSettings:
    """Where the model is, and how it is asked."""

    url: str  # up to and with /v1
    model: str
    sampling: Mapping[str, Any] = field(default_factory=dict)  # temperature, max_tokens, ...
    api_key_env: str = API_KEY
    timeout: float = 120.0  # seconds a request
    retries: int = 6


class _Transient(Exception):
    """The same request may succeed later; `wait`: seconds that the server asked for."""

    def __init__(self, message: str, wait: float | None = None, *, reached: bool = True) -> None:
        super().__init__(message)
        self.wait, self.reached = wait, reached


class _Refused(Exception):
    """The server has read the request and will not answer it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Unusable(StageStopped):
    """Nothing can be asked of an endpoint.

    Args:
        reason: why.
        advice: what to do where the run stops for it.
        lasts: whether it stays so, however long one waits.
    """

    def __init__(self, reason: str, advice: str, *, lasts: bool = False) -> None:
        super().__init__(f"{reason} {advice}")
        self.reason, self.lasts = reason, lasts


class NoAnswer(RequestFailed):
    """A request was not answered, each time it was tried, by an endpoint that answers others."""


class Endpoint:
    """A `ChatModel` over HTTP. Raises ValueError for an address that cannot be one."""

    def __init__(self, settings: EndpointSettings) -> None:
        self.url, self._key = self.check(settings)
        self._settings, self.name = settings, settings.model
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            self._headers["Authorization"] = f"Bearer {self._key}"
        https = self.url.startswith("https:")
        self._context = ssl.create_default_context() if https else None
        self._lock = threading.Lock()  # for what follows
        self._connections: list[Connection] = []
        self._free: list[Connection] = []
        self._cancelled = threading.Event()
        self._structure = 0  # position in STRUCTURES
        self._answered = 0  # requests
        self._failed_since = 0  # requests that failed for good since the last answer

    @staticmethod
    def check(settings: EndpointSettings) -> tuple[str, str]:
        """The address and the key, "" for none. Raises ValueError where one cannot be right."""
        key = os.environ.get(settings.api_key_env, "").strip()
        if key and not (key.isascii() and key.isprintable()):
            raise ValueError(
                f"The key in ${settings.api_key_env} has characters that no key has; set it again."
            )
        url = _checked_url(settings.url)
        proxy = proxy_of(url)
        if key and proxy is not None and url.startswith("http:"):
            raise ValueError(
                f"The key in ${settings.api_key_env} would be sent to the proxy {proxy.hostname} "
                f"that http_proxy names, as {url} has no https. Give an address with https://; or "
                "set no_proxy for its host, or remove the key where the endpoint needs none."
            )
        return url, key

    @staticmethod
    def exposes_key(settings: EndpointSettings) -> bool:
        """Whether the key goes to another machine without encryption."""
        url, key = Endpoint.check(settings)
        return bool(key) and url.startswith("http:") and not is_loopback(urlsplit(url).hostname)

    def cancel(self) -> None:
        """See `ChatModel.cancel`."""
        self._cancelled.set()
        with self._lock:
            for connection in self._connections:
                connection.end()

    def close(self) -> None:
        """Closes the connections."""
        for connection in self._connections:
            connection.close()

    def ask(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        schema: dict[str, Any],
        schema_name: str,
        others_left: bool = False,
    ) -> Answer:
        """See `ChatModel.ask`. A transient failure is tried again up to `retries` times.

        others_left: another endpoint can be asked, so that one which takes no connection is
            `Unusable` after its second try.
        """
        body = {"model": self.name, "messages": list(messages), **self._settings.sampling}
        body = {name: value for name, value in body.items() if value is not None}
        answered = self._answered
        for attempt in range(self._settings.retries + 1):
            try:
                answer = self._ask_structured(body, schema, schema_name)
            except _Transient as error:
                others_answered = self._answered > answered
                soon = others_left and attempt > 0 and not error.reached
                if soon and not others_answered and not self._holds_connection():
                    raise self._unusable(error, attempt + 1) from None
                if attempt == self._settings.retries:
                    self._give_up(error, others_answered=others_answered)
                # Those of now were answered by an endpoint that may have ended with this attempt.
                answered = self._answered
                if self._cancelled.wait(wait_seconds(attempt, error.wait)):
                    raise Cancelled from None
            except _Refused as error:
                self._count_failed(str(error))
                raise RequestFailed(f"HTTP {error.status}", str(error)) from None
            else:
                with self._lock:
                    self._answered += 1
                    self._failed_since = 0
                return answer
        raise AssertionError("unreachable")

    def _ask_structured(
        self, body: dict[str, Any], schema: dict[str, Any], schema_name: str
    ) -> Answer:
        """With the best structure that the server takes; a refused request is sent without."""
        for level in range(self._structure, len(STRUCTURES)):
            extra: dict[str, Any] = {}
            if STRUCTURES[level] == "json_schema":
                described = {"name": schema_name, "schema": schema, "strict": True}
                extra = {"response_format": {"type": "json_schema", "json_schema": described}}
            elif STRUCTURES[level] == "json_object":
                extra = {"response_format": {"type": "json_object"}}
            try:
                answer = self._post(json.dumps(body | extra).encode())
            except _Refused as error:
                if error.status not in (400, 415, 422, 501) or level == len(STRUCTURES) - 1:
                    raise
            else:
                if level > self._structure:  # refused with, and answered without
                    self._structure = level
                return answer
        raise AssertionError("unreachable")

    def _post(self, body: bytes) -> Answer:
        try:
            response = self._send("POST", "/chat/completions", body, self._settings.timeout)
        except NotConnected as error:
            raise _Transient(f"no connection to {self.url} ({error})", reached=False) from None
        except TimeoutError:
            seconds = self._settings.timeout
            raise _Transient(f"no answer in {seconds:g} s (--timeout)") from None
        except Broken as error:
            raise _Transient(f"the connection broke ({error})") from None
        return self._answer(response.status, response.headers, response.data)

    def _send(self, method: str, path: str, body: bytes | None, seconds: float) -> Response:
        """Raises what `Connection.request` does, and `Cancelled`."""
        with self._lock:
            if not self._free:
                self._free.append(Connection(self.url, self._context))
                self._connections.append(self._free[-1])
            connection = self._free.pop()
        try:
            return connection.request(method, path, body, self._headers, seconds)
        except OSError:
            if self._cancelled.is_set():
                raise Cancelled from None
            raise
        finally:
            with self._lock:
                self._free.append(connection)

    def _answer(self, status: int, headers: Mapping[str, str], data: bytes) -> Answer:
        if status == 200:
            try:
                return read_answer(data)
            except ValueError as error:
                kind = _printable(headers.get("content-type", "no content type"))
                raise _Transient(f"an answer that is not one ({kind}): {error}") from None
        message = self._without_key(_error_text(data))
        if status in TRANSIENT:
            raise _Transient(f"HTTP {status}: {message}", retry_after(headers))
        if status in (401, 402, 403):
            raise Unusable(
                f"{self.url} refuses the key (HTTP {status}: {message}), which is that in the "
                f"environment variable {self._settings.api_key_env}.",
                "Set a valid one there; the same command continues.",
                lasts=True,
            )
        if status == 404:
            raise Unusable(
                f"{self.url} has no model {self.name!r}, or is not the address of an "
                f"OpenAI-compatible endpoint, which ends in /v1 (HTTP 404: {message}).",
                "Give the right ones; the same command continues.",
                lasts=True,
            )
        if 300 <= status < 400:
            place = headers.get("location", "nowhere")
            raise Unusable(
                f"{self.url} redirects to {place!r}.", "Give that as --endpoint.", lasts=True
            )
        raise _Refused(status, message)

    def _give_up(self, error: _Transient, *, others_answered: bool) -> None:
        """Raises `Unusable` where the endpoint is dead, else `NoAnswer`."""
        # It may take fewer connections than there are threads, and refuse this one and the probe.
        if not others_answered and not self.is_alive():
            raise self._unusable(error, self._settings.retries + 1)
        self._count_failed(str(error))
        raise NoAnswer("no answer of the endpoint", str(error))

    @staticmethod
    def _unusable(error: _Transient, times: int) -> Unusable:
        return Unusable(
            f"The endpoint does not answer: {error}, {times} times.",
            "See whether it runs, and give the same command again: it continues.",
        )

    def _holds_connection(self) -> bool:
        """Whether a request has a connection at this moment, as those of a dead server have not."""
        with self._lock:
            return any(each.is_open for each in self._connections if each not in self._free)

    def is_alive(self) -> bool:
        """Whether it answers at all; quickly asked."""
        try:
            return self._send("GET", "/models", None, PROBE_SECONDS).status < 500
        except OSError:
            return False

    def _count_failed(self, message: str) -> None:
        with self._lock:
            self._failed_since += 1
            too_many = self._failed_since >= MAX_FAILED
        if too_many:
            raise Unusable(
                f"The last {MAX_FAILED} requests failed, and none between them was answered; the "
                f"last one: {message}.",
                "Once that is mended, the same command with --retry_errors continues.",
            )

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def read_answer(data: bytes) -> Answer:
    """The answer in the body of a response. Raises ValueError where it is not one."""
    try:
        content = json.loads(data)
        choice = content["choices"][0]
        text = choice["message"].get("content")
        if isinstance(text, list):  # parts
            text = "".join(part.get("text", "") for part in text)
        text = text or choice["message"].get("refusal") or ""
        usage = content.get("usage") or {}
        tokens = [usage.get(f"{kind}_tokens") for kind in ("prompt", "completion")]
        finished = choice.get("finish_reason") != "length"
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not isinstance(text, str):
        raise ValueError(f"'content' is a {type(text).__name__}")
    counts = [
        count if isinstance(count, int) and 0 <= count < MAX_TOKENS else None for count in tokens
    ]
    return Answer(text, finished, counts[0], counts[1])


def _printable(text: str) -> str:
    """One line of at most 300 characters, nothing in it for a terminal to obey."""
    shown = "".join(each if each.isprintable() else " " for each in text[:1000])
    return clean_text(shown)[:300]


def _error_text(data: bytes) -> str:
    """What the server says in an error, in whichever of the usual forms."""
    text = data[:100_000].decode("utf-8", "replace")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        error = content.get("error", content.get("detail", content.get("message", content)))
        if isinstance(error, dict):
            error = error.get("message", error)
        text = str(error)
    return _printable(text) or "no message"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the header asks to wait, in either of its forms; None without it."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), MAX_WAIT)
    try:
        moment = email.utils.parsedate_to_datetime(value)
        seconds = (moment - datetime.datetime.now(datetime.UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_WAIT)


def wait_seconds(attempt: int, asked: float | None) -> float:
    """Seconds to wait: as the server asked, or exponential; with jitter, so that many requests
    that failed together do not come back together.
    """
    backoff = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt)
    if asked is not None:
        return asked + random.uniform(0, min(backoff, 1.0))
    return random.uniform(backoff / 2, backoff)


def same_address(one: str, other: str) -> bool:
    """Whether two addresses are of one endpoint, as far as is seen from how they are written."""
    return _address_parts(one) == _address_parts(other)


def _address_parts(url: str) -> tuple[str, str | None, int | None, str]:
    parts = urlsplit(_base_url(url))
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port, parts.path


def _base_url(url: str) -> str:
    """Up to and with /v1."""
    return url.rstrip("/").removesuffix("/chat/completions").rstrip("/")


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--endpoint={url!r} should be an address like http://localhost:8000/v1.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "--endpoint must not have a user, password, query or fragment; a key is read from an "
            "environment variable (--api_key_env)."
        )
    return _base_url(url)
