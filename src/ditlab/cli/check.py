"""``ditlab check``: see that everything in a run is as it was written."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ditlab.cli.doctor import table
from ditlab.cli.options import CheckOptions, parse
from ditlab.core.errors import printable


def check(arguments: Sequence[str]) -> int:
    """Verify a run; 1 if something in it is damaged."""
    options = parse(CheckOptions, arguments, "ditlab check")
    from ditlab.cli.progress import watching
    from ditlab.doctor.files import verify

    with watching() as watcher:
        found = verify(options.run, watcher.preparing)
    if options.as_json:
        print(json.dumps(found.as_json(), allow_nan=False))
    else:
        print("\n".join(table(found.checks)))
        named = f": {', '.join(found.damaged)}" if found.damaged else ""
        print(f"\n{printable(found.run)} is {'damaged' if found.damaged else 'whole'}{named}")
    return 1 if found.damaged else 0
