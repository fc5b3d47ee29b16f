"""The gate before every route: who may ask, how much may be sent, and which headers every answer carries.

A server on 127.0.0.1 is reachable by every web page open in a browser on the same machine. What keeps them out:

- The ``Host`` must be one of the server's own names, so that a name which its owner lets point to 127.0.0.1 for a while
  (DNS rebinding) gets nothing.
- An ``Origin`` must be the server's own, and ``Sec-Fetch-Site`` must not tell of another page; only a link to ``/`` may
  be followed from elsewhere. No CORS header is ever sent.
- A strict Content-Security-Policy: the page loads nothing and sends nothing but from and to here.

A server that other machines can reach asks for a token as well.
"""

from __future__ import annotations

import hashlib
import hmac
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ditlab.lab.server.worker import Busy, Gone

Headers = list[tuple[bytes, bytes]]
Handler = Callable[[Request, Exception], Awaitable[Response]]
BROKEN = "something went wrong; the terminal of ditlab lab tells what"

HEADERS = {
    b"content-security-policy": (
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"x-frame-options": b"DENY",
}


def sealed(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers of a response with those that every response carries."""
    own = [(name, value) for name, value in headers if name.lower() not in HEADERS]
    caching = any(name.lower() == b"cache-control" for name, _ in own)
    return [*own, *HEADERS.items(), *([] if caching else [(b"cache-control", b"no-cache")])]


def problem(status: int, error: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An answer that says what is wrong, in one line that names the fix."""
    return JSONResponse({"error": error}, status, headers)


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: what it protects.
        hosts: whether a ``Host`` header (such as "localhost:8000") means this server; see ``serve.allowed_hosts``.
        token: asked for if given: ``/?token=TOKEN`` opens the page once, and from then on a cookie does.
        max_body: bytes of a request body, declared or sent.
    """

    def __init__(
        self, app: ASGIApp, hosts: Callable[[str], bool], token: str | None = None, max_body: int = 8 * 2**20
    ) -> None:
        self.app, self.hosts, self.token, self.max_body = app, hosts, token, max_body
        # Cookies are shared by all ports of a host: two labs must not overwrite each other's.
        self.cookie = "ditlab-" + hashlib.sha256((token or "").encode()).hexdigest()[:12]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] != "http":  # a WebSocket would come in unguarded
            return
        exchange = _Exchange(scope, receive, send, self.max_body)
        request = HTTPConnection(scope)
        refusal = self._address(request) or self._origin(request) or self._credentials(request) or self._size(request)
        if refusal is not None:
            await exchange.answer(refusal)
            return
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except Exception as error:
            if not exchange.over:
                _report(scope, error)
                await exchange.answer(problem(500, BROKEN))

    def _address(self, request: HTTPConnection) -> Response | None:
        """Refuse what is not addressed to this server."""
        if not request.scope["path"].startswith("/"):
            return problem(400, "ask for a path that begins with /")
        names = request.headers.getlist("host")
        if len(names) != 1:
            return problem(400, "send one Host header")
        if not self.hosts(names[0]):
            return problem(403, "this is not the server of that name; open the address that ditlab lab printed")
        return None

    def _origin(self, request: HTTPConnection) -> Response | None:
        """Refuse what another page asks for."""
        own = f"http://{request.headers['host']}".lower()
        if any(origin.lower() != own for origin in request.headers.getlist("origin")):
            return problem(403, "only the page of this server may ask; open the address that ditlab lab printed")
        if _from_elsewhere(request) and not _is_link_to_page(request):
            return problem(403, "another page may only link to /; open the address that ditlab lab printed")
        return None

    def _credentials(self, request: HTTPConnection) -> Response | None:
        """Refuse those without the token; trade the token in the address for a cookie."""
        if self.token is None:
            return None
        given = request.query_params.get("token")
        if request.scope["path"] == "/" and request.scope["method"] == "GET" and given is not None:
            if self._is_token(given):
                return self._let_in(request)
            return problem(403, "that is not the token; open the address that ditlab lab printed")
        if self._is_token(request.cookies.get(self.cookie, "")):
            return None
        return problem(403, "open the address with ?token= that ditlab lab printed, once in this browser")

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self.token or "").encode())

    def _let_in(self, request: HTTPConnection) -> Response:
        """Set the cookie and go on to the same address without the token."""
        parts = request.scope["query_string"].decode("latin-1").split("&")
        rest = "&".join(part for part in parts if part.partition("=")[0] != "token")
        target = f"/?{rest}" if rest else "/"
        response: Response = RedirectResponse(target, 303, {"Cache-Control": "no-store"})
        if _from_elsewhere(request):  # a redirect would count as the other page's, and go without the strict cookie
            response = Response(
                headers={"Cache-Control": "no-store", "Refresh": f"0; url={response.headers['location']}"}
            )
        response.set_cookie(self.cookie, self.token or "", httponly=True, samesite="strict")
        return response

    def _size(self, request: HTTPConnection) -> Response | None:
        """Refuse a body that is said to be too large before it is sent."""
        declared = int(request.headers.get("content-length", 0))
        return _too_large(self.max_body) if declared > self.max_body else None


class _Exchange:
    """A request on its way in, counted, and its response on its way out, sealed."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body: int) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._max_body, self._received = max_body, 0
        self._started = False
        self.over = False  # the body grew too large: that was the answer, whatever the application says

    async def answer(self, response: Response) -> None:
        """Respond, unless a response is under way; that one then ends cut off, as it should."""
        if not self._started:
            await response(self._scope, self._receive, self._pass_on)

    async def receive(self) -> Message:
        """The next piece of the body; once there is too much, the application is told that the client left."""
        message: Message = {"type": "http.disconnect"}
        if not self.over:
            message = await self._receive()
            self._received += len(message.get("body", b""))
        if self._received > self._max_body and not self.over:
            self.over = True
            await self.answer(_too_large(self._max_body))
            message = {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        if not self.over:
            await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            message = {**message, "headers": sealed(message.get("headers", []))}
        await self._send(message)


def _too_large(max_body: int) -> Response:
    return problem(413, f"the upload is too large; send at most {max_body:,} bytes")


def _from_elsewhere(request: HTTPConnection) -> bool:
    """Whether the browser says that another page caused this. Another port of this machine is another page."""
    return request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


def _is_link_to_page(request: HTTPConnection) -> bool:
    """Whether a person follows a link to the page, which may stand anywhere."""
    headers, scope = request.headers, request.scope
    opens = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return opens and scope["method"] == "GET" and scope["path"] == "/"


def _report(scope: Scope, error: Exception) -> None:
    """One line for the terminal, in which nothing sent by a client can move the cursor."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    line = f"ditlab: {scope['method']} {scope['path'][:200]} failed: {type(error).__name__}: {error}{place}"
    print("".join(c if c.isprintable() else " " for c in line), file=sys.stderr, flush=True)


def telling(status: int, words: str = "", headers: Mapping[str, str] | None = None) -> Handler:
    """What answers an error with these words, or its own."""

    async def handler(_: Request, error: Exception) -> Response:
        return problem(status, words or str(error), headers)

    return handler


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, error.detail, error.headers)


# For Starlette(exception_handlers=...), so that its own errors come as JSON, too.
exception_handlers: dict[Any, Handler] = {
    Busy: telling(503, headers={"Retry-After": "1"}),
    **dict.fromkeys((Gone, ClientDisconnect), telling(499, "the client left")),  # nginx's number; nobody reads it
    HTTPException: _refused,
    Exception: telling(500, BROKEN),
}
