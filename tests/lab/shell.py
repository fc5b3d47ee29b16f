"""A real server in a thread, and clients that mind no manners."""

import http.client
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ditlab.lab.server.guard import Guard, exception_handlers
from ditlab.lab.server.serve import Server, allowed_hosts, listen
from ditlab.lab.server.timeouts import DEFAULT

PATIENCE = 20  # seconds until a test gives up; nothing here takes a tenth of that


@contextmanager
def serving(app, host="127.0.0.1", limits=DEFAULT, **guard):
    """The application behind its guard on a free port, which is what you get."""
    sock = listen(host, 0)
    port = sock.getsockname()[1]
    ready = threading.Event()
    server = Server(Guard(app, allowed_hosts(host, port), **guard), ready.set, limits)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        yield port
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name):
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1, f"{name} came more than once: {values}"
        return values[0] if values else None


def ask(port, path="/", method="GET", headers=(), body=b"", host=None, to="127.0.0.1"):
    """One request on a connection of its own; ``host`` is the Host header, and the path goes out as it is."""
    connection = http.client.HTTPConnection(to, port, timeout=PATIENCE)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    sent = [("Host", host if host is not None else f"127.0.0.1:{port}"), *headers]
    if body:
        sent.append(("Content-Length", str(len(body))))
    for name, value in sent:
        connection.putheader(name, value)
    connection.endheaders(body or None)
    response = connection.getresponse()
    answer = Answer(response.status, response.getheaders(), response.read())
    connection.close()
    return answer


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def talk(port, data):
    """Send bytes, and read until the server closes."""
    with connect(port) as sock:
        sock.sendall(data)
        return read_all(sock)


def read_all(sock):
    """What comes until the other side closes, in whatever way."""
    pieces = []
    with suppress(ConnectionError):
        while piece := sock.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def eventually(condition, seconds=PATIENCE):
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def small_app(static=None):
    """A page, an upload, a download of 64 MB, and what goes wrong."""

    async def page(request):
        return PlainTextResponse("the page")

    async def echo(request):
        return JSONResponse({"bytes": len(await request.body())})

    async def broken(request):
        raise RuntimeError("a secret detail\x1b[2J\nof two lines")

    async def half(request):
        async def pieces():
            yield b"some"
            raise RuntimeError("then nothing")

        return StreamingResponse(pieces(), headers={"content-length": "100"})

    async def early(request):
        async def pieces():
            yield b"some"
            await request.body()

        return StreamingResponse(pieces())

    async def missing(request):
        raise HTTPException(404, "no run of that name; there is demo")

    async def cached(request):
        return PlainTextResponse("x", headers={"Cache-Control": "max-age=60"})

    async def large(request):
        return Response(bytes(64 * 2**20))

    routes = [
        Route("/", page),
        Route("/echo", echo, methods=["POST"]),
        Route("/early", early, methods=["POST"]),
        Route("/broken", broken),
        Route("/half", half),
        Route("/missing", missing),
        Route("/cached", cached),
        Route("/large", large),
    ]
    if static is not None:
        routes.append(Mount("/static", StaticFiles(directory=static)))
    return Starlette(routes=routes, exception_handlers=exception_handlers)
