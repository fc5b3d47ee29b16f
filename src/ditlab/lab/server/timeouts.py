"""uvicorn's HTTP/1.1 connection with patience that ends.

uvicorn waits for ever for a request that is begun and not finished, and for a client that does not read its answer. Two
hundred such clients cost nothing to make and hold every socket there is. Here each connection has a clock.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ditlab.lab.server.guard import sealed

LEAST_PROGRESS = 2**16  # bytes that a slow reader takes in ``write_seconds``, unless it takes all

# How much a connection has a claim to its socket when there are too many.
SILENT, IDLE, STREAM, STALLED, SERVED = range(5)


@dataclass(frozen=True)
class Limits:
    """What a client may take."""

    request_seconds: float = 10  # from the first byte of a request (or the connection) to the last of its body
    write_seconds: float = 20  # without reading on
    connections: int = 256


DEFAULT = Limits()


class Patient(H11Protocol):
    """A connection that is closed when its request does not come, or its answer is not read, in time.

    If there are more than ``limits.connections``, the one with the least claim is closed, the oldest first: one that
    has not yet sent a whole request, then one between two requests, then an endless stream (whose endpoint says so with
    ``request.state.stream = True``, and whose client comes again by itself), then one that does not read; if all others
    are being served, the newcomer. So half-open connections, however many, push out one another.
    """

    def __init__(self, *args: Any, limits: Limits = DEFAULT, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits = limits
        self.opened = self.loop.time()
        self.aborted = False
        self._request_clock = _Clock(self.loop, limits.request_seconds, self.abort)
        self._write_clock = _Clock(self.loop, limits.write_seconds, self._watch_reader)
        self._unsent = 0

    @property
    def claim(self) -> int:
        """SILENT, IDLE, STREAM, STALLED or SERVED."""
        if self._write_clock.runs:
            return STALLED
        if self.cycle is None or (self.conn.their_state is h11.SEND_BODY and not self.cycle.response_complete):
            return SILENT
        if self.cycle.response_complete:
            return IDLE
        return STREAM if self.cycle.scope.get("state", {}).get("stream") else SERVED

    def abort(self) -> None:
        """Close the socket now, whatever is still unsent."""
        self.aborted = True
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that writing is paused if and only if something is unsent
        self._request_clock.start()
        self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._request_clock.stop()
        self._write_clock.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_request()  # the next request may have come in part already

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        self._write_clock.start()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_clock.stop()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP gets an answer like all others, if it can still be given."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.abort()
            return
        body = json.dumps({"error": f"{msg} Send HTTP/1.1 with one Host header."}).encode()
        length = (b"content-length", str(len(body)).encode())
        headers = sealed([(b"content-type", b"application/json"), length, (b"connection", b"close")])
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def shutdown(self) -> None:
        """Called when the server stops: only an answer under way that has an end is waited for."""
        if self.claim in (SILENT, IDLE, STREAM):
            self.abort()
        else:
            super().shutdown()

    def _watch_request(self) -> None:
        """Let the clock run while a request is under way, and only then."""
        state = self.conn.their_state
        under_way = state is h11.SEND_BODY or (state is h11.IDLE and bool(self.conn.trailing_data[0]))
        if not under_way:
            self._request_clock.stop()
        elif not self._request_clock.runs and not self.transport.is_closing():
            self._request_clock.start()

    def _watch_reader(self) -> None:
        """Go on with a client that reads, however slowly; give up one that does not."""
        unsent = self.transport.get_write_buffer_size()
        if self._unsent - unsent < LEAST_PROGRESS:
            self.abort()
            return
        self._unsent = unsent
        self._write_clock.start()

    def _make_room(self) -> None:
        """Close a connection if this one is one too many."""
        others = [c for c in self.connections if isinstance(c, Patient) and c is not self and not c.aborted]
        if len(others) < self.limits.connections:
            return
        weakest = min(others, key=lambda other: (other.claim, other.opened))
        (weakest if weakest.claim < SERVED else self).abort()


class _Clock:
    """Calls ``ring`` once, so many seconds after it was started, unless it is stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, ring: Callable[[], None]) -> None:
        self._loop, self._seconds, self._ring = loop, seconds, ring
        self._timer: asyncio.TimerHandle | None = None

    @property
    def runs(self) -> bool:
        return self._timer is not None

    def start(self) -> None:
        self._timer = self._loop.call_later(self._seconds, self._ring_once)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _ring_once(self) -> None:
        self._timer = None
        self._ring()
