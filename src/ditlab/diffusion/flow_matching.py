"""Flow matching (Lipman et al. 2023; Liu et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from ditlab.diffusion.paths import CosinePath, LinearPath, Path
from ditlab.diffusion.process import Process
from ditlab.diffusion.times import LogitNormal, Stratified, Times, Uniform


class FlowMatching(Process):
    """Flow matching: learn the velocity dx_t/dt of the path from data to noise (Lipman et al. 2023; Liu et al. 2023).

    On the linear path the velocity is eps − x0.

    Args:
        network: any ``f(x, t, cond)`` with an output shaped like x.
        path: ``"linear"``, or ``"cosine"`` (variance-preserving).
        times: ``"uniform"``, ``"stratified"`` (uniform, spread evenly over each batch) or ``"logit-normal"``.
        shift: above 1 moves training times towards the noise, as large images need, below 1 towards the data.
        times_mean, times_std: of the logit-normal density: t = sigmoid(mean + std·z) (Esser et al. 2024, section 3.1).
        parts: ``condition_dropout``, ``weight`` and ``auxiliary`` of ``Process``.
    """

    def __init__(
        self,
        network: Any,
        *,
        path: Literal["linear", "cosine"] = "linear",
        times: Literal["uniform", "stratified", "logit-normal"] = "uniform",
        times_mean: float = 0.0,
        times_std: float = 1.0,
        shift: float = 1.0,
        **parts: Any,
    ) -> None:
        paths: dict[str, Callable[[], Path]] = {"linear": LinearPath, "cosine": CosinePath}
        densities: dict[str, Callable[..., Times]] = {
            "uniform": Uniform,
            "stratified": Stratified,
            "logit-normal": partial(LogitNormal, times_mean, times_std),
        }
        if path not in paths:
            raise ValueError(f"unknown path {path!r}; choose one of {', '.join(paths)}")
        if times not in densities:
            raise ValueError(f"unknown times {times!r}; choose one of {', '.join(densities)}")
        super().__init__(network, paths[path](), "velocity", densities[times](shift=shift), **parts)
