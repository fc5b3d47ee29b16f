"""The routes: each reads a checked query, lets the worker ask a lens, and answers with JSON or arrays."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError
from safetensors.numpy import save
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from ditlab.config.values import SolverName
from ditlab.core.errors import InputError, Missing
from ditlab.lab.lens.answer import Answer, Look
from ditlab.lab.lens.comparing import configuration
from ditlab.lab.lens.lens import MAX_STEPS, Lens
from ditlab.lab.lens.recordings import picture
from ditlab.lab.lens.uploads import from_file, from_pixels
from ditlab.lab.server.guard import exception_handlers, problem, telling
from ditlab.lab.server.library import Library
from ditlab.lab.server.live import Watch, stream
from ditlab.lab.server.worker import Busy, Rank, Worker

PAGE = Path(__file__).parents[1] / "static"
MAX_IMAGES, MAX_POINTS = 16, 2000  # samples in one trajectory
MAX_MEASURED = 5000  # samples to measure
MAX_STREAMS = 64  # pages that follow a run


class Nothing(BaseModel):
    """A query without parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Query(Nothing):
    """What every question about a run may say."""

    step: int | None = Field(None, ge=0, lt=10**8)
    weights: Literal["ema", "raw"] = "ema"

    @property
    def arguments(self) -> dict[str, Any]:
        """What is left for the lens."""
        return self.model_dump(exclude={"step", "weights"}, exclude_none=True)


Scalars = Json[dict[Annotated[str, Field(max_length=200)], Annotated[float, Field(gt=-1e30, lt=1e30)]]]


class Told(Query):
    """What the network is told: a class, and scalars in their unit as JSON, such as {"age": 30}."""

    label: int | None = Field(None, ge=-1, lt=2**31)
    cond: Scalars | None = None


class Where(Told):
    """An image at a time."""

    input: str = Field("data:0", max_length=64)
    t: float = Field(0.3, ge=0, le=1, allow_inf_nan=False)


Changes = Annotated[str, Field(max_length=8000)]  # all parts of DiT-XL/2 are named in less


class Image(Where):
    """An image at a time, and what is changed in the network."""

    edits: Changes = ""


Layer = Annotated[int, Field(ge=0, lt=10**4)]
Patch = Annotated[int, Field(ge=0, lt=10**6)]


class OneMap(Where):
    """One head of one layer, or the mean over heads."""

    layer: Layer = 0
    head: Annotated[int, Field(ge=0, lt=10**4)] | Literal["mean"] = "mean"


class AllHeads(Where):
    """One patch in every map."""

    query: Patch
    direction: Literal["from", "to"] = "from"


class OneRow(OneMap, AllHeads):
    """One patch in one map."""


class Drawn(Told):
    """Samples from noise, as the run's own configuration draws them."""

    n: int = Field(10, ge=1, le=MAX_POINTS)
    seed: int = Field(0, ge=0, lt=2**53)
    edits: Changes = ""


class Walk(Drawn):
    """A trajectory from noise to data."""

    solver: SolverName = "heun"
    steps: int = Field(25, ge=1, le=MAX_STEPS)
    guidance: float | None = Field(None, ge=-100, le=100, allow_inf_nan=False)
    n: int = Field(1, ge=1, le=MAX_POINTS)


class Measure(Query):
    """Figures of samples."""

    n: int = Field(200, ge=1, le=MAX_MEASURED)
    seed: int = Field(0, ge=0, lt=2**53)


class Field2D(Query):
    """A vector field at a time."""

    t: float = Field(0.5, ge=0, le=1, allow_inf_nan=False)
    size: int = Field(24, ge=2, le=64)


class Recorded(Query):
    """What was written down after a training step; it needs no weights, which may be named all the same."""

    after: int = Field(-1, ge=-1, lt=10**8)


Ask = Callable[[Library, str, Any, Look], Any]  # of the run with that name
Endpoint = Callable[[Request], Awaitable[Response]]


def _of_lens(ask: Callable[[Lens, Any, Look], Any]) -> Ask:
    return lambda library, run, q, look: ask(library.lens(run, q.step, q.weights), q, look)


