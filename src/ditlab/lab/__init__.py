"""The lab: a page in the browser that looks inside a trained network, and the numbers behind it.

Importing it imports no torch; ``Lens`` is fetched when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditlab.lab.lens.lens import Lens

__all__ = ["Lens"]


def __getattr__(name: str) -> Any:
    if name != "Lens":
        raise AttributeError(f"module 'ditlab.lab' has no attribute {name!r}")
    from ditlab.lab.lens.lens import Lens

    return Lens
