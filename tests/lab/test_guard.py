"""Who is let in, what is answered, and what every answer carries. All over real sockets."""

import http.client
import json
import re
import socket

import pytest

from ditlab.lab.server.serve import allowed_hosts, needs_token
from tests.lab.shell import PATIENCE, ask, connect, eventually, serving, small_app, talk

TOKEN = "correct-horse-battery-staple"

SEALS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    folder = tmp_path_factory.mktemp("static")
    (folder / "main.js").write_text("// script")
    with serving(small_app(folder), max_body=100_000) as port:
        yield port


@pytest.fixture(scope="module")
def outer():
    """A server for other machines, here only on loopback."""
    with serving(small_app(), host="0.0.0.0", token=TOKEN) as port:
        yield port


def refused(answer, status):
    assert answer.status == status, answer
    error = json.loads(answer.body)["error"]
    assert error
    assert "\n" not in error
    return error


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
@pytest.mark.parametrize("path", ["/", "/static/main.js", "/missing"])
def test_own_names_are_answered(port, name, path):
    assert ask(port, path, host=f"{name}:{port}").status == (404 if path == "/missing" else 200)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:{port}",
        "127.0.0.1.evil.example:{port}",  # names whose owner lets them point to 127.0.0.1
        "localhost.evil.example:{port}",
        "localtest.me:{port}",
        "localhost.:{port}",
        "evil.example",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.0.0.1:{port}:{port}",
        "127.0.0.1:{port}.evil.example",
        "127.0.0.1:{port}@evil.example",
        "evil.example@127.0.0.1:{port}",
        "evil.example,127.0.0.1:{port}",
        "0.0.0.0:{port}",
        "127.1:{port}",
        "2130706433:{port}",
        "10.0.0.1:{port}",
        "[::1]",
        "[::]:{port}",
        "[::ffff:127.0.0.1]:{port}",
        "::1:{port}",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/", "/static/main.js", "/nowhere"])
def test_other_names_are_not(port, host, path):
    answer = ask(port, path, host=host.format(port=port))
    assert "ditlab lab printed" in refused(answer, 403)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("hosts", [(), ("127.0.0.1:{port}", "127.0.0.1:{port}"), ("127.0.0.1:{port}", "evil.example")])
