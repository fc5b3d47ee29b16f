"""Errors that are for people: their text is all that the command line prints of them."""

from __future__ import annotations

import os
import shlex


class InputError(ValueError):
    """What the user asked for cannot be done; the message says what was given and what to type instead."""


class Missing(InputError):
    """What was asked for is not there."""


class ConfigError(Exception):
    """A configuration is refused; the message names the field.

    Not a ``ValueError``: pydantic and tyro collect those into reports of their own, and let this one pass as it is.
    """


class DamagedCheckpoint(InputError):
    """A checkpoint that is not as it was saved; ``reason`` says what is wrong with it."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; use an older checkpoint")
        self.reason = reason

    def __reduce__(self) -> tuple[type[DamagedCheckpoint], tuple[str]]:
        return DamagedCheckpoint, (self.reason,)  # on its way to another process; by default the advice is given twice


class Caution(UserWarning):
    """What a person should know though the work goes on; the command line says it in one line."""


class AutoencoderWarning(Caution):
    """Latents are decoded by another autoencoder than they were made by."""


class CheckpointWarning(Caution):
    """The newest checkpoint is damaged, and an older one was used in its place."""


class DamagedMetrics(Caution):
    """Lines of a run's metrics cannot be read, and are set aside."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says what happened and what to try."""


class Interrupted(Exception):
    """Training was stopped by a signal, after it finished its step and saved it."""

    def __init__(self, signal_number: int, run: str, step: int, steps: int) -> None:
        left = f"; go on with: ditlab train --resume {run}" if step < steps else f", the last one, in {run}"
        super().__init__(f"stopped and saved at step {step}{left}")
        self.signal_number = signal_number


def printable(text: str) -> str:
    """A message in one line, with everything escaped that a terminal would act upon."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException, most: int = 200, kind: bool = False) -> str:
    """The first line of an error's message, cut to ``most`` characters; with ``kind``, or without a message, its type.

    For errors of other libraries, which may be many lines long.
    """
    name, message = type(error).__name__, str(error).strip()
    return (f"{name}: {message}" if kind else message or name).splitlines()[0][:most]


def pasted(path: object) -> str:
    """A path as a shell reads it, in one line of characters that a terminal does not act upon."""
    text = str(path)
    if text.isprintable():
        return shlex.quote(text)
    plain = (c if c.isprintable() and c not in "\\'" else _escaped(c) for c in text)
    return f"$'{''.join(plain)}'"


def _escaped(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def speaks() -> bool:
    """Whether this is the only process of its job, or the first: the others say nothing that it says too."""
    return os.environ.get("RANK", "0") == "0"
