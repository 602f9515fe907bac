"""An endpoint that takes one connection at a time, and refuses others."""

import contextlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator

ANSWER = {"choices": [{"message": {"content": "{}"}, "finish_reason": "stop"}]}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # the connection is kept

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(0.02)
        self._send(ANSWER)

    def do_GET(self) -> None:
        self._send({"data": []})

    def _send(self, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def one_connection() -> Iterator[str]:
    """Its address. When its connection is closed, it takes no other."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]

    def serve() -> None:
        taken, address = listening.accept()
        listening.close()
        with taken:
            Handler(taken, address, None)  # until the other side closes it

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{port}/v1"
    thread.join(timeout=10)
