"""Ready-made configurations, by name: what each makes, how long it takes, what to expect. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable

from ditlab.config import CirclesData, Config, DigitsData, DiTConfig, FlowConfig, MLPConfig, PointsData, SamplingConfig


def circles() -> Config:
    """The lesson's DiT (252,496 parameters) draws discs on 16×16 images; about two minutes on two CPU cores.

    ``ditlab train circles``, 4,000 steps of 128. Expect 0.95 to 0.97 of 1,000 samples to be valid circles.
    """
    return Config(
        data=CirclesData(),
        network=DiTConfig(),
        process=FlowConfig(shift=0.5),  # small discs fail most: train more where little noise is left
    )


def points() -> Config:
    """An MLP (41,858 parameters) learns a distribution of points in the plane; under half a minute on two CPU cores.

    ``ditlab train points --data.name moons``, 8,000 steps of 512. Expect an energy distance of about 1.3 × its floor.
    """
    return Config(
        data=PointsData(),
        network=MLPConfig(depth=3),
        steps=8000,
        batch_size=512,
        lr=0.01,
        ema_decay=0.999,
        precision="fp32",  # points are two numbers: bf16 would round them, and there is no large product to speed up
        checkpoint_every=4000,
        preview_every=2000,
    )


def digits() -> Config:
    """A DiT draws the digit it is asked for, learned from 898 handwritten ones; about three minutes on two CPU cores.

    ``ditlab train digits``, 4,000 steps of 128, 8×8 pixels. Expect a judge to read 0.99 of the samples as asked for, at
    guidance 2.
    """
    return Config(
        data=DigitsData(),
        network=DiTConfig(patch_size=2),
        sampling=SamplingConfig(guidance=2.0),
    )


RECIPES: dict[str, Callable[[], Config]] = {"circles": circles, "points": points, "digits": digits}
