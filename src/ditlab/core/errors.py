"""Errors whose text is all that the command line prints, and how to print text safely."""

from __future__ import annotations

import os
import shlex


class InputError(ValueError):
    """The user's input is wrong; the message says what was given and what to type instead."""


class Missing(InputError):
    """Something that the user named does not exist."""


class ConfigError(Exception):
    """An invalid configuration; the message names the field.

    Not a ``ValueError``, because pydantic and tyro would wrap that in a report of their own.
    """


class DamagedCheckpoint(InputError):
    """A checkpoint differs from what was saved; ``reason`` says how."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; use an older checkpoint")
        self.reason = reason

    def __reduce__(self) -> tuple[type[DamagedCheckpoint], tuple[str]]:
        return DamagedCheckpoint, (self.reason,)  # pickled by default, the message would repeat the advice


class Caution(UserWarning):
    """A warning that the command line prints in one line."""


class AutoencoderWarning(Caution):
    """Latents are decoded by another autoencoder than the one that encoded them."""


class CheckpointWarning(Caution):
    """The newest checkpoint is damaged, and an older one was used in its place."""


class DamagedMetrics(Caution):
    """Unreadable lines of a run's metrics were set aside."""


class TrainingError(RuntimeError):
    """Training cannot continue; the message says what happened and what to try."""


class Interrupted(Exception):
    """A signal stopped training, after the current step was finished and saved."""

    def __init__(self, signal_number: int, run: str, step: int, steps: int) -> None:
        left = f"; go on with: ditlab train --resume {run}" if step < steps else f", the last one, in {run}"
        super().__init__(f"stopped and saved at step {step}{left}")
        self.signal_number = signal_number


def printable(text: str) -> str:
    """Text in one line, with control characters escaped, so that a terminal does not act on them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException, most: int = 200, kind: bool = False) -> str:
    """The first line of an error's message, cut to ``most`` characters; with ``kind``, or without a message, its type.

    For errors of other libraries, which may be many lines long.
    """
    name, message = type(error).__name__, str(error).strip()
    return (f"{name}: {message}" if kind else message or name).splitlines()[0][:most]


def pasted(path: object) -> str:
    """A path quoted for the shell, in one line and without control characters."""
    text = str(path)
    if text.isprintable():
        return shlex.quote(text)
    escaped = ("".join(f"\\x{byte:02x}" for byte in os.fsencode(c)) for c in text)
    plain = (c if c.isprintable() and c not in "\\'" else code for c, code in zip(text, escaped, strict=True))
    return f"$'{''.join(plain)}'"


def speaks() -> bool:
    """Whether this process prints: the only one of its job, or the one of rank 0."""
    return os.environ.get("RANK", "0") == "0"
