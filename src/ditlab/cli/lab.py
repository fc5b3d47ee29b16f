"""``ditlab lab``: serve the page that looks inside runs, or write it to one file."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from ditlab.cli.options import LabOptions, parse
from ditlab.cli.verbs import report, say
from ditlab.errors import InputError, printable

if TYPE_CHECKING:
    from ditlab.lab.library import Library


def lab(arguments: Sequence[str]) -> int:
    """Serve the lab until Ctrl-C, or export one run."""
    options = parse(LabOptions, arguments, "ditlab lab")
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise InputError(f"the lab needs {' and '.join(missing)}: pip install 'ditlab[lab]'")
    if options.export is not None and Path(options.export).suffix != ".html":
        raise InputError(f"--export {options.export} must end in .html")
    from ditlab.lab.library import Library

    library = Library(options.run, options.device)
    return _serve(library, options) if options.export is None else _export(library, options)


def _export(library: Library, options: LabOptions) -> int:
    from ditlab.lab.export import export

    assert options.export is not None
    folders = library.folders()
    if len(folders) > 1:
        names = ", ".join(str(folder.path) for folder in folders.values())
        raise InputError(f"--export takes one run; name one of {names}")
    folder = next(iter(folders.values()))
    if folder.read_config().data.kind == "external":
        raise InputError(f"{folder.path} was imported, and --export needs training examples: ditlab lab {folder.path}")
    out = Path(options.export)
    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise InputError(f"--export {out}: no file can be written there; name one in a folder that exists")
    size = export(library, next(iter(folders)), out)
    report({"out": str(out), "bytes": size}, options.as_json)
    return 0


def _serve(library: Library, options: LabOptions) -> int:
    from ditlab.lab.api import create_app
    from ditlab.lab.guard import Guard
    from ditlab.lab.serve import allowed_hosts, listen, needs_token, serve
    from ditlab.lab.worker import Worker

    sock = listen(options.host, options.port)
    token = secrets.token_urlsafe(24) if needs_token(options.host) else None
    worker = Worker()
    app = Guard(create_app(library, worker), allowed_hosts(options.host, sock.getsockname()[1]), token)

    with suppress(InputError):  # loaded before the page is, which then paints at once; a damaged run says so there
        library.describe(library.first, None, "ema")

    def announce(address: str) -> None:
        url = address if token is None else f"{address}?token={token}"
        if options.as_json:
            runs = [str(folder.path) for folder in library.folders().values()]
            print(json.dumps({"url": url, "runs": runs}), flush=True)
        looked_at = f"the runs in {library.root}" if library.several else str(library.root)
        say(f"The lab looks at {looked_at}.\nOpen {url} in a browser. Ctrl-C stops it.")
        Thread(target=_survey, args=(library,), daemon=True).start()

    try:
        return serve(app, sock, on_ready=announce)
    finally:
        worker.close()
        sys.stdout.flush()


def _survey(library: Library) -> None:
    """Look through all runs, so that a list of them is there when a page asks, and say which are damaged."""
    for name, why in library.damaged():
        say(printable(f"{library.root / name} is damaged and left out: {why}"))
