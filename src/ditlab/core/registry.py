"""Parts found by name, one registry for each kind, which users add to. Imports no torch.

A part of your own is registered by a decorator, ``@ditlab.register("solver", "mine")``, and is then known by name to
Python and to the command line (``--plugin MODULE`` imports the module that registers it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

Made = TypeVar("Made")


class Registry(Mapping[str, Any]):
    """The parts of one kind, by name.

    Args:
        kind: what they are, in words.
        own: the names of ditlab's own parts, which no other part may take. They are known without importing the
            parts; the modules of the parts fill them in with ``provide``.
    """

    def __init__(self, kind: str, own: tuple[str, ...] = ()) -> None:
        self.kind, self.own = kind, own
        self.parts: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[Made], Made]:
        """A decorator that registers a part under a name. The latest counts, so a notebook's cell can be run again.

        Raises:
            ValueError: the name is that of one of ditlab's own parts.
        """
        if name in self.own:
            raise ValueError(f"{self.kind} {name!r} is ditlab's own; choose another name")
        return lambda part: self._keep(name, part)

    def provide(self, name: str) -> Callable[[Made], Made]:
        """The same for ditlab's own parts."""
        assert name in self.own
        return lambda part: self._keep(name, part)

    def _keep(self, name: str, part: Made) -> Made:
        self.parts[name] = part
        return part

    def check(self, name: str) -> str:
        """The name, if it is known.

        Raises:
            ValueError: it is not; the known names are listed.
        """
        if name not in self:
            known = f"choose one of {', '.join(self)}, or " if len(self) else ""
            raise ValueError(f"unknown {self.kind} {name!r}; {known}register it first (--plugin MODULE)")
        return name

    def __getitem__(self, name: str) -> Any:
        return self.parts[self.check(name)]

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self.parts

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self.own, *self.parts)))

    def __len__(self) -> int:
        return sum(1 for _ in self)


SOLVERS = Registry(
    "solver", ("euler", "ddim", "heun", "ancestral", "dpm-solver++", "dpm-solver++3m", "euler-maruyama", "dopri5")
)
PROCESS_SOLVERS = ("average",)  # solvers that one process alone has
CONDITIONINGS = Registry("conditioning", ("adaln-zero", "adaln", "film", "in-context", "cross-attention"))
NETWORKS = Registry("network")
PROCESSES = Registry("process")
DATASETS = Registry("dataset")
LOSSES = Registry("auxiliary loss")
RECIPES = Registry("recipe", ("circles", "points", "digits", "images", "latents", "imagenet256"))

REGISTRIES = {
    "solver": SOLVERS,
    "conditioning": CONDITIONINGS,
    "network": NETWORKS,
    "process": PROCESSES,
    "dataset": DATASETS,
    "loss": LOSSES,
    "recipe": RECIPES,
}


def register(kind: str, name: str) -> Callable[[Made], Made]:
    """A decorator that makes a part of your own known by name.

    Args:
        kind: "solver", "conditioning", "network", "process", "dataset", "loss" (an auxiliary one) or "recipe".
        name: under which Python and the command line find it.

    Raises:
        ValueError: an unknown kind, or the name of one of ditlab's own parts.
    """
    if kind not in REGISTRIES:
        raise ValueError(f"unknown kind {kind!r}; choose one of {', '.join(REGISTRIES)}")
    return REGISTRIES[kind].register(name)


register_solver = SOLVERS.register
"""``register("solver", name)``."""

register_network = NETWORKS.register
"""``register("network", name)``."""

register_conditioning = CONDITIONINGS.register
"""``register("conditioning", name)``."""
