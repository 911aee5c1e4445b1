from __future__ import annotations

import contextlib
import http.client
import json
import logging
import re
import socket
import threading
import time
import webbrowser
from urllib.parse import urlsplit

import pytest

from spwnet import serving
from spwnet.errors import InputError, SettingsError
from spwnet.serving import Page, Server

NAME = "<script>alert(1)</script>.png"


def fail():
    raise RuntimeError("a secret of the program")


def refuse(body):
    raise InputError(f"expected a class, but got {body['id']!r}; choose one")


RECEIVED = []


def deny(_=None):
    raise PermissionError(13, "denied")


@pytest.fixture
def bodies():
    """What routes were given since the test began."""
    RECEIVED.clear()
    return RECEIVED


@pytest.fixture(scope="module")
def server():
    def echo(body):
        RECEIVED.append(body)
        return {"got": body}

    routes = {
        ("GET", ""): lambda: Page("live.html", {"name": NAME}),
        ("GET", "state"): lambda: {"step": 3, "name": NAME},
        ("GET", "broken"): fail,
        ("GET", "denied"): deny,
        ("POST", "denied"): deny,
        ("POST", "stop"): echo,
        ("POST", "refuse"): refuse,
    }
    with Server(routes) as server:
        yield server


def ask(server, path="", method="GET", body=None, headers=None, base=None):
    """Status, headers and body of an answer; `path` follows the token, `base` takes its place."""
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    try:
        connection.request(method, (parts.path if base is None else base) + path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def send(server, text, wait=10.0):
    """All that comes back for what is sent byte by byte as it stands."""
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=wait) as connection:
        connection.sendall(text.encode("latin-1"))
        found = b""
        while piece := connection.recv(65536):
            found += piece
    return found.decode("latin-1")


def post(server, path, value, headers=None):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return ask(server, path, "POST", body, {"Content-Type": "application/json", **(headers or {})})


def test_a_page_and_json_come_with_headers_that_forbid_everything_else(server):
    status, headers, body = ask(server)
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    [nonce] = set(re.findall(r'<(?:script|style) nonce="([^"]+)">', body.decode()))
    policy = headers["Content-Security-Policy"]
    for part in (
        "default-src 'none'", f"script-src 'nonce-{nonce}'", f"style-src 'nonce-{nonce}'", "img-src data: blob:",
        "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
    ):  # fmt: skip
        assert part in policy.split("; ")
    assert nonce not in ask(server)[2].decode()
    status, headers, body = ask(server, "state")
    assert status == 200
    assert json.loads(body) == {"step": 3, "name": NAME}
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "script-src 'none'" in headers["Content-Security-Policy"]
    assert "Python" not in headers["Server"]
    assert "Access-Control-Allow-Origin" not in headers


def test_names_are_escaped(server):
    body = ask(server)[2].decode()
    assert "alert(1)" in body
    assert "<script>alert" not in body
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.png" in body


def test_the_server_listens_on_loopback_only(server):
    port = urlsplit(server.url).port
    assert server.url.startswith("http://127.0.0.1:")
    others = {"127.0.0.2"}
    # In a container the machine's own name may lead nowhere.
    with contextlib.suppress(socket.gaierror):
        others |= {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in others - {"127.0.0.1"}:
        with socket.socket() as connection:
            connection.settimeout(2)
            assert connection.connect_ex((address, port)) != 0


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:8080", "[::1]:80", "127.0.0.1"])
def test_hosts_that_are_this_machine_are_answered(server, host):
    host = host.format(port=urlsplit(server.url).port)
    assert ask(server, "state", headers={"Host": host})[0] == 200
    assert ask(server, "state", headers={"Host": host, "Origin": f"http://{host}"})[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.", "127.0.0.1:", "127.0.0.1:80@evil",
     "127.0.0.2", "0.0.0.0", "user@127.0.0.1", "127.0.0.1:999999", "", " ", "[::1", "127.0.0.1 evil"],
)  # fmt: skip
def test_other_hosts_are_refused(server, host):
    status, _, body = ask(server, "state", headers={"Host": host})
    assert status == 403
    assert json.loads(body) == {"error": "Forbidden"}


