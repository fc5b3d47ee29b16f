"""What to try next."""

from __future__ import annotations

from ditlab.config import Config
from ditlab.recipes import RECIPES


def recipe_of(config: Config) -> Config | None:
    """The recipe for the same data; None for a person's own, whose recipe depends on them."""
    kind = config.data.kind
    recipe: Config | None = RECIPES[kind]() if kind in RECIPES and kind not in ("images", "latents") else None
    return recipe


def smaller_lr(config: Config) -> str:
    """A learning rate to try in the place of one that is too high."""
    recipe = recipe_of(config)
    if recipe is not None and config.lr > recipe.lr:
        times = config.lr / recipe.lr
        return f"--lr {config.lr:g} is {times:.3g} × the recipe's: train anew with --lr {recipe.lr:g}"
    return f"train anew with a smaller learning rate, such as --lr {config.lr / 10:g}, or a longer --warmup-steps"
