"""What a question is answered with, and how one who computes learns that nobody waits any more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

Look = Callable[[], None]


def look_away() -> None:
    """Nobody to ask whether the answer is still wanted."""


class Answer(dict[str, np.ndarray]):
    """Named float32 arrays, and a few words about them in ``meta``."""

    def __init__(self, arrays: dict[str, Tensor], **meta: str) -> None:
        super().__init__({name: value.detach().float().cpu().numpy() for name, value in arrays.items()})
        self.meta = meta
