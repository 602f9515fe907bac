"""Buckets on loopback: Cloud Storage's JSON API as far as gcsfs, TensorStore, array_record and
Google's client use it.

Objects live in memory. Every write has a new generation, and preconditions on generations hold,
which is what a lock in a bucket stands on. Faults are made by hand: `refuse` and `stop`.
"""

import base64
import functools
import hashlib
import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from grain_jax import buckets

PAGE = 100  # objects that one answer lists
OBJECT = re.compile(r"/b/([^/]+)/o/([^/]+)")


@dataclass
class Stored:
    """One generation of an object."""

    data: bytes
    generation: int
    updated: str
    content_type: str


@dataclass
class Sent:
    """A request, as far as a test looks at it."""

    method: str
    path: str


@dataclass
class Bucket:
    """Objects by name."""

    objects: dict[str, Stored] = field(default_factory=dict)


class Refused(Exception):
    """An answer with a status of 300 or more."""

    def __init__(self, status: int, message: str = ""):
        super().__init__(message or str(status))
        self.status = status


class StorageServer:
    """A server of buckets, from `with` to its end.

    `refuse`: called with the method and the path of each request; a status other than None is the
    answer. `environment` points every client at the server.
    """

    def __init__(self, *buckets: str):
        self.buckets = {name: Bucket() for name in buckets}
        self.refuse: Callable[[str, str], int | None] = lambda method, path: None
        self.sent: list[Sent] = []
        self.lock = threading.RLock()
        self._generation = 0
        self._uploads: dict[str, tuple[dict[str, str], dict[str, Any], bytearray]] = {}
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "StorageServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Connections are refused from here on."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that takes this server for Cloud Storage."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody",
            "GOOGLE_CLOUD_PROJECT": "tests",
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,
            # It asks another service for the kind of bucket.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """The objects under a prefix, in order."""
        with self.lock:
            return sorted(n for n in self.buckets[bucket].objects if n.startswith(prefix))

    def read(self, bucket: str, name: str) -> bytes:
        """The bytes of an object. KeyError without it."""
        return self.buckets[bucket].objects[name].data

    def put(self, bucket: str, name: str, data: bytes, content_type: str = "") -> Stored:
        """Writes an object."""
        with self.lock:
            self._generation += 1
            stored = Stored(
                bytes(data),
                self._generation,
                f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
                content_type,
            )
            self.buckets[bucket].objects[name] = stored
            return stored

    def answer(
        self, method: str, target: str, headers: Any, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a request."""
        url = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        with self.lock:
            self.sent.append(Sent(method, target))
            if (status := self.refuse(method, target)) is not None:
                raise Refused(status, "refused by the test")
            if url.path.startswith("/batch/"):
                return self._batch(headers, body)
            if url.path.startswith("/upload/"):
                bucket = url.path.split("/b/")[1].split("/")[0]
                return self._upload(method, bucket, query, headers, body)
            return self._plain(method, url.path, query, headers, body)

    def _plain(
        self, method: str, path: str, query: dict[str, str], headers: Any, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        copied = re.fullmatch(
            r".*/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)", path
        )
        if copied:
            source, name, target, new = map(urllib.parse.unquote, copied.groups())
            one = self._object(source, name)
            self._check(target, new, query)
            resource = _resource(target, new, self.put(target, new, one.data, one.content_type))
            size = str(len(one.data))
            return _json(
                {
                    "done": True,
                    "objectSize": size,
                    "totalBytesRewritten": size,
                    "resource": resource,
                }
            )
        found = re.fullmatch(r".*/b/([^/]+)(/o(?:/([^/]+))?)?", path)
        if not found:
            raise Refused(404, path)
        bucket, objects, name = (urllib.parse.unquote(part or "") for part in found.groups())
        if bucket not in self.buckets:
            raise Refused(404, "The specified bucket does not exist.")
        if not objects:
            return _json({"kind": "storage#bucket", "name": bucket, "location": "HERE"})
        if not name:
            return _json(self._list(bucket, query))
        if method == "DELETE":
            self._object(bucket, name)
            self._check(bucket, name, query)
            del self.buckets[bucket].objects[name]
            return 204, {}, b""
        one = self._object(bucket, name)
        self._check(bucket, name, query)
        if query.get("alt") != "media":
            return _json(_resource(bucket, name, one))
        return _media(one, headers)

    def _object(self, bucket: str, name: str) -> Stored:
        try:
            return self.buckets[bucket].objects[name]
        except KeyError:
            raise Refused(404, f"No such object: {bucket}/{name}") from None

    def _check(self, bucket: str, name: str, query: dict[str, str]) -> None:
        """Preconditions; a missing object is of generation 0."""
        if bucket not in self.buckets:
            raise Refused(404, "The specified bucket does not exist.")
        stored = self.buckets[bucket].objects.get(name)
        generation = stored.generation if stored else 0
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.")
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
            raise Refused(304)

    def _list(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        start, end = query.get("startOffset", ""), query.get("endOffset", "")
        items, prefixes = {}, set()
        for name in self.names(bucket, prefix):
            if name < start or (end and name >= end):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items[name] = _resource(bucket, name, self.buckets[bucket].objects[name])
        found = sorted([*items, *prefixes])
        size = min(PAGE, int(query.get("maxResults", PAGE)))
        after = [name for name in found if name > query.get("pageToken", "")]
        shown = after[:size]
        listed: dict[str, Any] = {
            "kind": "storage#objects",
            "items": [items[name] for name in shown if name in items],
            "prefixes": [name for name in shown if name in prefixes],
        }
        return listed | ({"nextPageToken": shown[-1]} if len(after) > size else {})

    def _upload(
        self, method: str, bucket: str, query: dict[str, str], headers: Any, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if bucket not in self.buckets:
            raise Refused(404, "The specified bucket does not exist.")
        if "upload_id" in query:
            return self._continue(bucket, query["upload_id"], headers, body)
        if query["uploadType"] == "resumable":
            metadata = json.loads(body or b"{}")
            name = query.get("name") or metadata["name"]
            self._check(bucket, name, query)
            number = str(len(self._uploads))
            self._uploads[number] = (query, {"name": name}, bytearray())
            location = f"{self.url}/upload/storage/v1/b/{bucket}/o?upload_id={number}"
            return 200, {"Location": location, "Content-Length": "0"}, b""
        if query["uploadType"] == "multipart":
            metadata, content_type, data = _parts(headers["Content-Type"], body)
            name = query.get("name") or metadata["name"]
        else:
            name, content_type, data = query["name"], headers.get("Content-Type", ""), body
        self._check(bucket, name, query)
        return _json(_resource(bucket, name, self.put(bucket, name, data, content_type)))

    def _continue(
        self, bucket: str, number: str, headers: Any, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        query, metadata, data = self._uploads[number]
        given = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers["Content-Range"])
        assert given is not None, headers["Content-Range"]
        if given[1] is not None:
            data[int(given[1]) :] = body
        if given[2] == "*" or len(data) < int(given[2]):
            return 308, ({"Range": f"bytes=0-{len(data) - 1}"} if data else {}), b""
        self._check(bucket, metadata["name"], query)
        return _json(
            _resource(bucket, metadata["name"], self.put(bucket, metadata["name"], bytes(data)))
        )

    def _batch(self, headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Several requests in one, as gcsfs deletes."""
        boundary = _boundary(headers["Content-Type"])
        answers = []
        for part in body.split(b"--" + boundary)[1:-1]:
            head, _, inner = part.strip(b"\r\n").partition(b"\r\n\r\n")
            (identity,) = re.findall(rb"Content-ID: *(\S+)", head, re.IGNORECASE)
            method, target = inner.split(b"\r\n")[0].split(b"\n")[0].decode().split()[:2]
            url = urllib.parse.urlsplit(target)
            query = dict(urllib.parse.parse_qsl(url.query))
            try:
                status, _, content = self._plain(method, url.path, query, {}, b"")
            except Refused as refused:
                status, content = refused.status, _error(refused)
            reason = {200: "OK", 204: "No Content", 404: "Not Found"}.get(status, "Other")
            reply_to = identity.replace(b"<", b"<response-")
            answers.append(
                b"--reply\r\nContent-Type: application/http\r\nContent-ID: %s\r\n\r\n"
                b"HTTP/1.1 %d %s\r\nContent-Length: %d\r\n\r\n%s\r\n"
                % (reply_to, status, reason.encode(), len(content), content)
            )
        joined = b"".join(answers) + b"--reply--\r\n"
        return 200, {"Content-Type": "multipart/mixed; boundary=reply"}, joined


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may hang up: gcsfs drops the slower of two requests."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _json(content: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _error(refused: Refused) -> bytes:
    return json.dumps({"error": {"code": refused.status, "message": str(refused)}}).encode()


def _resource(bucket: str, name: str, stored: Stored) -> dict[str, Any]:
    import google_crc32c

    crc = google_crc32c.value(stored.data).to_bytes(4, "big")
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{stored.generation}",
        "name": name,
        "bucket": bucket,
        "generation": str(stored.generation),
        "metageneration": "1",
        "contentType": stored.content_type or "application/octet-stream",
        "storageClass": "STANDARD",
        "size": str(len(stored.data)),
        "updated": stored.updated,
        "timeCreated": stored.updated,
        "md5Hash": base64.b64encode(hashlib.md5(stored.data).digest()).decode(),
        "crc32c": base64.b64encode(crc).decode(),
        "etag": str(stored.generation),
    }


