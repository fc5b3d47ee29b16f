"""A run's network as an ONNX file (extra ``onnx``)."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from ditlab.chance import SampleNoise
from ditlab.errors import InputError
from ditlab.run import Run


class _Labelled(nn.Module):
    """A network with the label as a plain input."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.network(x, t, {"label": label})


class _Unlabelled(nn.Module):
    """A network without conditions."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t, None)


def write_onnx(run: Run, path: Path) -> tuple[str, ...]:
    """Inputs x (B, *shape), t (B,) in [0, 1] with noise at 1 and, with labels, label (B,) int64; output prediction.

    A network above 2 GB keeps its weights in a second file, ``PATH.data``.

    Raises:
        InputError: a library is missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise InputError(f"an ONNX file needs {' and '.join(missing)}: pip install 'ditlab[onnx]'")
    network = run.process.network
    weight = next(network.parameters())
    x, t = SampleNoise(0, range(2), run.shape, weight)(), torch.tensor([0.25, 0.75]).to(weight)
    inputs: dict[str, Tensor] = {"x": x, "t": t}
    if run.num_classes is not None:
        inputs["label"] = torch.zeros(2, dtype=torch.int64, device=weight.device)
    batch = torch.export.Dim("batch")
    with _quiet():
        graph = torch.export.export(  # without it, torch.onnx.export falls back to a fixed batch and says nothing
            (_Unlabelled if run.num_classes is None else _Labelled)(network).eval(),
            tuple(inputs.values()),
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            strict=False,
        )
        program = torch.onnx.export(
            graph,
            dynamo=True,
            dynamic_shapes=tuple({0: "batch"} for _ in inputs),
            input_names=list(inputs),
            output_names=["prediction"],
            verbose=False,
        )
        assert program is not None
        program.save(path)
    return ()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of what the exporter says of itself; what goes wrong is raised."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
