"""Connections to real servers: kept open, reopened, ended; proxies of the environment."""

import re
import socket
import threading
import time

import pytest
from chat_server import chat_server

from grain_jax.annotation.connection import Broken, Connection, NotConnected, proxy_of


def whole_request(client: socket.socket) -> bytes:
    """Head and body, which may come in two pieces."""
    data = b""
    while piece := client.recv(65536):
        data += piece
        head, end, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        if end and len(body) >= (int(length[1]) if length else 0):
            break
    return data


class Scripted:
    """A server with an answer for each connection, sent piece by piece; then it closes it."""

    def __init__(self, *answers: list[bytes], pause: float = 0.0) -> None:
        self.requests: list[bytes] = []
        self._answers, self._pause = answers, pause
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._answers:
            client, _ = self._socket.accept()
            with client:
                self.requests.append(whole_request(client))
                try:
                    for piece in answer:
                        client.sendall(piece)
                        time.sleep(self._pause)
                except OSError:
                    continue

    def close(self) -> None:
        self._thread.join(5)
        self._socket.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def scripted(request):
    server = Scripted(*request.param[:-1], pause=request.param[-1])
    connection = Connection(server.url, None)
    yield server, connection
    connection.close()
    server.close()


@pytest.mark.parametrize("scripted", [([OK], [OK], 0.0)], indirect=True)
def test_a_kept_connection_that_the_server_closed_is_opened_again(scripted):
    server, connection = scripted
    assert connection.request("POST", "/x", b"1", {"A": "b"}, 5.0).data == b"ok"
    time.sleep(0.05)
    assert connection.request("POST", "/y", b"2", {}, 5.0).data == b"ok"
    assert [each.partition(b" HTTP")[0] for each in server.requests] == [
        b"POST /v1/x",
        b"POST /v1/y",
    ]
    assert b"\r\nA: b\r\n" in server.requests[0]
    assert server.requests[1].endswith(b"2")


CHUNKED = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\nok\r\n", b"0\r\n\r\n"]


@pytest.mark.parametrize("scripted", [(CHUNKED, 0.01)], indirect=True)
def test_an_answer_in_chunks_is_put_together(scripted):
    _, connection = scripted
    answer = connection.request("GET", "/x", None, {}, 5.0)
    assert (answer.status, answer.data) == (200, b"ok")
    assert answer.headers["transfer-encoding"] == "chunked"


BROKEN = {
    "no status": [b"hello\r\n\r\n"],
    "half a status": [b"HTT"],
    "half a body": [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok"],
    "half a chunk": [CHUNKED[0], b"5\r\nok"],
    "nothing": [],
    "endless line": [b"HTTP/1.1 200 " + b"x" * 100_000],
}


@pytest.mark.parametrize("scripted", [(answer, 0.0) for answer in BROKEN.values()], indirect=True)
def test_what_is_not_whole_is_broken(scripted):
    _, connection = scripted
    with pytest.raises(Broken):
        connection.request("GET", "/x", None, {}, 5.0)


DRIPPING = [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", *[b"x"] * 100]


@pytest.mark.parametrize("scripted", [(DRIPPING, 0.05)], indirect=True)
def test_the_deadline_holds_for_the_whole_answer(scripted):
    """Each byte comes in time."""
    _, connection = scripted
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        connection.request("GET", "/x", None, {}, 0.4)
    assert time.monotonic() - started < 2
    connection.close()


def test_no_server_is_no_connection():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(NotConnected, match="refused"):
        Connection(f"http://127.0.0.1:{port}/v1", None).request("GET", "/x", None, {}, 5.0)
    with pytest.raises(NotConnected):
        Connection("http://no-such-host.invalid/v1", None).request("GET", "/x", None, {}, 5.0)


@pytest.mark.multiprocess
def test_a_request_is_ended_from_another_thread():
    with chat_server() as server:
        server.behave("hang")
        connection = Connection(server.url, None)
        threading.Timer(0.3, connection.end).start()
        started = time.monotonic()
        body = b'{"messages": []}'
        with pytest.raises(Broken):
            connection.request("POST", "/chat/completions", body, {}, 60.0)
        assert time.monotonic() - started < 10
        with pytest.raises(Broken, match="the run ends"):
            connection.request("POST", "/chat/completions", body, {}, 60.0)
        connection.close()


def test_the_proxy_of_the_environment_is_used(monkeypatch):
    proxy = Scripted([OK])
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    place = proxy.url.removeprefix("http://").removesuffix("/v1")
    monkeypatch.setenv("http_proxy", f"http://me:w%40rd@{place}")
    connection = Connection("http://far.example/v1", None)
    assert connection.request("GET", "/models", None, {}, 5.0).data == b"ok"
    connection.close()
    proxy.close()
    assert proxy.requests[0].startswith(b"GET http://far.example/v1/models HTTP/1.1\r\n")
    assert b"\r\nHost: far.example\r\n" in proxy.requests[0]
    assert b"\r\nProxy-Authorization: Basic bWU6d0ByZA==\r\n" in proxy.requests[0]


def test_which_addresses_have_a_proxy(monkeypatch):
    monkeypatch.setenv("http_proxy", "proxy:3128")
    monkeypatch.setenv("no_proxy", "near.example")
    assert proxy_of("http://far.example/v1").netloc == "proxy:3128"
    for host in ("near.example", "localhost:8000", "127.0.0.1:8000", "[::1]:8000"):
        assert proxy_of(f"http://{host}/v1") is None
    monkeypatch.setenv("http_proxy", "socks5://proxy:1080")
    with pytest.raises(ValueError, match="proxy of socks5://"):
        proxy_of("http://far.example/v1")
