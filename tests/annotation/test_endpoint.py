"""How long a failed request waits, and when an endpoint counts as dead."""

import datetime
import email.utils
import json
import socket
import threading

import pytest
from chat_server import chat_server
from hypothesis import given, settings
from hypothesis import strategies as st
from one_connection import one_connection

from grain_jax.annotation.chat import Answer, Question, RequestFailed
from grain_jax.annotation.endpoint import (
    LONGEST_WAIT,
    MAX_WAIT,
    Endpoint,
    EndpointSettings,
    NoAnswer,
    Unusable,
    read_answer,
    retry_after,
    same_address,
    wait_seconds,
)
from grain_jax.annotation.run import StageStopped


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("http://a:8000/v1", "http://a:8000/v1/", True),
        ("http://Node-1/v1", "HTTP://node-1:80/v1", True),
        ("https://a/v1", "https://a:443/v1/chat/completions", True),
        ("http://a/v1", "https://a/v1", False),
        ("http://a/v1", "http://a:8000/v1", False),
        ("http://a/v1", "http://b/v1", False),
        ("http://a/V1", "http://a/v1", False),
    ],
)
def test_addresses_of_one_endpoint(one, other, expected):
    assert same_address(one, other) is expected


def in_seconds(seconds: float) -> str:
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return email.utils.format_datetime(moment)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("7", 7),
        ("0", 0),
        ("9" * 500, MAX_WAIT),
        ("soon", None),
        ("", None),
        ("-3", None),
        ("1.5", None),
    ],
)
def test_seconds_of_retry_after(value, expected):
    assert retry_after({"retry-after": value}) == expected


def test_a_date_of_retry_after():
    assert 25 < retry_after({"retry-after": in_seconds(30)}) <= 30
    assert retry_after({"retry-after": in_seconds(-30)}) == 0
    assert retry_after({}) is None


def test_waits_double_differ_and_follow_the_server():
    for attempt, longest in enumerate([0.5, 1, 2, 4, 8, 16, LONGEST_WAIT, LONGEST_WAIT]):
        waits = [wait_seconds(attempt, None) for _ in range(50)]
        assert longest / 2 <= min(waits) < max(waits) <= longest
    assert 7 <= wait_seconds(0, 7.0) <= 8


@pytest.fixture(scope="module")
def server():
    with chat_server() as started:
        yield started


@pytest.fixture
def endpoint(server):
    opened = Endpoint(EndpointSettings(server.url, "tiny", retries=0, timeout=0.5))
    yield opened
    opened.close()


def ask(endpoint):
    messages = [{"role": "system", "content": ""}, Question("?", b"\xff\xd8").message()]
    return endpoint.ask(messages, schema={}, schema_name="any")


@pytest.mark.multiprocess
def test_a_server_that_lives_fails_a_request_and_one_that_does_not_ends_the_run(server, endpoint):
    server.behave("hang", times=1)
    with pytest.raises(RequestFailed, match=r"no answer in 0\.5 s"):
        ask(endpoint)  # GET /v1/models is answered
    assert ask(endpoint).prompt_tokens == 100
    server.behave("503")
    with pytest.raises(StageStopped, match="HTTP 503"):
        ask(endpoint)


def test_an_endpoint_that_takes_fewer_connections_than_there_are_threads_does_not_end_the_run():
    """It refuses a request each time, and the probe, while it answers those of another thread."""
    over = threading.Event()
    with one_connection() as url:
        endpoint = Endpoint(EndpointSettings(url, "m", retries=2, timeout=5.0))
        ask(endpoint)

        def ask_on() -> None:
            while not over.is_set():
                ask(endpoint)

        thread = threading.Thread(target=ask_on)
        thread.start()
        try:
            with pytest.raises(NoAnswer, match="no connection"):
                ask_often(endpoint)
        finally:
            over.set()
            thread.join()
            endpoint.close()


def ask_often(endpoint: Endpoint) -> None:
    """As a request comes between two of the other thread now and then."""
    for _ in range(20):
        ask(endpoint)


def nowhere() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


def test_one_that_is_back_when_it_is_probed_fails_a_request_only():
    class Back(Endpoint):
        def is_alive(self) -> bool:
            return True

    with pytest.raises(NoAnswer, match="no connection"):
        ask(Back(EndpointSettings(nowhere(), "m", retries=0)))
    with pytest.raises(Unusable, match="The endpoint does not answer: no connection"):
        ask(Endpoint(EndpointSettings(nowhere(), "m", retries=0)))


@pytest.mark.multiprocess
def test_what_was_answered_without_a_structure_is_asked_without(server, endpoint):
    server.behave("no schema")
    for _ in range(3):
        ask(endpoint)
    assert [each["format"] for each in server.log()[-4:]] == ["json_schema", *["json_object"] * 3]


def body(**message) -> dict:
    return {"choices": [{"message": message, "finish_reason": "stop"}]}


def test_answers_of_every_server_are_read():
    assert read_answer(json.dumps(body(content="a")).encode()) == Answer("a")
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read_answer(json.dumps(body(content=parts)).encode()).text == "ab"
    assert read_answer(json.dumps(body(content=None, refusal="no")).encode()).text == "no"
    assert read_answer(json.dumps(body(content=None)).encode()).text == ""
    counted = body(content="a") | {"usage": {"prompt_tokens": 7, "completion_tokens": 10**30}}
    assert read_answer(json.dumps(counted).encode()) == Answer("a", True, 7, None)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "text", "usage", "prompt_tokens", "finish_reason"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
near_answers = st.fixed_dictionaries(
    {"choices": st.lists(st.fixed_dictionaries({"message": values}) | values, max_size=2)},
    optional={"usage": values},
)


@settings(deadline=None, max_examples=300)
@given(content=values | near_answers | st.builds(lambda v: body(content=v), values))
def test_any_json_is_an_answer_or_refused(content):
    try:
        answer = read_answer(json.dumps(content).encode())
    except ValueError:
        return
    assert isinstance(answer.text, str)
    assert all(n is None or n >= 0 for n in (answer.prompt_tokens, answer.completion_tokens))


@settings(deadline=None)
@given(data=st.binary(max_size=50))
def test_any_bytes_are_an_answer_or_refused(data):
    with pytest.raises(ValueError, match=r"\w"):
        read_answer(data)