def test_no_host_and_two_hosts_are_refused(server):
    path = urlsplit(server.url).path
    for headers in ("", "Host: 127.0.0.1\r\nHost: 127.0.0.1\r\n", "Host: 127.0.0.1\r\nHost: evil.example\r\n"):
        assert send(server, f"GET {path}state HTTP/1.1\r\n{headers}\r\n").startswith("HTTP/1.0 403 ")


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "https://{host}", "http://127.0.0.1:1", "http://{host}.evil.example",
     "http://{host}/", ""],
)  # fmt: skip
def test_other_origins_are_refused(server, bodies, origin):
    parts = urlsplit(server.url)
    host = f"{parts.hostname}:{parts.port}"
    headers = {"Origin": origin.format(host=host)}
    assert ask(server, "state", headers=headers)[0] == 403
    assert post(server, "stop", {}, headers)[0] == 403
    assert bodies == []
    assert post(server, "stop", {}, {"Origin": f"http://{host}"})[0] == 200


def test_nothing_comes_without_the_token(server, bodies):
    right = urlsplit(server.url).path
    assert len(right) > 40
    for base in ("/", "//", "/state", "/stop", "/x/", "/é/", f"{right[:-2]}/", f"{right[:-1]}x/", right[:-1], "/%00/",
                 right.upper(), right.replace(right[1], f"%{ord(right[1]):x}", 1), f"/x{right}"):  # fmt: skip
        request = f"GET {base} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert send(server, request).startswith("HTTP/1.0 404 "), base
        for path in ("", "state"):
            status, _, body = ask(server, path, base=base.replace("é", "%c3%a9"))
            assert status == 404, base
            assert json.loads(body) == {"error": "Not Found"}
    for base in ("/", "/x/"):
        status, _, body = ask(server, "stop", "POST", b"{}", {"Content-Type": "application/json"}, base=base)
        assert (status, json.loads(body)) == (404, {"error": "Not Found"})
    assert bodies == []


def test_each_server_has_its_own_token(server):
    with Server({("GET", "state"): dict}) as other:
        assert urlsplit(other.url).path != urlsplit(server.url).path
        assert ask(other, "state", base=urlsplit(server.url).path)[0] == 404


@pytest.mark.parametrize(
    "path",
    ["../run.json", "..%2frun.json", "%2e%2e/run.json", "%2e%2e%2frun.json", "state/../../run.json", "./state",
     "state/", "/state", "state?x=1", "%73tate", "..\\run.json", "live.js", "live.html", "run.json", "etc/passwd",
     "/etc/passwd", "favicon.ico", "\0"],
)  # fmt: skip
def test_only_the_routes_lead_anywhere(server, path):
    request = f"GET {urlsplit(server.url).path}{path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert send(server, request).startswith("HTTP/1.0 404 ")


def test_a_whole_address_as_a_path_is_refused(server):
    request = f"GET {server.url}state HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert send(server, request).startswith("HTTP/1.0 404 ")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "__init__"])
