"""One HTTP connection of one thread, that is kept open between requests.

Python's own `http.client`: a request takes it a few tenths of a millisecond, where an asynchronous
client takes several times that. What is added is a deadline for a whole exchange, a limit on the
size of a response, and an end from another thread.
"""

import base64
import contextlib
import http.client
import ipaddress
import socket
import ssl
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

CONNECT_SECONDS = 10.0
MAX_BYTES = 8 * 2**20  # of a response


class NotConnected(OSError):
    """There is no connection to the server."""


class Broken(OSError):
    """The connection ended, or what came was not a response of HTTP."""


@dataclass(frozen=True)
class Response:
    """What came back."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    data: bytes


class Connection:
    """To the server of one address; for one thread at a time, `end` apart."""

    def __init__(self, url: str, context: ssl.SSLContext | None) -> None:
        """`context`: of https, which is shared as it takes long to make."""
        self._url, self._context = urlsplit(url), context
        self._proxy = proxy_of(url)
        self._open: http.client.HTTPConnection | None = None
        self._ended = False

    @property
    def is_open(self) -> bool:
        """Whether there is a connection to the server, as far as is known."""
        return self._open is not None

    def request(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], seconds: float
    ) -> Response:
        """Sends a request to `path` below the address.

        Raises `NotConnected`, `Broken`, and TimeoutError where the whole takes over `seconds`.
        """
        deadline = time.monotonic() + seconds
        reused = self._open is not None
        try:
            return self._exchange(method, path, body, headers, deadline)
        except (ConnectionError, http.client.BadStatusLine) as error:
            self.close()
            if not reused:
                raise Broken(f"{type(error).__name__}: {error}") from None
        except (http.client.HTTPException, OSError) as error:
            self.close()
            if isinstance(error, TimeoutError | NotConnected | Broken):
                raise
            raise Broken(f"{type(error).__name__}: {error}") from None
        # The server had closed a connection that was kept: the request goes over a new one.
        return self.request(method, path, body, headers, deadline - time.monotonic())

    def end(self) -> None:
        """Makes a request that another thread waits for fail, and those that follow."""
        self._ended = True
        if self._open is not None and (sock := self._open.sock) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the connection; the next request opens a new one."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        deadline: float,
    ) -> Response:
        if self._open is None:
            self._open = self._connected(min(CONNECT_SECONDS, deadline - time.monotonic()))
        opened, sock = self._open, self._open.sock
        if self._ended:
            raise Broken("the run ends")
        _until(sock, deadline)
        target = self._url.path + path
        own = dict(headers)
        if self._proxy is not None and self._context is None:
            target = f"http://{self._url.netloc}{target}"
            own |= _proxy_headers(self._proxy)
        opened.request(method, target, body, own)
        data = bytearray()
        with opened.getresponse() as response:
            while piece := response.read1(65536):
                data += piece
                if len(data) > MAX_BYTES:
                    raise Broken(f"the response has more than {MAX_BYTES} bytes")
                _until(sock, deadline)
        if response.length:
            raise Broken(f"{response.length} bytes of the response are missing")
        if response.will_close:
            self.close()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Response(response.status, found, bytes(data))

    def _connected(self, seconds: float) -> http.client.HTTPConnection:
        place = self._url if self._proxy is None else self._proxy
        host, port = place.hostname or "", place.port
        try:
            if self._context is None:
                opened = http.client.HTTPConnection(host, port, timeout=seconds)
            else:
                opened = http.client.HTTPSConnection(
                    host, port, timeout=seconds, context=self._context
                )
                if self._proxy is not None:
                    headers = _proxy_headers(self._proxy)
                    opened.set_tunnel(self._url.hostname or "", self._url.port, headers)
            opened.connect()
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            raise NotConnected(str(error) or type(error).__name__) from None
        return opened


def _until(sock: socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    sock.settimeout(left)


def proxy_of(url: str) -> SplitResult | None:
    """The proxy that the environment names for an address; None for one on this machine.

    Raises ValueError for a proxy that does not speak HTTP.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    if not (found := proxies.get(parts.scheme) or proxies.get("all")):
        return None
    proxy = urlsplit(found if "://" in found else f"http://{found}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise ValueError(
            f"The environment names a proxy of {proxy.scheme}:// for {host}; only http:// ones "
            "can be used. Set no_proxy for that host where it can be reached without."
        )
    return proxy


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    user = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}


def is_loopback(host: str | None) -> bool:
    """Whether a host is this machine."""
    if not host:
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
