"""``ditlab ema``: averages of any length from the snapshots of a run."""

from __future__ import annotations

from collections.abc import Sequence

from ditlab.cli.options import EmaOptions, parse
from ditlab.cli.verbs import report, say
from ditlab.core.errors import pasted


def ema(arguments: Sequence[str]) -> int:
    """Make averages of any length of a run's weights."""
    options = parse(EmaOptions, arguments, "ditlab ema")
    from ditlab.training.make_ema import make_averages

    made = make_averages(options.run, options.sigma_rel, options.step, options.out)
    figures = [{"sigma_rel": m.sigma_rel, "expected_error": m.expected_error, "out": str(m.folder.path)} for m in made]
    common = {"run": options.run, "step": made[0].step, "snapshots": made[0].snapshots}
    if options.as_json:
        report({**common, "averages": figures}, True)
    else:
        rows = {f"sigma_rel {f['sigma_rel']}": {k: v for k, v in f.items() if k != "sigma_rel"} for f in figures}
        report({**common, **rows}, False)
    if not made[0].raw:
        say(f"note: step {made[0].step} has no checkpoint, so --weights raw gives the average too")
    say(f"\nNext: ditlab eval {pasted(made[0].folder.path)}")
    return 0
