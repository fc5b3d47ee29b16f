"""Export a run's network as an ONNX file (extra ``onnx``)."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from ditlab.core.errors import InputError
from ditlab.core.rng import SampleNoise
from ditlab.runs.run import Run


class _Plain(nn.Module):
    """A network with its conditions as plain inputs."""

    def __init__(self, network: nn.Module, conditions: Sequence[str]) -> None:
        super().__init__()
        self.network, self.conditions = network, conditions

    def forward(self, x: Tensor, t: Tensor, *values: Tensor) -> Tensor:
        return self.network(x, t, dict(zip(self.conditions, values, strict=True)) or None)


def write_onnx(run: Run, path: Path) -> tuple[str, ...]:
    """Write a file with inputs x (B, *shape) and t (B,) in [0, 1], noise at 1, and the output prediction.

    Depending on the network there are also inputs label (B,) int64 and interval (B,). Weights above 2 GB go to a second
    file, ``PATH.data``.

    Raises:
        InputError: a library is missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise InputError(f"an ONNX file needs {' and '.join(missing)}: pip install 'ditlab[onnx]'")
    network = run.process.network
    weight = next(network.parameters())
    x, t = SampleNoise(0, range(2), run.shape, weight)(), torch.tensor([0.25, 0.75]).to(weight)
    conditions: dict[str, Tensor] = {}
    if run.num_classes is not None:
        conditions["label"] = torch.zeros(2, dtype=torch.int64, device=weight.device)
    if getattr(getattr(network, "conditioner", None), "interval", None) is not None:
        conditions["interval"] = torch.zeros_like(t)
    batch, name = {0: torch.export.Dim("batch")}, {0: "batch"}
    extra = len(conditions)
    with _quiet():
        graph = torch.export.export(  # without it, torch.onnx.export falls back to a fixed batch and says nothing
            _Plain(network, list(conditions)).eval(),
            (x, t, *conditions.values()),
            dynamic_shapes=(batch, batch, (batch,) * extra) if extra else (batch, batch),
            strict=False,
        )
        program = torch.onnx.export(
            graph,
            dynamo=True,
            dynamic_shapes=(name, name, (name,) * extra) if extra else (name, name),
            input_names=["x", "t", *conditions],
            output_names=["prediction"],
            verbose=False,
        )
        assert program is not None
        program.save(path)
    return ()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's messages, except for errors."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
