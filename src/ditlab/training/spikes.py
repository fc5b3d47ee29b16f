"""Which steps are learned from: none with a loss or gradient that is not finite, and none whose loss is a spike."""

from __future__ import annotations

import math
from typing import Any

SETTLED = 100  # steps learned from before a loss can be called a spike
DECAY = 0.99  # a step, of the running mean

FIRST_SCALE = 2.0**16  # of the loss in fp16
STEADY = 2000  # steps learned from in a row, after which the scale is doubled
OVERFLOW = "overflow"  # how an objection begins that says so


class Guard:
    """Looks at each step before the optimizer does, and counts those in a row that cannot be learned from.

    Its state is plain numbers: the running mean of |loss| over the steps learned from (a plain mean at first, then an
    exponential one), how many those were, and how many were not, in a row, up to now.

    In fp16, whose least number is 6e-8, small gradients would become 0: the loss is multiplied by ``scale`` before the
    backward pass, and its gradients are divided by it (Micikevicius et al. 2018, section 3.2). Where they overflow the
    scale is halved, and after ``STEADY`` steps without that it is doubled. An overflow is no fault of the step: it
    does not count, unless the scale is 1 already.

    Args:
        spike_factor: a loss this many times the running mean is a spike.
        bad_steps: so many steps in a row that were not learned from are too many.
        watched: name of the figure that is looked at as the loss: see ``Process.watched``.
        scaled: whether the loss is scaled; otherwise ``scale`` is 1.
    """

    def __init__(self, spike_factor: float, bad_steps: int, watched: str = "loss", *, scaled: bool = False) -> None:
        self.spike_factor, self.bad_steps, self.watched, self.scaled = spike_factor, bad_steps, watched, scaled
        self.mean = 0.0
        self.learned = 0
        self.in_a_row = 0
        self.scale = FIRST_SCALE if scaled else 1.0
        self.steady = 0  # steps learned from since the scale was changed

    def objection(self, loss: float, grad_norm: float) -> str | None:
        """Why not to learn from a step with this loss and norm of the gradient; None if it may be learned from.

        It depends on these numbers and on the guard's own: processes that see the same ones agree.
        """
        if self.scale > 1 and math.isfinite(loss) and not math.isfinite(grad_norm):
            return f"{OVERFLOW} of fp16: gradient norm is {grad_norm} at a loss scale of {self.scale:g}"
        for name, value in ((self.watched, loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                return f"{name} is {value}"
        if self.learned >= SETTLED and self.mean > 0 and loss > self.spike_factor * self.mean:
            return f"spike: {self.watched} {loss:.4g} is {loss / self.mean:.3g} times its running mean {self.mean:.4g}"
        return None

    def note(self, loss: float, objection: str | None) -> None:
        """Remember how a step went."""
        if objection is not None:
            if objection.startswith(OVERFLOW):
                self.scale, self.steady = self.scale / 2, 0
            else:
                self.in_a_row += 1
            return
        self.in_a_row = 0
        self.mean += max(1 - DECAY, 1 / (self.learned + 1)) * (abs(loss) - self.mean)
        self.learned += 1
        self.steady += 1
        if self.scaled and self.steady == STEADY:
            self.scale, self.steady = 2 * self.scale, 0

    @property
    def gives_up(self) -> bool:
        """Whether too many steps in a row could not be learned from."""
        return self.in_a_row >= self.bad_steps

    def facts(self) -> dict[str, Any]:
        """The guard's numbers, for JSON."""
        watched = {} if self.watched == "loss" else {"watched": self.watched}
        scale = {"scale": self.scale, "steady": self.steady} if self.scaled else {}
        return {"mean": self.mean, "learned": self.learned, "in_a_row": self.in_a_row, **watched, **scale}

    def take_facts(self, facts: dict[str, Any]) -> None:
        """Go on with the numbers that ``facts`` gave; the running mean starts anew if it is of another figure."""
        self.in_a_row = int(facts["in_a_row"])
        if facts.get("watched", "loss") == self.watched:
            self.mean, self.learned = float(facts["mean"]), int(facts["learned"])
        if self.scaled:
            self.scale, self.steady = float(facts["scale"]), int(facts["steady"])


def summary(objections: list[str]) -> str:
    """A line about the steps that were not learned from, by kind."""
    found = [(kind, sum(objection.startswith(kind) for objection in objections)) for kind in ("spike", OVERFLOW)]
    kinds = [f"{count} {kind}{'s' * (count > 1)}" for kind, count in found if count]
    others = len(objections) - sum(count for _, count in found)
    kinds += [f"{others} not finite"] if others else []
    steps = "1 step was" if len(objections) == 1 else f"{len(objections)} steps were"
    return f"{steps} not learned from ({', '.join(kinds)}): see metrics.jsonl"
