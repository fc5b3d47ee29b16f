"""Measures the reference of ditlab doctor: the loss by time of each recipe, on the recipe's own training.

    for name in gaussians moons swiss-roll checkerboard spirals; do
        ditlab train points --data.name $name --name points-$name --checkpoint-every 250
    done
    ditlab train circles --checkpoint-every 250 && ditlab train digits --checkpoint-every 250
    python benchmarks/reference.py runs/circles runs/digits runs/points-*      under a minute, after 10 of training

Writes src/ditlab/doctor/reference.json: for the averaged weights of each checkpoint, the mean squared error in 8 bins
of the time, on 1,024 samples with the times and the noise that the doctor draws. Curves of other data are kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import ditlab
from ditlab.doctor.reference import curve_name
from ditlab.doctor.trials import by_bin, squared_errors, training_trials
from ditlab.runs.build import build_dataset
from ditlab.runs.checkpoint import saved_steps
from ditlab.runs.folder import RunFolder

FILE = Path(__file__).parents[1] / "src" / "ditlab" / "doctor" / "reference.json"
SAMPLES = 1024


def curve(folder: RunFolder) -> dict[str, Any]:
    """The curve of a run, and its recipe."""
    config = folder.read_config()
    drawn, steps = training_trials(build_dataset(config), SAMPLES), saved_steps(folder.checkpoints)
    measured = (squared_errors(ditlab.load(folder.path, step=step).process, drawn) for step in steps)
    told = config.model_dump(mode="json")
    return {
        "recipe": {name: told[name] for name in ("steps", "batch_size", "lr", "ema_decay", "network")}
        | {"optimizer": config.optimizer.kind},
        "process": told["process"],
        "steps": steps,
        "loss": [[round(value, 5) for value in by_bin(errors, drawn.bins)] for errors in measured],
    }


def main() -> None:
    """Measure the runs and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    folders = [RunFolder.find(name) for name in parser.parse_args().runs]
    there = json.loads(FILE.read_text()) if FILE.exists() else {}
    curves = there | {curve_name(folder.read_config()): curve(folder) for folder in folders}
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(told)}" for name, told in curves.items())
    FILE.write_text("{\n" + rows + "\n}\n")


if __name__ == "__main__":
    main()