def _media(one: Stored, headers: Any) -> tuple[int, dict[str, str], bytes]:
    answered = {
        "Content-Type": one.content_type or "application/octet-stream",
        "x-goog-generation": str(one.generation),
        "x-goog-metageneration": "1",
        "x-goog-stored-content-length": str(len(one.data)),
        "x-goog-stored-content-encoding": "identity",
    }
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range") or "")
    if not asked:
        return 200, answered, one.data
    size = len(one.data)
    if asked[1]:
        start, end = int(asked[1]), min(size - 1, int(asked[2] or size - 1))
    else:
        start, end = max(0, size - int(asked[2])), size - 1
    if start >= size:
        raise Refused(416, f"bytes */{size}")
    answered["Content-Range"] = f"bytes {start}-{end}/{size}"
    return 206, answered, one.data[start : end + 1]


def _boundary(content_type: str) -> bytes:
    found = re.search(r'boundary="?([^";]+)"?', content_type)
    assert found is not None, content_type
    return found[1].encode()


def _parts(content_type: str, body: bytes) -> tuple[dict[str, Any], str, bytes]:
    """Metadata, type and bytes of an upload in two parts; the bytes may be anything."""
    boundary = _boundary(content_type)
    first, rest = body.split(b"--" + boundary, 2)[1:]
    metadata = json.loads(re.split(rb"\r?\n\r?\n", first, maxsplit=1)[1])
    head, data = re.split(rb"\r?\n\r?\n", rest, maxsplit=1)
    end = re.search(rb"\r?\n--" + re.escape(boundary) + rb"--\s*\Z", data)
    assert end is not None
    kind = re.search(rb"Content-Type: *([^\r\n]+)", head, re.IGNORECASE)
    return metadata, kind[1].decode() if kind else "", data[: end.start()]


