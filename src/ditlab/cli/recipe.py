"""``ditlab.recipe``: a recipe's configuration in Python, as ``ditlab train`` makes it on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ditlab.cli.options import TrainOptions
from ditlab.cli.train_arguments import parse_train
from ditlab.config import Config

SHORT = {"path": "data.path", "image_size": "data.image_size"}


def recipe(name: str, **changes: Any) -> Config:
    """The configuration that ``ditlab train NAME`` trains, with changes. ::

        ditlab.recipe("images", path="photos", image_size=32, steps=500, **{"network.dim": 96})

    Args:
        name: one of ditlab's recipes, or of your own: a recipe or a data set that was registered.
        changes: options of ``ditlab train NAME``, ``network.patch_size`` being ``--network.patch-size``; ``path`` and
            ``image_size`` are those of the data.

    Raises:
        InputError, ConfigError: an unknown recipe or option, or a value that it does not take.
    """
    options = parse_train([name, *(word for option, value in changes.items() for word in _words(option, value))])
    assert isinstance(options, TrainOptions)  # a recipe was named, and not a run to go on with
    return options.config


def _words(option: str, value: Any) -> Iterator[str]:
    """An option as it is typed."""
    *sections, last = SHORT.get(option, option).replace("_", "-").split(".")
    if isinstance(value, bool):
        last = last if value else f"no-{last}"
    yield "--" + ".".join([*sections, last])
    if isinstance(value, dict):
        yield from (str(word) for pair in value.items() for word in pair)
    elif isinstance(value, list | tuple):
        yield from map(str, value)
    elif not isinstance(value, bool):
        yield str(value)
