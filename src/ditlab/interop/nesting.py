"""Find state dicts in checkpoints as trainers save them: nested, with prefixes, raw or averaged.

Known are the dictionaries of DiT, SiT and REPA ("model", "ema"), of Lightning ("state_dict") and of many scripts
("model_state_dict"), and the wrappers of DataParallel, torch.compile, ``AveragedModel`` and ema_pytorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.interop.safe_load import named_tensors

Part = Literal["model", "ema"]

NESTS: dict[str, Part] = {
    **dict.fromkeys(("model", "state_dict", "model_state_dict", "net", "network"), "model"),
    **dict.fromkeys(("ema", "ema_model", "model_ema", "ema_state_dict"), "ema"),
}
PREFIXES: dict[str, Part | None] = {  # None: may be either
    **dict.fromkeys(("module.", "_orig_mod.", "model.", "net.", "network."), None),
    **dict.fromkeys(("ema_model.", "model_ema.", "ema."), "ema"),
    "online_model.": "model",  # a copy that ema_pytorch keeps
}
COUNTERS = {"initted", "step", "n_averaged", "num_updates", "decay"}  # kept by averages beside the weights
DEEPEST = 4


class Found(NamedTuple):
    """The sets of weights in a file, the prefixes removed from their names, and the number of classes if known."""

    parts: dict[Part, dict[str, Tensor]]
    prefixes: list[str]
    num_classes: int | None


def state_dicts(content: Any, path: Path) -> Found:
    """The state dicts in the content of a file, without prefixes in their names.

    Raises:
        InputError: there is none, or more than one of a kind.
    """
    flat: list[tuple[str, Part, dict[str, Tensor]]] = []
    _walk(content, "", "model", path, flat)
    groups: dict[tuple[Part, bool], dict[str, Tensor]] = {}
    prefixes: dict[str, None] = {}
    for place, part, tensors in flat:
        for key, own in _by_prefix(tensors, part, prefixes).items():
            if key in groups:
                raise InputError(
                    f"{path} holds two state dicts of one kind, the second as {place!r}: save only the one to import, "
                    f"torch.save(model.state_dict(), ...)"
                )
            groups[key] = own
    if not groups:
        raise InputError(f"{path} holds no state dict, which is a dictionary of tensors")
    plain: dict[Part, dict[str, Tensor]] = {kind: own for (kind, copied), own in groups.items() if not copied}
    copies: dict[Part, dict[str, Tensor]] = {kind: own for (kind, _), own in groups.items() if kind not in plain}
    return Found(plain | copies, list(prefixes), _classes(content))


def _walk(content: Any, place: str, part: Part, path: Path, flat: list[tuple[str, Part, dict[str, Tensor]]]) -> None:
    """Collect the dictionaries of tensors in nested dictionaries."""
    inside = dict(dict.items(content)) if isinstance(content, dict) else {}  # its own methods may have been replaced
    nests = {name: kind for name, kind in NESTS.items() if name in inside and not isinstance(inside[name], Tensor)}
    if not nests or place.count(".") >= DEEPEST:
        flat.append((place, part, named_tensors(content, path)))
        return
    if all(inside[name] is None for name in nests):
        verb = "is" if len(nests) == 1 else "are"
        raise InputError(f"{path} holds no state dict: its {' and its '.join(nests)} {verb} None")
    for name, kind in nests.items():
        if inside[name] is not None:
            _walk(inside[name], f"{place}.{name}".strip("."), "ema" if "ema" in (part, kind) else "model", path, flat)


def _by_prefix(
    tensors: dict[str, Tensor], part: Part, seen: dict[str, None]
) -> dict[tuple[Part, bool], dict[str, Tensor]]:
    """Split a flat state dict by its prefixes, and remove them; keys say which part, and whether it is a copy."""
    groups: dict[tuple[Part, bool], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        own, kind, copied = name, part, False
        while (prefix := next((prefix for prefix in PREFIXES if own.startswith(prefix)), None)) is not None:
            own, kind = own.removeprefix(prefix), PREFIXES[prefix] or kind
            copied = copied or PREFIXES[prefix] == "model"
            seen[prefix] = None
        if not (own in COUNTERS and tensor.numel() <= 1):
            groups.setdefault((kind, copied), {})[own] = tensor
    return groups


def _classes(content: Any) -> int | None:
    """The number of classes, if a checkpoint keeps its trainer's arguments."""
    inside = dict(dict.items(content)) if isinstance(content, dict) else {}
    told = inside.get("hyper_parameters")
    number = (
        dict.get(told, "num_classes") if isinstance(told, dict) else getattr(inside.get("args"), "num_classes", None)
    )
    return number if type(number) is int and 0 < number < 2**20 else None