QUESTIONS: dict[str, tuple[type[Query], Ask, Rank]] = {
    "": (Query, lambda library, run, q, _: library.describe(run, q.step, q.weights), Rank.OPEN),
    "/quality": (
        Measure,
        lambda library, run, q, look: library.quality(run, q.step, q.weights, q.n, q.seed, look),
        Rank.MEASURE,
    ),
    # What a run wrote down is there before any checkpoint.
    "/gates": (Recorded, lambda library, run, q, _: library.gates(run, q.after), Rank.LOOK),
    "/losses": (Recorded, lambda library, run, q, _: library.losses(run, q.after), Rank.LOOK),
} | {
    f"/{name}": (model, _of_lens(ask), rank)
    for name, model, ask, rank in (
        ("flow", Query, lambda lens, _, __: lens.flow(), Rank.LOOK),
        ("input", Image, lambda lens, q, _: lens.input(**q.arguments), Rank.LOOK),
        ("attention", OneMap, lambda lens, q, _: lens.attention(**q.arguments), Rank.LOOK),
        ("attention/row", OneRow, lambda lens, q, _: lens.attention_row(**q.arguments), Rank.LOOK),
        (
            "attention/thumbnails",
            AllHeads,
            lambda lens, q, look: lens.attention_thumbnails(**q.arguments, look=look),
            Rank.LOOK,
        ),
        ("attention/summary", Query, lambda lens, _, look: lens.attention_summary(look=look), Rank.MEASURE),
        ("attention/cross", Where, lambda lens, q, _: lens.cross_attention(**q.arguments), Rank.LOOK),
        ("trajectory", Walk, lambda lens, q, look: _few(lens, q).trajectory(**q.arguments, look=look), Rank.DRAW),
        ("samples", Drawn, lambda lens, q, look: _few(lens, q).samples(**q.arguments, look=look), Rank.DRAW),
        ("costs", Query, lambda lens, _, look: lens.costs(look=look), Rank.MEASURE),
        ("field", Field2D, lambda lens, q, _: lens.field(**q.arguments), Rank.LOOK),
    )
}


def _few(lens: Lens, query: Drawn) -> Lens:
    """The lens, if it is not asked for too many images."""
    if len(lens.run.shape) == 3 and query.n > MAX_IMAGES:
        raise InputError(f"n={query.n} images are too many at once; ask for at most {MAX_IMAGES}")
    return lens


def create_app(library: Library, worker: Worker) -> Starlette:
    """The application: the API under /api and the page at /."""
    api = [
        Route("/runs", _catalogue),
        Route("/runs/{run}/samples/{step}", _picture),
        Route("/runs/{run}/inputs", _bring, methods=["POST"]),
        Route("/runs/{run}/config", _settings),
        Route("/runs/{run}/pictures", _decode, methods=["POST"]),
        Route("/runs/{run}/live", _live),
        *[Route(f"/runs/{{run}}{path}", _asking(*question)) for path, question in QUESTIONS.items()],
    ]
    app = Starlette(
        routes=[Mount("/api", routes=api), Mount("/", StaticFiles(directory=PAGE, html=True))],
        exception_handlers={
            **exception_handlers,
            Missing: telling(404),
            InputError: telling(400),
            ValidationError: _invalid,
        },
    )
    app.state.library, app.state.worker, app.state.streams = library, worker, 0
    return app


async def _computed(request: Request, job: Callable[[Look], Any], rank: Rank = Rank.LOOK) -> Any:
    """What a job of that rank returns, computed by the worker."""

    def task(look: Look) -> Any:
        def rest() -> None:
            threads = torch.get_num_threads()
            look()
            torch.set_num_threads(threads)  # what was let in may have chosen others

        return job(rest)

    return await request.app.state.worker.run(task, request.is_disconnected, rank)


def _asking(model: type[Query], ask: Ask, rank: Rank) -> Endpoint:
    """The endpoint that asks the worker one question about a run."""

    async def endpoint(request: Request) -> Response:
        query = model.model_validate(_single(request))
        library, run = request.app.state.library, request.path_params["run"]
        return answer(request, await _computed(request, lambda look: ask(library, run, query, look), rank))

    return endpoint


