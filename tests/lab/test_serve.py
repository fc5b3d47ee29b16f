"""Where the server listens, what it calls itself, and how it ends."""

import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from ditlab.core.errors import InputError
from ditlab.lab.server.serve import address, listen
from tests.lab.shell import PATIENCE, connect

SCRIPT = """
import asyncio
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from ditlab.lab.server.guard import Guard
from ditlab.lab.server.serve import address, allowed_hosts, listen, serve

async def endless(request):
    await asyncio.sleep(1000)

async def large(request):
    return Response(bytes(2**26))

sock = listen("127.0.0.1", 0)
app = Starlette(routes=[Route("/endless", endless), Route("/large", large)])
guard = Guard(app, allowed_hosts("127.0.0.1", sock.getsockname()[1]))
raise SystemExit(serve(guard, sock, on_ready=lambda url: print(url, flush=True)))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_soon(number, status):
    """With connections of all kinds open, and nothing printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        url = process.stdout.readline()
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\n", url)[1])
        head = f" HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        sockets = [connect(port) for _ in range(5)]
        for sock, data in zip(sockets, ["", "GET", f"GET /endless{head}\r\n", f"GET /large{head}\r\n"], strict=False):
            sock.sendall(data.encode())
        assert sockets[3].recv(10) == b"HTTP/1.1 2"
        sockets[4].sendall(f"GET /nowhere{head}\r\n".encode())
        assert sockets[4].recv(10) == b"HTTP/1.1 4"
        begun = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
        assert time.monotonic() - begun < 5  # two at rest; the machine may be busy
        assert (process.returncode, out, err) == (status, "", "")
        for sock in sockets:
            sock.close()
    finally:
        process.kill()
        process.communicate()


def test_taken_port_is_named():
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port} is taken"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 65536, "--port 65536 is no port"),
        ("127.0.0.1", -1, "--port -1 is no port"),
        ("192.0.2.1", 0, "--host 192.0.2.1: .*--host 127.0.0.1"),  # TEST-NET-1: no machine has it
        ("no.such.name.invalid", 0, "--host no.such.name.invalid: "),
        ("a..b", 0, "--host a..b: "),
    ],
)
def test_address_that_cannot_be_had_is_named(host, port, message):
    with pytest.raises(InputError, match=message):
        listen(host, port)


def test_address_opens_in_a_browser():
    with listen("127.0.0.1", 0) as sock:
        assert address(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}/"
    with listen("localhost", 0) as sock:
        assert address(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}/"
    with listen("0.0.0.0", 0) as sock:
        assert address(sock) == f"http://{socket.gethostname()}:{sock.getsockname()[1]}/"