def _handler(storage: StorageServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self._body()
            try:
                status, headers, content = storage.answer(
                    self.command, self.path, self.headers, body
                )
            except Refused as refused:
                status, headers = refused.status, {"Content-Type": "application/json"}
                content = b"" if status == 304 else _error(refused)
            self.send_response(status)
            for name, value in headers.items():
                if name != "Content-Length":
                    self.send_header(name, value)
            if status not in (204, 304):
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                chunks = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    chunks.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(chunks)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _serve

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return Handler


def forget_client() -> None:
    """The next use of a bucket looks at the environment again."""
    if buckets.client.cache_info().currsize:
        buckets.client().close()
    buckets.client.cache_clear()


@functools.cache
def shared_server() -> StorageServer:
    """One for all tests of a process: clients keep the address that they began with."""
    server = StorageServer().__enter__()
    _leave_connections_to_the_collector(server)
    return server


def _leave_connections_to_the_collector(server: StorageServer) -> None:
    """Google's client keeps the connection of a refused request in a cycle with its exception.

    The collector closes it with a ResourceWarning, in whatever test it happens to run. Those of
    connections to this server are dropped here, whoever left them open; every other one fails the
    test as before.
    """
    peer = f"raddr=('127.0.0.1', {urllib.parse.urlsplit(server.url).port})"
    report = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        warning = unraisable.exc_value
        if not (isinstance(warning, ResourceWarning) and peer in str(warning)):
            report(unraisable)

    sys.unraisablehook = hook
