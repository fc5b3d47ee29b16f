"""``ditlab lab``: serve the page that looks inside runs, or write it to one file."""

from __future__ import annotations

import json
import os
import secrets
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ditlab.cli.options import LabOptions, parse
from ditlab.cli.output import report, say
from ditlab.core.errors import InputError, printable

if TYPE_CHECKING:
    from ditlab.cli.progress import Bar, Lines
    from ditlab.lab.server.library import Library

LINE_EVERY = 2.0  # seconds between words on an export


def lab(arguments: Sequence[str]) -> int:
    """Serve the lab until Ctrl-C, or export one run."""
    options = parse(LabOptions, arguments, "ditlab lab")
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise InputError(f"the lab needs {' and '.join(missing)}: pip install 'ditlab[lab]'")
    if options.export is not None and Path(options.export).suffix != ".html":
        raise InputError(f"--export {options.export} must end in .html")
    if options.export is None:
        return _serve(options)
    from ditlab.lab.server.library import Library

    return _export(Library(options.run, options.device), options)


def _export(library: Library, options: LabOptions) -> int:
    from ditlab.cli.progress import watching
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
    with watching() as watcher:
        size = export(library, next(iter(folders)), out, _counting(watcher))
    report({"out": str(out), "bytes": size}, options.as_json)
    return 0


def _is_there(name: str) -> bool:
    """Whether there is a run of that name, or a folder with one: said before all of them are looked at."""
    places = [Path(name), Path("runs") / name]
    return any(next(place.glob(pattern), None) for place in places for pattern in ("config.json", "*/config.json"))


def _counting(watcher: Bar | Lines) -> Callable[[str], None]:
    """What says now and then how many answers of the page are computed."""
    count, said = 0, time.monotonic()

    def told(path: str) -> None:
        nonlocal count, said
        count += 1
        if time.monotonic() - said >= LINE_EVERY:
            said = time.monotonic()
            watcher.doing(f"answers of the page computed so far: {count:,}, the last one of {path}")

    return told


def open_browser(url: str) -> None:
    """Show the page in a browser, if somebody sits at this machine and has one with windows of its own."""
    windows = sys.platform in ("darwin", "win32") or any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY"))
    if not (windows and sys.stdin.isatty() and sys.stderr.isatty()) or "SSH_CONNECTION" in os.environ:
        return
    with suppress(webbrowser.Error):
        browser = webbrowser.get()
        if type(browser) is not webbrowser.GenericBrowser:  # which takes the terminal for itself
            threading.Thread(target=browser.open, args=[url], daemon=True).start()


def _serve(options: LabOptions) -> int:
    from ditlab.lab.server.serve import allowed_hosts, listen, needs_token, serve

    sock = listen(options.host, options.port)  # which may fail: before the seconds that the rest takes
    if _is_there(options.run):
        say(f"The lab starts: it reads {options.run}.")
    from ditlab.lab.server.api import create_app
    from ditlab.lab.server.guard import Guard
    from ditlab.lab.server.library import Library
    from ditlab.lab.server.worker import Worker

    library = Library(options.run, options.device)
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
        if options.browser and not options.as_json:
            open_browser(url)
        threading.Thread(target=_survey, args=(library,), daemon=True).start()

    try:
        return serve(app, sock, on_ready=announce)
    finally:
        worker.close()
        sys.stdout.flush()


def _survey(library: Library) -> None:
    """Look through all runs, so that a list of them is there when a page asks, and say which cannot be opened."""
    for name, why in library.damaged():
        say(printable(f"{library.root / name} is left out: {why}"))