def test_host_is_sent_once(port, version, hosts):
    lines = "".join(f"Host: {host.format(port=port)}\r\n" for host in hosts)
    answer = talk(port, f"GET / HTTP/{version}\r\n{lines}Connection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert b"one Host header" in answer
    assert b"content-security-policy: default-src 'none'" in answer


@pytest.mark.parametrize("target", ["http://evil.example/", "http://127.0.0.1:{port}/", "*", "evil.example:80"])
def test_only_paths_are_asked_for(port, target):
    target = target.format(port=port)
    answer = talk(port, f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 400 "), answer


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]"])
def test_own_origin_is_answered(port, name):
    host = f"{name}:{port}"
    answer = ask(port, "/echo", "POST", [("Origin", f"http://{host}")], b"abc", host)
    assert (answer.status, json.loads(answer.body)) == (200, {"bytes": 3})


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "",
        "http://127.0.0.1",
        "http://127.0.0.1:1",
        "https://127.0.0.1:{port}",
        "http://localhost:{port}",
        "http://127.0.0.1:{port}.evil.example",
        "http://127.0.0.1:{port}, http://evil.example",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_other_origins_are_not(port, origin, method):
    answer = ask(port, "/echo", method, [("Origin", origin.format(port=port))])
    refused(answer, 403)
    assert not [name for name, _ in answer.headers if name.lower().startswith("access-control")]


def test_second_origin_is_not_overlooked(port):
    own = ("Origin", f"http://127.0.0.1:{port}")
    refused(ask(port, "/", headers=[own, ("Origin", "http://evil.example")]), 403)


LINK = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.mark.parametrize("site", ["cross-site", "same-site", "something-new"])
@pytest.mark.parametrize(
    ("path", "method", "headers", "status"),
    [
        ("/", "GET", LINK, 200),
        ("/?run=demo", "GET", LINK, 200),
        ("/", "GET", LINK | {"Sec-Fetch-Dest": "iframe"}, 403),
        ("/", "GET", {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
        ("/", "POST", LINK, 403),
        ("/", "GET", {}, 403),
        ("/static/main.js", "GET", {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}, 403),
        ("/large", "GET", LINK, 403),
        ("/echo", "POST", {"Sec-Fetch-Mode": "no-cors"}, 403),
    ],
)
def test_other_pages_may_only_link(port, site, path, method, headers, status):
    answer = ask(port, path, method, [("Sec-Fetch-Site", site), *headers.items()])
    assert answer.status == status


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_own_page_may_ask(port, site):
    headers = [("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", "cors")]
    assert ask(port, "/echo", "POST", headers, b"x").status == 200


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/", "GET", 200),
        ("/", "HEAD", 200),
        ("/", "OPTIONS", 405),
        ("/", "DELETE", 405),
        ("/", "TRACE", 405),
        ("/echo", "GET", 405),
        ("/static/main.js", "GET", 200),
        ("/static/main.js", "PUT", 405),
        ("/static/none.js", "GET", 404),
        ("/nowhere", "GET", 404),
        ("/missing", "GET", 404),
        ("/broken", "GET", 500),
    ],
)
def test_every_answer_is_sealed(port, path, method, status):
    answer = ask(port, path, method)
    assert answer.status == status
    policy = dict(part.strip().split(" ", 1) for part in answer.header("Content-Security-Policy").split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data: blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert {name: answer.header(name) for name in SEALS} == SEALS
    assert answer.header("Cache-Control") == "no-cache"
    assert answer.header("Server") is None
    if status >= 400 and method == "GET":
        refused(answer, status)


def test_own_cache_control_is_kept(port):
    assert ask(port, "/cached").header("Cache-Control") == "max-age=60"


def next_line(capsys):
    """The one line on stderr, which may come after the answer."""
    seen = []

    def whole():
        seen.append(capsys.readouterr().err)
        return "".join(seen).endswith("\n")

    eventually(whole)
    (line,) = "".join(seen).splitlines(keepends=True)
    return line


def test_error_details_go_to_the_terminal_alone(port, capsys):
    error = refused(ask(port, "/broken"), 500)
    assert "secret" not in error
    line = next_line(capsys)
    assert re.fullmatch(
        r"ditlab: GET /broken failed: RuntimeError: a secret detail \[2J of two lines \(.*:\d+\)\n", line
    )


def test_answer_that_breaks_off_is_seen_to(port, capsys):
    with pytest.raises(http.client.IncompleteRead):
        ask(port, "/half")
    assert "RuntimeError: then nothing" in next_line(capsys)


def test_large_upload_is_refused_before_it_is_sent(port):
    with connect(port) as sock:
        head = f"POST /echo HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 100001\r\n\r\n"
        sock.sendall(head.encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 413 ")


def test_large_upload_is_told_while_it_is_sent(port):
    assert "100,000 bytes" in refused(ask(port, "/echo", "POST", body=bytes(10_000_000)), 413)
    assert json.loads(ask(port, "/echo", "POST", body=bytes(100_000)).body) == {"bytes": 100_000}


def test_upload_without_length_is_counted(port):
    """Chunked, and never ending: the answer comes as soon as there is too much."""
    with connect(port) as sock:
        head = f"POST /echo HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nTransfer-Encoding: chunked\r\n\r\n"
        sock.sendall(head.encode())
        for _ in range(11):
            sock.sendall(b"2710\r\n" + bytes(10_000) + b"\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 413 ")
        sock.sendall(b"0\r\n\r\n" + f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        response = b""
        while b"the page" not in response:  # the connection is still in step
            piece = sock.recv(65536)
            assert piece
            response += piece


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "99999999999999999999999", "5, 6"])
def test_lengths_that_are_none_are_refused(port, length):
    head = f"POST /echo HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    assert re.match(rb"HTTP/1.1 (400|413) ", talk(port, head.encode()))


def test_length_and_chunks_together_smuggle_nothing(port):
    """Bytes after the shorter reading are not taken for a second request that other rules would hold for."""
    smuggled = f"GET /missing HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
    head = f"POST /echo HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
    body = f"Content-Length: {len(smuggled) + 5}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
    assert talk(port, (head + body).encode()).count(b"HTTP/1.1 ") == 1


def test_token_opens_the_page_once_and_the_cookie_from_then_on(outer):
    first = ask(outer, f"/?run=demo&token={TOKEN}&layer=2")
    assert (first.status, first.header("Location")) == (303, "/?run=demo&layer=2")
    assert first.header("Cache-Control") == "no-store"
    cookie, *attributes = first.header("Set-Cookie").split("; ")
    assert {a.lower() for a in attributes} >= {"httponly", "samesite=strict", "path=/"}
    for path in ("/", "/cached"):
        assert ask(outer, path, headers=[("Cookie", f"other=1; {cookie}")]).status == 200
        refused(ask(outer, path), 403)
        refused(ask(outer, path, headers=[("Cookie", cookie[:-1])]), 403)


def test_token_works_from_a_link_on_another_page(outer):
    """There a redirect would come without the strict cookie; the page itself goes on."""
    headers = [("Sec-Fetch-Site", "cross-site"), *LINK.items()]
    answer = ask(outer, f"/?token={TOKEN}", headers=headers)
    assert (answer.status, answer.header("Refresh")) == (200, "0; url=/")
    assert TOKEN in answer.header("Set-Cookie")


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/", "GET"),
        ("/?token=", "GET"),
        ("/?token=wrong", "GET"),
        (f"/?token={TOKEN}x", "GET"),
        (f"/?token={TOKEN[:-1]}", "GET"),
        ("/?token=%C3%A9%FF", "GET"),
        (f"/?Token={TOKEN}", "GET"),
        (f"/cached?token={TOKEN}", "GET"),
        (f"/echo?token={TOKEN}", "POST"),
        (f"//evil.example/?token={TOKEN}", "GET"),
        ("/nowhere", "GET"),
    ],
)
def test_without_the_token_nothing_is_told(outer, path, method):
    answer = ask(outer, path, method)
    refused(answer, 403)
    assert TOKEN.encode() not in answer.body
    assert answer.header("Location") is None
    assert answer.header("Set-Cookie") is None