def test_other_methods_are_refused(server, method):
    path = urlsplit(server.url).path
    answer = send(server, f"{method} {path}state HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith("HTTP/1.0 405 ")
    assert "Allow: GET, HEAD, POST" in answer


def test_a_route_answers_its_own_method_alone(server, bodies):
    assert ask(server, "stop")[0] == 405
    status, headers, _ = post(server, "state", {})
    assert status == 405
    assert headers["Allow"] == "GET"
    assert bodies == []


def test_head_gives_the_headers_of_get(server):
    status, headers, body = ask(server, "state", "HEAD")
    assert status == 200
    assert body == b""
    assert int(headers["Content-Length"]) == len(ask(server, "state")[2])


def test_what_is_posted_comes_as_an_object(server, bodies):
    status, _, body = post(server, "stop", {"name": "Knochen ü"})
    assert status == 200
    assert json.loads(body) == {"got": {"name": "Knochen ü"}}
    assert bodies == [{"name": "Knochen ü"}]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"3", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000, b"{}{}"], ids=repr
)
def test_what_is_no_object_is_refused(server, bodies, body):
    status, _, answer = post(server, "stop", body)
    assert (status, json.loads(answer)) == (400, {"error": "expected a JSON object"})
    assert bodies == []


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", None])
def test_what_is_not_json_is_refused(server, bodies, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    assert ask(server, "stop", "POST", b"{}", headers)[0] == 415
    assert bodies == []
    assert ask(server, "stop", "POST", b"{}", {"Content-Type": "application/json; charset=utf-8"})[0] == 200


def test_more_than_the_limit_is_refused_before_it_is_read(server, bodies, monkeypatch):
    monkeypatch.setattr(serving, "MOST_BODY", 1000)
    path = urlsplit(server.url).path
    status, _, body = post(server, "stop", {"x": "y" * 2000})
    assert (status, json.loads(body)) == (413, {"error": "expected 1000 bytes at most"})
    monkeypatch.setattr(serving, "SECONDS", 0.2)
    request = f"POST {path}stop HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    assert send(server, f"{request}999999999999\r\n\r\n").startswith("HTTP/1.0 413 ")
    assert bodies == []


@pytest.mark.parametrize(
    "lines",
    ["", "Content-Length: -1\r\n", "Content-Length: +2\r\n", "Content-Length: 2, 2\r\n", "Content-Length: two\r\n",
     "Content-Length: 2\r\nContent-Length: 2\r\n", "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
     "Content-Length: 0x2\r\n", f"Content-Length: {'9' * 30}\r\n"],
)  # fmt: skip
def test_a_length_that_is_none_is_refused(server, bodies, lines, monkeypatch):
    monkeypatch.setattr(serving, "SECONDS", 0.3)
    path = urlsplit(server.url).path
    request = f"POST {path}stop HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{lines}\r\n{{}}"
    assert send(server, request).startswith("HTTP/1.0 400 ")
    assert bodies == []


def test_errors_for_users_are_told_and_others_only_logged(server, caplog):
    status, _, body = post(server, "refuse", {"id": "<b>"})
    assert (status, json.loads(body)) == (400, {"error": "expected a class, but got '<b>'; choose one"})
    assert caplog.records == []
    status, _, body = ask(server, "broken")
    assert status == 500
    assert b"secret" not in body
    assert "a secret of the program" in caplog.text


def test_files_that_a_route_cannot_read_are_told_as_any_failure(server, caplog):
    for status, _, body in (ask(server, "denied"), post(server, "denied", {})):
        assert (status, json.loads(body)) == (500, {"error": "this failed; the log of the program says why"})
    assert len(caplog.records) == 2
    assert "PermissionError" in caplog.text


def test_a_refusal_of_what_was_read_ends_the_connection(server):
    path, body = urlsplit(server.url).path, '{"id": 1}'
    start = time.monotonic()
    answer = send(
        server,
        f"POST {path}refuse HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}",
    )
    assert answer.startswith("HTTP/1.0 400 ")
    assert time.monotonic() - start < 3


def test_requests_are_not_printed_and_the_token_is_not_logged(server, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        ask(server, "state")
        ask(server, "nowhere\x1b[31m".replace("\x1b", "%1b"))
        send(server, "no request at all\r\n\r\n")
        send(server, "GET / HTTP/9.9\r\n\r\n")
        send(server, f"GET /{'x' * 70_000} HTTP/1.1\r\n\r\n")
    assert capfd.readouterr() == ("", "")
    assert "state" in caplog.text
    assert urlsplit(server.url).path.strip("/") not in caplog.text


def test_what_is_no_request_gets_a_plain_refusal(server):
    for request in ("no request at all\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", f"POST /{'x' * 70_000} HTTP/1.1\r\n\r\n",
                    "POST / HTTP/1.1\r\n" + "X: y\r\n" * 200 + "\r\n"):  # fmt: skip
        answer = send(server, request)
        assert re.match(r"HTTP/1.0 (400|414|431|505) ", answer), answer
        assert "nosniff" in answer
        assert "request at all" not in answer


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def wait_for_threads(count):
    wait_until(lambda: threading.active_count() <= count)


def test_half_a_request_does_not_hold_a_thread(server, monkeypatch):
    monkeypatch.setattr(serving, "SECONDS", 0.3)
    before = threading.active_count()
    path = urlsplit(server.url).path
    length = "Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
    for request in ("", "GET", f"GET {path} HTTP/1.1\r\nHost:", f"POST {path}stop HTTP/1.1\r\n{length}"):
        assert send(server, request) == ""
    wait_for_threads(before)


def test_a_request_that_trickles_does_not_hold_a_thread(server, monkeypatch):
    monkeypatch.setattr(serving, "SECONDS", 0.4)
    parts = urlsplit(server.url)
    start = time.monotonic()
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as connection:
        connection.settimeout(0.05)
        with pytest.raises(ConnectionError):  # noqa: PT012
            while time.monotonic() - start < 30:
                connection.sendall(b"x")
                try:
                    if connection.recv(10) == b"":
                        raise ConnectionResetError
                except TimeoutError:
                    pass


def test_more_connections_than_the_limit_are_turned_away(monkeypatch):
    def answered():
        try:
            return ask(server, "state")[0] == 200
        except (ConnectionError, http.client.BadStatusLine):
            return False

    monkeypatch.setattr(serving, "MOST_CONNECTIONS", 2)
    with Server({("GET", "state"): dict}) as server:
        parts = urlsplit(server.url)
        idle = [socket.create_connection((parts.hostname, parts.port)) for _ in range(2)]
        # Connections are taken in their order.
        assert not answered()
        for connection in idle:
            connection.close()
        wait_until(answered)


def test_a_thread_that_cannot_be_started_takes_no_place(monkeypatch, caplog):
    monkeypatch.setattr(serving, "MOST_CONNECTIONS", 1)

    def refused(*_):
        raise RuntimeError("can't start new thread")

    with Server({("GET", "state"): dict}) as server:
        with monkeypatch.context() as patch:
            patch.setattr(serving.ThreadingHTTPServer, "process_request", refused)
            for _ in range(2):
                with pytest.raises((ConnectionError, http.client.BadStatusLine)):
                    ask(server, "state")
        assert ask(server, "state")[0] == 200
    assert len(caplog.records) == 2


def test_a_reader_that_goes_away_is_no_error(caplog, capfd):
    ready, go = threading.Event(), threading.Event()

    def large():
        ready.set()
        go.wait(5)
        return {"text": "x" * 20_000_000}

    with Server({("GET", "large"): large}) as server:
        parts = urlsplit(server.url)
        before = threading.active_count()
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.sendall(f"GET {parts.path}large HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            ready.wait(5)
        go.set()
        wait_for_threads(before)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_a_ticket_leads_to_the_page_once(server):
    ticket = urlsplit(server.ticket()).path
    assert ticket != urlsplit(server.url).path
    for path, method in (("state", "GET"), ("", "HEAD")):
        assert ask(server, path, method, base=ticket)[0] == 404
    status, headers, _ = ask(server, base=ticket)
    assert status == 303
    assert headers["Location"] == urlsplit(server.url).path
    assert ask(server, base=ticket)[0] == 404


def test_a_ticket_runs_out(server, monkeypatch):
    monkeypatch.setattr(serving, "TICKET_SECONDS", -1.0)
    assert ask(server, base=urlsplit(server.ticket()).path)[0] == 404


def test_the_browser_is_given_a_ticket_if_there_is_a_display(server, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not server.browse()
    assert opened == []
    monkeypatch.setenv("DISPLAY", ":0")
    assert server.browse()
    [url] = opened
    assert urlsplit(server.url).path.strip("/") not in url
    assert ask(server, base=urlsplit(url).path)[0] == 303
    monkeypatch.setattr(webbrowser, "open", lambda url: (_ for _ in ()).throw(webbrowser.Error("none")))
    assert not server.browse()


def test_a_port_that_cannot_be_had_is_an_error(server):
    taken = urlsplit(server.url).port
    with pytest.raises(SettingsError, match=rf"expected a free port .* but {taken} cannot be had: .*choose another"):
        Server({}, port=taken)
    with pytest.raises(SettingsError, match=r"expected a free port .* but 70000 cannot be had: "):
        Server({}, port=70_000)


def test_after_closing_nobody_answers():
    server = Server({("GET", "state"): dict}).start()
    assert ask(server, "state")[0] == 200
    server.close()
    server.close()
    with pytest.raises(OSError, match="refused"):
        ask(server, "state")
    with Server({}, port=0) as other:
        other.close()
    Server({}).close()


def test_a_value_that_is_missing_in_a_template_is_seen():
    with pytest.raises(Exception, match="'name' is undefined"):
        Page("live.html").render("x")
