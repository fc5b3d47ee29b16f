"""Bind an address, say which names belong to it, and serve there until told to stop."""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import logging
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from ditlab.core.errors import InputError
from ditlab.lab.server.timeouts import DEFAULT, Limits, Patient

BACKLOG = 256
SECONDS_TO_STOP = 1  # for answers under way; with what comes before and after, the process ends within three


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any that is free.

    Raises:
        InputError: it cannot; the message names the option to change.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port} is no port: choose one from 1 to 65535, or 0 for any")
    try:
        places = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, place = min(places, key=lambda place: place[0] != socket.AF_INET)  # IPv4 if there is both
        both = family == socket.AF_INET6 and place[0] == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(place, family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except (OSError, UnicodeError) as error:
        raise _cannot_listen(host, port, error) from None


def _cannot_listen(host: str, port: int, error: OSError | UnicodeError) -> InputError:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return InputError(f"--port {port} is taken: stop what listens there, or choose another, or --port 0 for any")
    if isinstance(error, PermissionError):
        return InputError(f"--port {port} is not allowed: choose one from 1024 to 65535, or --port 0 for any")
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return InputError(
        f"--host {host}: {reason}; use --host 127.0.0.1, or --host 0.0.0.0 for all addresses of this machine"
    )


def needs_token(host: str) -> bool:
    """Whether other machines may reach a server bound to that host: true of all but loopback addresses."""
    return not (host == "localhost" or _is_loopback(host))


def allowed_hosts(host: str, port: int) -> Callable[[str], bool]:
    """Whether a ``Host`` header means the server bound there.

    On loopback: 127.0.0.1, localhost and [::1] with the port. Elsewhere also any IP address (a page of a foreign name
    cannot send one), the given name and the name of this machine; there the token protects.
    """
    names = {"127.0.0.1", "::1", "localhost", host.lower()}
    if needs_token(host):
        names.add(socket.gethostname().lower())

    def allowed(header: str) -> bool:
        name, given_port = _split(header.lower())
        return given_port == port and (name in names or (needs_token(host) and _is_address(name)))

    return allowed


def address(sock: socket.socket) -> str:
    """What to open in a browser: ``http://127.0.0.1:8000/``."""
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def serve(app: ASGIApp, sock: socket.socket, *, on_ready: Callable[[str], None], limits: Limits = DEFAULT) -> int:
    """Serve until Ctrl-C or SIGTERM; nothing is printed.

    Args:
        app: the application, within its ``Guard``.
        sock: from ``listen``; closed at the end.
        on_ready: called with the address once requests are answered.
        limits: what a client may take.

    Returns:
        The exit status: 130 after Ctrl-C, 143 after SIGTERM.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it prints a traceback when a client is rude
    server = Server(app, lambda: on_ready(address(sock)), _affordable(limits))
    server.run(sockets=[sock])
    return server.status


class Server(uvicorn.Server):
    """uvicorn with deadlines, without logs, that remembers the signal that stopped it instead of raising it again."""

    def __init__(self, app: ASGIApp, on_ready: Callable[[], None], limits: Limits = DEFAULT) -> None:
        http: Any = partial(Patient, limits=limits)  # uvicorn calls it and asks nothing else of it
        config = uvicorn.Config(
            app,
            http=http,
            ws="none",
            loop="asyncio",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=SECONDS_TO_STOP,
        )
        super().__init__(config)
        self.on_ready = on_ready
        self.status = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.status = 128 + sig
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGINT and SIGTERM."""
        if threading.current_thread() is not threading.main_thread():  # elsewhere Python delivers no signals
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _affordable(limits: Limits) -> Limits:
    """As many connections as there may be open files for: a third of them, for a burst is accepted before it is cut."""
    try:
        import resource
    except ImportError:  # on Windows, which has no such limit
        return limits
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * limits.connections
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    files = wanted if soft == resource.RLIM_INFINITY else soft
    return dataclasses.replace(limits, connections=min(limits.connections, max(1, files // 3)))


def _split(header: str) -> tuple[str, int]:
    """Name and port of a Host header; without a port it is HTTP's own."""
    match = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]+))(?::([0-9]{1,5}))?", header)
    return ("", 0) if match is None else (match[1] or match[2], int(match[3] or 80))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback
