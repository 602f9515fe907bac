"""When an endpoint of several is put aside, and when it is asked again."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from chat_server import chat_server
from one_connection import one_connection

from grain_jax.annotation.chat import Cancelled, Question, RequestFailed
from grain_jax.annotation.endpoint import Endpoint, EndpointSettings
from grain_jax.annotation.endpoint_pool import EndpointPool
from grain_jax.annotation.run import StageStopped

pytestmark = pytest.mark.multiprocess


@pytest.fixture
def servers():
    with chat_server() as first, chat_server() as second:
        yield first, second


@pytest.fixture
def notes():
    return []


@pytest.fixture
def pool(servers, notes):
    places = [EndpointSettings(server.url, "m", retries=0, timeout=2.0) for server in servers]
    opened = EndpointPool(
        [Endpoint(place) for place in places], bound=1, note=notes.append, first_aside=0.3
    )
    yield opened
    opened.cancel()
    opened.close()


def ask(pool):
    messages = [{"role": "system", "content": ""}, Question("?", b"\xff\xd8").message()]
    return pool.ask(messages, schema={}, schema_name="any")


def test_one_that_is_back_is_asked_again(servers, pool, notes):
    first, second = servers
    ask(pool)
    first.stop()
    ask(pool)
    assert len(notes) == 1
    assert f"{first.url} is put aside for 0 s, with 1 of 2 endpoints left" in notes[0]
    with chat_server(first.port) as again:
        time.sleep(0.5)
        second.behave("ok", delay=1.0)
        # Of two at once, one finds no room at the second endpoint and looks for the first.
        threads = [threading.Thread(target=ask, args=(pool,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert notes[1:] == [f"{first.url} answers again."]
        assert len(again.log()) == 1


def test_all_are_tried_once_more_before_the_run_stops(servers, pool, notes):
    first, second = servers
    ask(pool)
    first.stop()
    ask(pool)
    second.stop()
    with chat_server(first.port) as again:  # long before its time has come
        ask(pool)
        assert len(again.log()) == 1
    assert [note for note in notes if "answers again" in note] == [f"{first.url} answers again."]
    with pytest.raises(StageStopped, match="None of the 2 endpoints is left"):
        ask(pool)


def test_a_request_that_only_fails_is_its_own_error(servers, pool, notes):
    for server in servers:
        server.behave("413", times=1)
    with pytest.raises(RequestFailed, match="HTTP 413"):
        ask(pool)
    assert notes == []


@pytest.mark.parametrize("status", ["401", "403", "404", "moved"])
def test_one_that_waiting_cannot_mend_is_asked_once(servers, pool, notes, status):
    first, second = servers
    first.behave(status)
    for _ in range(2):
        ask(pool)
        time.sleep(0.4)  # after `first_aside`
    second.behave("ok", delay=0.5)
    with ThreadPoolExecutor(2) as threads:  # one of them finds no room at the second
        list(threads.map(lambda _: ask(pool), range(2)))
    assert len(notes) == 1
    assert f"{first.url} is put aside for the rest of the run, with 1 of 2 endpoints" in notes[0]
    assert len(first.log()) == 1
    second.behave("401")
    with pytest.raises(StageStopped, match="None of the 2 endpoints is left"):
        ask(pool)


def test_an_address_that_refuses_is_put_aside_without_all_retries(servers, notes):
    first, second = servers
    first.stop()
    places = [EndpointSettings(server.url, "m", retries=6, timeout=2.0) for server in servers]
    pool = EndpointPool([Endpoint(place) for place in places], bound=2, note=notes.append)
    started = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: ask(pool), range(8)))
    pool.close()
    assert time.monotonic() - started < 4  # all retries take 15 s at least
    assert len(second.log()) == 8
    assert len(notes) == 1
    assert f"{first.url} is put aside for 30 s" in notes[0]
    assert notes[0].endswith("2 times.")
    assert "the same command" not in notes[0]


def test_one_that_takes_few_connections_is_not_put_aside(servers, notes):
    _, second = servers
    second.behave("ok", delay=0.05)
    with one_connection() as url:
        places = [EndpointSettings(each, "m", retries=2, timeout=5.0) for each in (url, second.url)]
        pool = EndpointPool([Endpoint(place) for place in places], bound=4, note=notes.append)
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: ask(pool), range(160)))
        pool.close()
    assert len(answers) == 160
    assert len(second.log()) < 150
    assert notes == []


def test_cancelling_ends_those_that_wait_for_room(servers, pool):
    for server in servers:
        server.behave("hang")
    ended = []

    def wait():
        with pytest.raises(Cancelled):
            ask(pool)
        ended.append(True)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    pool.cancel()
    for thread in threads:
        thread.join(timeout=5)
    assert len(ended) == 3
