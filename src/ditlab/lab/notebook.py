"""One section of the page within a Jupyter notebook, through the page's exported form."""

from __future__ import annotations

import html
from importlib.util import find_spec
from typing import Any

from ditlab.core.errors import InputError
from ditlab.lab.lens.lens import Lens
from ditlab.runs.run import Run


def show(run: Run, height: int = 900) -> None:
    """Show in a notebook what each patch attends to, or, for a network without attention, how it denoises.

    What is shown works without Python from then on. Outside a notebook, a line says what to do instead.

    Args:
        run: what ``ditlab.load`` gives.
        height: of the picture in the notebook, in pixels.

    Raises:
        InputError: the attention maps are too large for a notebook, or starlette is not installed.
    """
    if _in_notebook():
        if find_spec("starlette") is None:
            raise InputError("the lab needs starlette: pip install 'ditlab[lab]'")
        from IPython.display import HTML, display

        display(HTML(frame(run, height)))
    else:
        path = run.folder.path
        print(f"This is no Jupyter notebook: type ditlab lab {path}, or ditlab lab {path} --export page.html")


def frame(run: Run, height: int = 900) -> str:
    """The HTML of it: a page of its own in an ``<iframe>``, which can reach neither the notebook nor the network.

    Raises:
        InputError: see ``export.page_of_part``.
    """
    from ditlab.lab.export import page_of_part  # here, for it needs starlette

    lens = Lens(run)
    page = html.escape(page_of_part(lens, "attention" if lens.layers else "denoise"))
    look = f"width: 100%; height: {int(height)}px; border: 0"
    allowed = 'sandbox="allow-scripts allow-downloads" allow="clipboard-write"'
    # Within a <div>, for IPython warns of HTML that begins with <iframe.
    return f'<div><iframe title="A look inside" srcdoc="{page}" style="{look}" {allowed}></iframe></div>'


def _in_notebook() -> bool:
    """Whether this is a Jupyter kernel, and not Python or IPython in a terminal."""
    if find_spec("IPython") is None:
        return False
    from IPython import get_ipython

    shell: Any = get_ipython()
    return hasattr(shell, "kernel")
