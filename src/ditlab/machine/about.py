"""What the processor is called."""

from __future__ import annotations

import platform
from pathlib import Path


def cpuinfo(key: str) -> str | None:
    """What Linux says of the first processor, or None."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def processor() -> str:
    """Its name."""
    return cpuinfo("model name") or platform.processor() or platform.machine()
