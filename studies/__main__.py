"""All studies in order, or those named: ``python -m studies [--full] [NAME ...]``."""

import sys
from importlib import import_module

from studies.study import main

ORDER = (
    "counts",
    "patch_embedding",
    "gates",
    "attention",
    "time_ends",
    "identity",
    "objectives",
    "conditioning",
    "networks",
    "scaling",
)

if __name__ == "__main__":
    sys.exit(main([import_module(f"studies.{name}").STUDY for name in ORDER]))
