"""A web server for one page: on this machine alone, behind a token, with nothing but the routes it is given."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import secrets
import sys
import threading
import time
import webbrowser
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from hmac import compare_digest
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any

from spwnet.errors import SettingsError, SpwnetError
from spwnet.storage import parse_json

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from jinja2 import Environment

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
MOST_BODY = 1 << 20
"""Bytes that a request may bring."""
MOST_CONNECTIONS = 64
"""Requests in work at a time; more are turned away."""
SECONDS = 10.0
"""In which a request has to have come in whole, and each piece of the answer to have been taken."""
TICKET_SECONDS = 60.0
PIECE = 1 << 16
"""Bytes of an answer that are written at a time."""

# Any port, because people forward ports; no other name, because a page from elsewhere may have its own lead here.
_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_HEADERS = {
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Page:
    """What a route gives for a page.

    Attributes
    ----------
    template : str
        File in ``spwnet/pages``.
    values : dict
        What it is filled with; each is escaped.
    """

    template: str
    values: Mapping[str, object] = field(default_factory=dict)

    def render(self, nonce: str = "") -> str:
        """Return the HTML; scripts and styles in it run by the nonce."""
        return _templates().get_template(self.template).render(nonce=nonce, **self.values)


class Server:
    """Serve a page on this machine, to whoever knows its address.

    An answer goes out only for the loopback address, a Host that names it, no Origin or this one, and the token.

    Parameters
    ----------
    routes : mapping of (method, path) to function
        The path is what follows the token. A function for "GET" takes nothing, one for "POST" the JSON object that
        came; both return a `Page` or what JSON can hold. A `SpwnetError` they raise is told to the page.
    port : int
        A free one if 0.

    Raises
    ------
    SettingsError
        If the port is taken or is none.

    Examples
    --------
    >>> with Server({("GET", "state"): lambda: {"step": 3}}) as server:
    ...     server.url.startswith("http://127.0.0.1:")
    True
    """

    def __init__(self, routes: Mapping[tuple[str, str], Callable[..., Any]], *, port: int = 0) -> None:
        try:
            self._listener = _Listener(routes, port)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SettingsError(
                f"expected a free port on this machine, but {port} cannot be had: {reason}; choose another, or 0 for "
                "any that is free"
            ) from error
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.1,), daemon=True)

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{LOOPBACK}:{self._listener.server_address[1]}/{self._listener.token}/"

    def ticket(self) -> str:
        """Return an address that leads to the page once, within a minute.

        For the command line of a browser, which other users of the machine can read.
        """
        word = secrets.token_urlsafe(32)
        self._listener.tickets[word] = time.monotonic() + TICKET_SECONDS
        return f"http://{LOOPBACK}:{self._listener.server_address[1]}/{word}/"

    def browse(self) -> bool:
        """Open the page in the user's browser, if there is a display; return whether that was tried with success."""
        shown = sys.platform in ("win32", "darwin") or any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY"))
        if not shown:
            return False
        try:
            return webbrowser.open(self.ticket())
        except (webbrowser.Error, OSError):
            return False

    def start(self) -> Server:
        """Begin to answer, in threads that do not keep the program alive; a second time does nothing."""
        if self._thread.ident is None:
            self._thread.start()
        return self

    def close(self) -> None:
        """Stop listening; a second time does nothing."""
        if self._thread.is_alive():
            self._listener.shutdown()
            self._thread.join()
        self._listener.server_close()

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("spwnet", "pages")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


class _Refused(Exception):
    """A request that gets this status."""

    def __init__(self, status: HTTPStatus, message: str = "", **headers: str) -> None:
        super().__init__(message or status.phrase)
        self.status, self.headers = status, headers


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    # On Windows it would let another program take over the port.
    allow_reuse_address = os.name == "posix"

    def __init__(self, routes: Mapping[tuple[str, str], Callable[..., Any]], port: int) -> None:
        self.routes = dict(routes)
        self.token = secrets.token_urlsafe(32)
        self.tickets: dict[str, float] = {}
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__((LOOPBACK, port), _Handler)

    def server_bind(self) -> None:
        # The method of HTTPServer asks the name service, which can take long and is not needed.
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            # No thread could be started that would give the place back.
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if isinstance(sys.exception(), OSError):
            logger.debug("a page went away before it had its answer", exc_info=True)
        else:
            logger.exception("a request could not be answered")


