"""Clients that mean harm, or just leave: paths out of the folder, half-open sockets, slow readers, full queues."""

import itertools
import json
import os
import re
import resource
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ditlab.lab.server.guard import exception_handlers
from ditlab.lab.server.timeouts import Limits
from ditlab.lab.server.worker import Worker
from tests.lab.shell import PATIENCE, ask, connect, eventually, read_all, serving, small_app, talk

SECRET = b"the secret beside the folder"


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """A static folder with a secret beside it, and a link in it that points there."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.txt").write_bytes(SECRET)
    (outside / "static-secret").mkdir()
    (outside / "static-secret" / "secret.txt").write_bytes(SECRET)
    folder = outside / "static"
    (folder / "deep").mkdir(parents=True)
    (folder / "main.js").write_text("// script")
    (folder / "link.txt").symlink_to(outside / "secret.txt")
    with serving(small_app(folder)) as port:
        yield port


DOTS = ["..", "%2e%2e", "%2E.", ".%2e", "%252e%252e", "..%00", "%c0%ae%c0%ae", "..;", "....", "%uff0e%uff0e"]
SLASHES = ["/", "%2f", "%252f", "\\", "%5c", "//", "/./", "%c0%af"]


@pytest.mark.parametrize("dots", DOTS)
def test_no_path_leads_out_of_the_folder(port, dots):
    for slash, start in itertools.product(SLASHES, ["", "deep/../", "main.js/", "/", "%2f"]):
        for file in ("secret.txt", f"static-secret{slash}secret.txt"):
            target = f"/static/{start}{dots}{slash}{file}"
            request = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
            answer = talk(port, request.encode())
            assert re.match(rb"HTTP/1.1 40[04] ", answer), (target, answer)
            assert SECRET not in answer


@pytest.mark.parametrize(
    "path",
    ["link.txt", "%2fetc%2fpasswd", "/etc/passwd", "file:%2f%2f%2fetc/passwd", "main.js%00.txt", "a" * 5000, "deep"],
)
def test_nor_does_a_link_or_an_absolute_path(port, path):
    answer = ask(port, f"/static/{path}")
    assert answer.status == 404
    assert "error" in json.loads(answer.body)


def half_open(port, data=b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: "):
    sock = connect(port)
    sock.sendall(data)
    return sock


def seconds(action):
    begun = time.monotonic()
    action()
    return time.monotonic() - begun


def test_half_open_sockets_do_not_keep_others_waiting_and_are_closed():
    """200 of three kinds: nothing sent, a header never ended, a body never ended."""
    with serving(small_app(), limits=Limits(request_seconds=1.5)) as port, ExitStack() as stack:
        post = f"POST /echo HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 100\r\n\r\nhalf".encode()
        kinds = itertools.cycle([b"", b"GET / HTTP/1.1\r\nX-A: ", post])
        sockets = [stack.enter_context(closing(half_open(port, next(kinds)))) for _ in range(200)]
        assert seconds(lambda: ask(port)) < PATIENCE / 2
        assert all(read_all(sock) == b"" for sock in sockets)
        assert ask(port).status == 200


def test_a_byte_now_and_then_buys_no_time():
    with serving(small_app(), limits=Limits(request_seconds=0.5)) as port, connect(port) as sock:
        sock.settimeout(0.05)

        def is_closed():
            try:
                sock.sendall(b"G")
                return sock.recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        eventually(is_closed, 5)


@pytest.mark.parametrize("pipelined", [False, True])
def test_second_request_on_a_connection_has_a_deadline_too(pipelined):
    with serving(small_app(), limits=Limits(request_seconds=0.5)) as port, connect(port) as sock:
        whole = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        part = f"POST /echo HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 9\r\n\r\nhalf".encode()
        sock.sendall(whole + (part if pipelined else b""))
        answer = b""
        while b"the page" not in answer:
            answer += sock.recv(1000)
        if not pipelined:
            sock.sendall(part)
        assert seconds(lambda: read_all(sock)) < 4  # uvicorn itself would wait for ever


def test_a_connection_in_use_outlives_the_deadline():
    with serving(small_app(), limits=Limits(request_seconds=0.5)) as port, connect(port) as sock:
        whole = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        for _ in range(4):
            sock.sendall(whole)
            answer = b""
            while b"the page" not in answer:
                piece = sock.recv(1000)
                assert piece
                answer += piece
            time.sleep(0.3)


def test_too_many_connections_push_out_one_another():
    """More than are allowed: the oldest half-open ones go at once, and who has an answer under way stays."""
    limits = Limits(request_seconds=60, write_seconds=60, connections=20)
    with serving(small_app(), limits=limits) as port, ExitStack() as stack:
        reader = stack.enter_context(connect(port))
        reader.sendall(f"GET /large HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        assert reader.recv(10)
        sockets = [stack.enter_context(closing(half_open(port))) for _ in range(100)]
        assert all(read_all(sock) == b"" for sock in sockets[:80])
        assert seconds(lambda: ask(port)) < PATIENCE / 2
        assert len(read_all(reader)) > 64 * 2**20


def test_a_thousand_half_open_sockets():
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2500:
        pytest.skip("too few open files are allowed for a thousand sockets and their other ends")
    with serving(small_app(), limits=Limits(request_seconds=60)) as port, ExitStack() as stack:
        for i in range(1000):
            stack.enter_context(closing(half_open(port)))
            if i % 250 == 249:
                assert seconds(lambda: ask(port)) < PATIENCE / 2


@contextmanager
def deaf(port, path="/large"):
    """A client that asks and does not read."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(PATIENCE)
        sock.connect(("127.0.0.1", port))
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        yield sock