async def _settings(request: Request) -> Response:
    """A run's configuration: its network is not loaded."""
    Nothing.model_validate(_single(request))
    folder = await run_in_threadpool(request.app.state.library.folder, request.path_params["run"])
    return answer(request, await run_in_threadpool(configuration, folder))


async def _live(request: Request) -> Response:
    """Server-sent events of a run; see ``live``. They take no place in the worker's queue."""
    # A browser that comes again repeats the first address, and says in a header how far it got.
    got = request.headers.get("last-event-id")
    query = Recorded.model_validate({**_single(request), **({"after": got} if got else {})})
    folder = await run_in_threadpool(request.app.state.library.folder, request.path_params["run"])
    watch = Watch(folder, query.after)
    state = request.app.state
    if state.streams >= MAX_STREAMS:
        raise Busy(f"{state.streams} pages watch already; close one")
    request.state.stream = True  # so that it gives way to questions; see ``connection``
    return _Events(stream(watch, request.is_disconnected), state)


class _Events(StreamingResponse):
    """Server-sent events that count as a stream from now until they end, be it before the first."""

    def __init__(self, events: AsyncIterator[bytes], state: State) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self.state = state
        state.streams += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.state.streams -= 1


def _single(request: Request) -> Mapping[str, str]:
    """The query, in which nothing may be said twice."""
    pairs = request.query_params.multi_items()
    if len(pairs) > 32 or len({name for name, _ in pairs}) < len(pairs):
        raise InputError("each parameter may be given once")
    return dict(pairs)


def answer(request: Request, value: Any) -> Response:
    """JSON for plain values, safetensors for arrays; with an ETag, and 304 for one who has it already."""
    body, media_type = encode(value)
    tag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media_type, headers=headers)


def encode(value: Any) -> tuple[bytes, str]:
    """The bytes of an answer and their media type."""
    if isinstance(value, Answer):
        arrays = {name: np.ascontiguousarray(array) for name, array in value.items()}
        return _in_order(save(arrays, metadata=value.meta)), "application/octet-stream"
    return json.dumps(value, allow_nan=False).encode(), "application/json"


def _in_order(body: bytes) -> bytes:
    """The same safetensors with its header in order: the library writes metadata in a new one each time."""
    end = 8 + int.from_bytes(body[:8], "little")
    header = json.dumps(json.loads(body[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + body[end:]


async def _catalogue(request: Request) -> Response:
    return answer(request, await run_in_threadpool(request.app.state.library.catalogue))


async def _picture(request: Request) -> Response:
    """A preview that the run recorded; only steps it has are looked up."""
    folder = await run_in_threadpool(request.app.state.library.folder, request.path_params["run"])
    step = request.path_params["step"]
    if re.fullmatch(r"[0-9]{1,8}", step) is None:
        raise Missing("a picture goes by the step it was made at")
    try:
        body = await run_in_threadpool(picture, folder, int(step))
    except (InputError, OSError):
        raise Missing(f"no picture was made at step {step}") from None
    return Response(body, media_type="image/png", headers={"Cache-Control": "no-cache"})


async def _bring(request: Request) -> Response:
    """Take a drawn image (raw bytes) or a picture file; keep it and name it."""
    library: Library = request.app.state.library
    run, kind = request.path_params["run"], request.headers.get("content-type", "").split(";")[0]
    if kind != "application/octet-stream" and not kind.startswith("image/"):
        return problem(415, "send raw pixels (application/octet-stream) or a picture (image/png)")
    body = await request.body()

    def job(_: Look) -> dict[str, str]:
        lens = library.lens(run)
        decode = from_pixels if kind == "application/octet-stream" else from_file
        return {"input": lens.own(decode(body, lens.run.shape))}

    return answer(request, await _computed(request, job))


async def _decode(request: Request) -> Response:
    """Pictures of latents (raw float32), by the run's own autoencoder."""
    library: Library = request.app.state.library
    run, body = request.path_params["run"], await request.body()

    def job(_: Look) -> dict[str, np.ndarray]:
        return {"pictures": library.decoding(run).pictures(body)}

    found = await _computed(request, job, Rank.DRAW)
    return Response(save(found), media_type="application/octet-stream")


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    name = first["loc"][0] if first["loc"] else "query"
    return problem(400, f"{name}: {first['msg']}")