def test_empty_cookie_is_no_token(outer):
    name = ask(outer, f"/?token={TOKEN}").header("Set-Cookie").partition("=")[0]
    for value in ("", '""', "\xe9"):
        refused(ask(outer, "/", headers=[("Cookie", f"{name}={value}".encode("latin-1"))]), 403)


def test_token_does_not_open_to_other_names_and_pages(outer):
    refused(ask(outer, f"/?token={TOKEN}", host=f"evil.example:{outer}"), 403)
    refused(ask(outer, f"/?token={TOKEN}", headers=[("Origin", "http://evil.example")]), 403)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", False),
        ("127.8.9.1", False),
        ("localhost", False),
        ("::1", False),
        ("0.0.0.0", True),
        ("::", True),
        ("", True),
        ("192.168.1.5", True),
        ("lab.example", True),
        ("localhost.evil.example", True),
    ],
)
def test_all_but_loopback_needs_a_token(host, expected):
    assert needs_token(host) is expected


def test_names_of_a_server_for_other_machines():
    allowed = allowed_hosts("0.0.0.0", 8000)
    own = socket.gethostname()
    for name in ("127.0.0.1", "192.168.1.5", "[fe80::1]", "localhost", own, own.upper()):
        assert allowed(f"{name}:8000"), name
    for header in (
        "evil.example:8000",
        "192.168.1.5:8001",
        "192.168.1.5",
        "192.168.1.5.evil.example:8000",
        f"x{own}:8000",
    ):
        assert not allowed(header), header
    assert allowed_hosts("lab.example", 8000)("lab.example:8000")
    assert allowed_hosts("127.0.0.1", 80)("localhost")  # browsers leave out :80
    assert not allowed_hosts("127.0.0.1", 8000)("192.168.1.5:8000")


def test_ipv6_is_served():
    if not socket.has_ipv6:
        pytest.skip("this Python has no IPv6")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")
    with serving(small_app(), host="::1") as port:
        assert ask(port, host=f"[::1]:{port}", to="::1").status == 200
        refused(ask(port, host=f"evil.example:{port}", to="::1"), 403)
        with socket.create_connection(("::1", port), timeout=PATIENCE):
            pass