class _InTime(io.RawIOBase):
    """What comes from a connection until a time is over, however slowly it trickles."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._end = connection, time.monotonic() + SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request did not come in time")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    server: _Listener
    server_version, sys_version = "spwnet", ""
    has_read_body = False

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_InTime(self.connection))

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        try:
            self._check_origin()
            path = self._path()
            method = "GET" if self.command == "HEAD" else self.command
            route = self.server.routes.get((method, path))
            if route is None:
                allowed = sorted(known for known, place in self.server.routes if place == path)
                if not allowed:
                    raise _Refused(HTTPStatus.NOT_FOUND)
                raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, Allow=", ".join(allowed))
            arguments = (self._body(),) if method == "POST" else ()
            try:
                found = route(*arguments)
            except OSError as error:
                # One of the connection, further below, is a page that went away.
                raise RuntimeError(f"what answers '{path}' could not read or write") from error
            if isinstance(found, Page):
                nonce = secrets.token_urlsafe(16)
                self._reply(HTTPStatus.OK, found.render(nonce), "text/html", nonce)
            else:
                self._reply(HTTPStatus.OK, json.dumps(found, allow_nan=False), "application/json")
        except _Refused as refused:
            self._refuse(refused.status, str(refused), **refused.headers)
        except SpwnetError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except OSError:
            raise
        except Exception:  # a route that fails must not end the server
            logger.exception("the page asked for something that failed")
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "this failed; the log of the program says why")

    def _check_origin(self) -> None:
        hosts, origins = (self.headers.get_all(name, []) for name in ("Host", "Origin"))
        good = len(hosts) == 1 and _HOST.fullmatch(hosts[0]) is not None
        if not good or any(origin.lower() != f"http://{hosts[0]}".lower() for origin in origins):
            raise _Refused(HTTPStatus.FORBIDDEN)

    def _path(self) -> str:
        """Return what follows the token, which is not decoded: only the very names of the routes lead anywhere."""
        start, _, rest = self.path.partition("/")
        token, slash, path = rest.partition("/")
        given = token.encode("utf-8", "replace")
        if start or not slash:
            raise _Refused(HTTPStatus.NOT_FOUND)
        if not compare_digest(given, self.server.token.encode()):
            if self.command == "GET" and path == "" and self._redeemed(given):
                raise _Refused(HTTPStatus.SEE_OTHER, Location=f"/{self.server.token}/")
            raise _Refused(HTTPStatus.NOT_FOUND)
        return path

    def _redeemed(self, given: bytes) -> bool:
        tickets = self.server.tickets
        known = [word for word in list(tickets) if compare_digest(given, word.encode())]
        return any(time.monotonic() < tickets.pop(word, 0.0) for word in known)

    def _body(self) -> dict[str, Any]:
        lengths = self.headers.get_all("Content-Length", [])
        if self.headers.get_content_type() != "application/json" or "Content-Type" not in self.headers:
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
        if len(lengths) != 1 or not re.fullmatch("[0-9]{1,18}", lengths[0]) or "Transfer-Encoding" in self.headers:
            raise _Refused(HTTPStatus.BAD_REQUEST, "expected one Content-Length")
        length = int(lengths[0])
        if length > MOST_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected {MOST_BODY} bytes at most")
        text = self.rfile.read(length)
        self.has_read_body = True
        try:
            value = parse_json(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise _Refused(HTTPStatus.BAD_REQUEST, "expected a JSON object")
        return value

    def _refuse(self, status: HTTPStatus, message: str, **headers: str) -> None:
        self._tell(status, message, **headers)
        if self.command == "POST" and not self.has_read_body:
            # What is left unread when a connection closes can cost the other side the answer.
            with suppress(OSError, ValueError):
                self.rfile.read(max(0, min(int(self.headers.get("Content-Length", 0)), MOST_BODY)))

    def _tell(self, status: HTTPStatus, message: str = "", **headers: str) -> None:
        self._reply(status, json.dumps({"error": message or status.phrase}), "application/json", **headers)

    def _reply(self, status: HTTPStatus, text: str, kind: str, nonce: str = "", **headers: str) -> None:
        own = f"'nonce-{nonce}'" if nonce else "'none'"
        policy = (
            f"default-src 'none'; script-src {own}; style-src {own}; img-src data: blob:; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        body = text.encode()
        if self.request_version == "HTTP/0.9":
            # So old a request, or one that is none, would get no status and no headers.
            self.request_version = "HTTP/1.0"
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Security-Policy": policy, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.connection.settimeout(SECONDS)
        self.end_headers()
        if self.command != "HEAD":
            for start in range(0, len(body), PIECE):
                self.wfile.write(body[start : start + PIECE])

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is not a request this server knows, without a word of what came."""
        if code == HTTPStatus.NOT_IMPLEMENTED:
            self._tell(HTTPStatus.METHOD_NOT_ALLOWED, Allow="GET, HEAD, POST")
        else:
            self._tell(HTTPStatus(code))

    def log_message(self, format: str, *args: Any) -> None:
        """Keep requests out of what the user sees, and the token out of every log."""
        logger.debug("%r", (format % args).replace(self.server.token, "…"))
