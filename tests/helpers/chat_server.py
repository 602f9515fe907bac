"""An endpoint that speaks the OpenAI protocol in a process of its own, and misbehaves on request.

  python chat_server.py PORT   (0: any; the port is printed)

Its answers are a function of the image alone. POST /behave {"mode": ..., "times": n} makes the next
n requests (null: all) meet one of `MODES`; GET /log tells what was asked.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

COLORS = ("red", "green", "blue", "black", "white", "brown", "yellow", "grey")
GARBAGE = (
    *(
        "",
        "I'm sorry, I can't help with that.",
        '{"caption": "a bird on a br',
        "very " * 900,
    ),
    *("<html>busy</html>", "- red\n- red\n- red", "null", '{"caption": 3}', "\0\0\0"),
)
MODES = (
    *("ok", "garbage", "slow", "hang", "half", "html", "not json", "no choices", "huge", "drop"),
    *("no schema", "no format", "limit", "moved"),  # and any status, as "429"
)
EXPECTED_TOKENS = (100, 20)  # prompt and completion tokens of every answer


def caption_of(jpeg: bytes) -> str:
    return f"An image with the mark {hashlib.sha256(jpeg).hexdigest()[:8]}."


def features_of(jpeg: bytes) -> list[str]:
    digest = hashlib.sha256(jpeg).digest()
    return [f"{COLORS[byte % 8]} part {number}" for number, byte in enumerate(digest[:4])]


class Server:
    def __init__(self) -> None:
        self.mode, self.times, self.delay = "ok", None, 0.0
        self.garbage = 0  # answers of garbage so far, since `behave`
        self.at_once = 0  # requests at this moment
        self.log: list[dict[str, Any]] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                request, *lines = head.decode("latin-1").split("\r\n")
                headers = {
                    name.strip().lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in lines)
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = request.split(" ", 2)
                if not await self.answer(f"{method} {path}", headers, body, writer):
                    break
        writer.close()

    async def answer(
        self, request: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        """Whether the connection stays open."""
        if request == "POST /behave":
            wanted = json.loads(body)
            self.mode, self.times = wanted["mode"], wanted["times"]
            self.delay, self.garbage = wanted["delay"], 0
            return await send(writer, 200, {})
        if request == "GET /log":
            return await send(writer, 200, self.log)
        if request == "GET /v1/models":
            return await send(writer, 503 if self.mode == "503" else 200, {"data": []})
        if request != "POST /v1/chat/completions":
            return await send(writer, 404, {"error": {"message": "no such page"}})
        asked = json.loads(body)
        kind = asked.get("response_format", {}).get("type")
        mode = self.next_mode()
        others = {name: value for name, value in asked.items() if name != "messages"}
        entry = {"mode": mode, "format": kind, "key": headers.get("authorization"), **others}
        self.at_once += 1
        self.log.append(entry | {"messages": len(asked["messages"]), "at_once": self.at_once})
        try:
            await asyncio.sleep(self.delay)
            return await self.misbehave(mode, kind, asked, writer)
        finally:
            self.at_once -= 1

    def next_mode(self) -> str:
        mode = self.mode
        if self.times is not None:
            self.times -= 1
            if self.times <= 0:
                self.mode, self.times = "ok", None
        return mode

    async def misbehave(
        self, mode: str, kind: str | None, asked: dict[str, Any], writer: asyncio.StreamWriter
    ) -> bool:
        if mode.isdigit():
            error = {"error": {"message": f"status {mode}; your key was {self.log[-1]['key']}"}}
            return await send(writer, int(mode), error, {"Retry-After": "0"})
        if mode == "hang":
            await asyncio.sleep(600)
        if mode == "drop":
            return False
        if mode == "moved":
            return await send(writer, 308, {}, {"Location": "http://elsewhere/v1"})
        if mode == "html":
            return await send(
                writer, 200, b"<html>one moment</html>", {"Content-Type": "text/html"}
            )
        if mode == "not json":
            return await send(writer, 200, b'{"choices": [')
        if mode == "no choices":
            return await send(writer, 200, {"choices": []})
        if mode == "half":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + b'{"choices": [')
            await writer.drain()
            return False
        if mode == "huge":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")
            for _ in range(100):
                writer.write(b" " * 1_000_000)
                await writer.drain()
            return False
        if (mode == "no schema" and kind == "json_schema") or (mode == "no format" and kind):
            error = {"error": {"message": f"response_format {kind} is not supported"}}
            return await send(writer, 400, error)
        text = answer_to(asked["messages"])
        if mode == "garbage":
            text = GARBAGE[self.garbage % len(GARBAGE)]
            self.garbage += 1
        if mode == "limit" and "features" in text:
            text = text[:-4]
        choice = {"message": {"role": "assistant", "content": text}}
        choice["finish_reason"] = "length" if mode == "limit" else "stop"
        usage = dict(zip(("prompt_tokens", "completion_tokens"), EXPECTED_TOKENS, strict=True))
        return await send(writer, 200, {"choices": [choice], "usage": usage})


def answer_to(messages: list[dict[str, Any]]) -> str:
    (url,) = (
        part["image_url"]["url"]
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image_url"
    )
    jpeg = base64.b64decode(url.removeprefix("data:image/jpeg;base64,"), validate=True)
    if messages[-2]["role"] == "assistant":
        return json.dumps({"features": features_of(jpeg)})
    return json.dumps({"caption": caption_of(jpeg), "primary_subject": "mark"})


async def send(
    writer: asyncio.StreamWriter, status: int, content: Any, headers: dict[str, str] | None = None
) -> bool:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    lines = {"Content-Type": "application/json", "Content-Length": str(len(data))} | (headers or {})
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + data)
    await writer.drain()
    return True


class ChatServer:
    """The process, seen from a test."""

    def __init__(self, port: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(port)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def behave(self, mode: str, *, times: int | None = None, delay: float = 0.0) -> None:
        """`delay`: seconds before each answer."""
        self._open("behave", json.dumps({"mode": mode, "times": times, "delay": delay}).encode())

    def log(self) -> list[dict[str, Any]]:
        return json.loads(self._open("log", None))

    def stop(self) -> None:
        """May be called twice."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _open(self, path: str, data: bytes | None) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.port}/{path}", data, timeout=10) as response:
            return response.read()


@contextlib.contextmanager
def chat_server(port: int = 0) -> Iterator[ChatServer]:
    server = ChatServer(port)
    try:
        yield server
    finally:
        server.stop()


async def main(port: int) -> None:
    server = await asyncio.start_server(Server().handle, "127.0.0.1", port, limit=2**26)
    print(server.sockets[0].getsockname()[1], flush=True)
    parent = os.getppid()
    async with server:
        while os.getppid() == parent:  # it ends with the test, however that ends
            await asyncio.sleep(1)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