def test_client_that_does_not_read_is_let_go():
    with serving(small_app(), limits=Limits(write_seconds=0.5)) as port, deaf(port) as sock:
        peer = sock.getsockname()
        assert ask(port).status == 200
        eventually(lambda: not is_open(port, peer))
        assert len(read_all(sock)) < 64 * 2**20


def test_client_that_reads_slowly_is_served():
    """Four times as long as a deaf one would get, and whole."""
    with serving(small_app(), limits=Limits(write_seconds=0.5)) as port, connect(port) as sock:
        sock.sendall(f"GET /large HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        received = 0
        for _ in range(20):
            received += len(sock.recv(2**21, socket.MSG_WAITALL))
            time.sleep(0.1)
        assert received + len(read_all(sock)) > 64 * 2**20


def is_open(port, peer):
    """Whether the server's end of a connection is there still, as Linux tells; elsewhere, whether the peer's is."""
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("/proc/net/tcp tells which sockets are open; there is none here")
    ends = (f"0100007F:{port:04X}", f"0100007F:{peer[1]:04X}", "01")  # 01: established
    return any(tuple(line.split()[1:4]) == ends for line in table.read_text().splitlines()[1:])


@contextmanager
def computing(capacity):
    """A server with a worker: /work takes 8 MB and a moment, /endless runs until its client leaves."""
    worker = Worker(capacity)
    begun, go_on = threading.Event(), threading.Event()

    def short(look):
        for _ in range(3):
            look()
        return np.full(10**6, 1.0).tobytes()

    def endless(look):
        array = np.full(10**6, 1.0)
        begun.set()
        while not go_on.wait(0.002):
            look()
        return array.tobytes()

    async def work(request):
        return Response(await worker.run(short, request.is_disconnected))

    async def forever(request):
        return Response(await worker.run(endless, request.is_disconnected))

    async def page(request):
        return PlainTextResponse("the page")

    routes = [Route("/work", work), Route("/endless", forever), Route("/", page)]
    try:
        with serving(Starlette(routes=routes, exception_handlers=exception_handlers)) as port:
            yield port, worker, begun, go_on
            go_on.set()
    finally:
        worker.close()


def reset(sock):
    """Leave without a good-bye."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def resident():
    """Bytes of memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def half_of_fifty_leave(port, worker):
    """25 clients whose computations never end, 25 in line between them; the first leave, the others are served."""
    leaving = []
    with ThreadPoolExecutor(25) as pool:
        staying = []
        for i in range(25):
            sock = connect(port)
            sock.sendall(f"GET /endless HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            leaving.append(sock)
            staying.append(pool.submit(ask, port, "/work"))
            eventually(lambda n=2 * i + 2: worker.waiting == n)
        assert ask(port).status == 200  # the server answers while the worker computes
        for i, sock in enumerate(leaving):
            (reset if i % 2 else socket.socket.close)(sock)
        answers = [answer.result(PATIENCE) for answer in staying]
    assert {(a.status, len(a.body)) for a in answers} == {(200, 8 * 10**6)}
    eventually(lambda: worker.waiting == 0)


def test_clients_that_leave_take_their_jobs_and_memory_along():
    """A leak would add the 25 answers of 8 MB to every round; a round that adds less than 32 MB shows there is none.

    More than one round, because the allocator of C may keep, for once, what it was given back.
    """
    with computing(capacity=64) as (port, worker, _, _):
        half_of_fifty_leave(port, worker)
        if not Path("/proc/self/statm").exists():
            pytest.skip("/proc/self/statm tells how much memory is used; there is none here. All else held")

        def grown():
            before = resident()
            half_of_fifty_leave(port, worker)
            return resident() - before

        assert any(grown() < 32 * 10**6 for _ in range(4))


def test_full_queue_asks_to_come_again():
    with computing(capacity=2) as (port, worker, begun, go_on), ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ask, port, "/endless")]
        assert begun.wait(PATIENCE)
        waiting += [pool.submit(ask, port, "/work") for _ in range(2)]
        eventually(lambda: worker.waiting == 3)
        answer = ask(port, "/work")
        assert (answer.status, answer.header("Retry-After")) == (503, "1")
        assert "try again" in json.loads(answer.body)["error"]
        assert answer.header("X-Frame-Options") == "DENY"
        assert ask(port).status == 200
        go_on.set()
        assert {answer.result(PATIENCE).status for answer in waiting} == {200}
        assert ask(port, "/work").status == 200


def test_garbage_is_answered_and_the_server_goes_on(port):
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n" * 100,
        b"\x00" * 70000,
    ):
        answer = talk(port, data + b"\r\n\r\n")
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400 "), answer
    bad_chunk = f"POST /echo HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"
    assert talk(port, bad_chunk.encode()).startswith(b"HTTP/1.1 400 ")
    assert ask(port).status == 200


def test_garbage_after_the_answer_has_begun_ends_the_connection_quietly(port, caplog):
    with connect(port) as sock:
        sock.sendall(f"POST /early HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        assert sock.recv(12) == b"HTTP/1.1 200"
        sock.sendall(b"xyz\r\n")
        read_all(sock)
    assert ask(port).status == 200
    assert not caplog.records
