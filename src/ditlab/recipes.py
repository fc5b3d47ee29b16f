"""Ready-made configurations, by name: what each makes, how long it takes, what to expect. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable

from ditlab.config import CirclesData, Config, DigitsData, DiTConfig, MLPConfig, PointsData, SamplingConfig


def circles() -> Config:
    """The lesson's DiT (252,496 parameters) draws discs on 16×16 images."""
    return Config(data=CirclesData(), network=DiTConfig())


def points() -> Config:
    """An MLP (25,346 parameters) learns a distribution of points in the plane."""
    return Config(data=PointsData(), network=MLPConfig(), steps=4000, batch_size=512, lr=4e-3)


def digits() -> Config:
    """A DiT draws the handwritten digit it is asked for, learned from 898 real ones of 8×8 pixels."""
    return Config(
        data=DigitsData(),
        network=DiTConfig(patch_size=2),
        sampling=SamplingConfig(guidance=2.0),
        steps=4000,
    )


RECIPES: dict[str, Callable[[], Config]] = {"circles": circles, "points": points, "digits": digits}
