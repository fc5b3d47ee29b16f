"""Commands of the documentation, run with few steps, or read by the parser where they cannot be run here."""

import re
import runpy
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from ditlab.cli import options
from ditlab.cli.main import main, without_plugins
from ditlab.cli.train_arguments import parse_train
from ditlab.core import plugins
from tests.docs.blocks import split
from tools.quotes import ROOT

# What is set to a small number before a command is run; None is an option without a value.
FEW = {"--steps": "4", "--batch-size": "8", "--warmup-steps": "2", "--sampling.steps": "2"}
SMALL = {
    "train": FEW,
    "train --resume": {"--steps": "6"},
    "sample": {"--n": "2", "--steps": "2"},
    "eval": {"--n": "100", "--steps": "2"},
    "eval --nll": {"--n": "100", "--steps": "2", "--nll-n": "2"},
    "doctor": {"--n": "64"},
    "bench": {"--quick": None, "--sizes": "tiny"},
    "latents encode": {"--data.image-size": "32"},
}
CHANGED = {  # where a command needs something else
    "ditlab train images --data.path owner/name --data.image-size 32": {"--data.path": "images.parquet"},
    "ditlab ema circles --sigma-rel 0.1 --step 2000": {"--step": "4"},
    "ditlab train images --data.path photos/ --data.image-size 32 --name photos --eval-every 1000 --eval-n 2000": {
        "--eval-n": "100"
    },
}
# Commands that are read, by the parser that would read them, and not run: why.
READ = {
    "ditlab lab": "it serves until it is stopped (tests/lab/test_serve.py)",
    "torchrun": "it needs as many GPUs (tests/reliability/test_parallel.py starts real ones)",
    "sbatch": "it needs Slurm",
    "deploy/": "it needs as many GPUs (tests/reliability/test_parallel.py starts it with two processes)",
    "tensorboard": "it serves until it is stopped",
    "python benchmarks/": "they take minutes",
    "ditlab import DiT-XL-2-256x256.pt": "a file of 2.7 GB (tests/interop/test_verbs.py imports small ones)",
    "ditlab sample runs/dit-xl": "of that file",
    "ditlab export runs/dit-xl": "of that file",
    "ditlab import DiT-XL-2-256/": "a folder of 2.7 GB",
    "ditlab import SiT-XL-2-256x256.pt": "a file of 2.7 GB",
    "ditlab import repa-last.pt": "a file of 2.7 GB",
    "ditlab train circles --name seen --track wandb": "wandb is no dependency of the tests",
    "ditlab train imagenet256 --data.path": "it needs ImageNet",
    "ditlab eval photos --features inception": "it needs the weights that torch-fidelity publishes",
    "ditlab latents encode --data.path IMAGENET/train": "it needs ImageNet",
}


UNRUN = {"from diffusers import DiTPipeline": "it fetches 2.7 GB; compiled, and its imports carried out"}


def why_read(command):
    """The reason for which a command is read alone, and the entry that says so; None where it is run."""
    found = [entry for entry in READ if command.startswith(entry)]
    exported = command.startswith("ditlab lab") and "--export" in command
    return max(found, key=len) if found and not exported else None


def carry_out(command):
    """Run a command in the working folder, or read it."""
    words = split(command)
    program, *rest = words
    if why_read(command):
        understood(words)
    elif program == "ditlab":
        ditlab(rest, command)
    elif program == "python":
        run_script(rest)
    else:
        PROGRAMS[program](rest)


def ditlab(words, command):
    """Run a verb in this process."""
    few = shrunk(words, command)
    make_room(few)
    status = main(few)
    assert status == 0, f"{command} ended with {status}"


def run_script(words):
    """Run a script that the page had written, with the verb that it hands over to."""
    script, *rest = words
    few = shrunk(rest, " ".join(words))
    make_room(few)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *few])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(script, run_name="__main__")
    assert end.value.code == 0, f"{' '.join(words)} ended with {end.value.code}"


def shrunk(words, command):
    """The same words with small numbers."""
    two = " ".join(words[:2])
    verb = two if two in SMALL else words[0] + (" --nll" if "--nll" in words else "")
    changes = {} if "--dry-run" in words else SMALL.get(verb, {})
    for flag, value in (changes | CHANGED.get(command, {})).items():
        words = with_option(words, flag, value)
    return words


def with_option(words, flag, value):
    """The words with another value of an option, or with that option at the end."""
    values = [] if value is None else [value]
    if flag not in words:
        return [*words, flag, *values]
    at = words.index(flag)
    end = next((i for i in range(at + 1, len(words)) if words[i].startswith("--")), len(words))
    return [*words[: at + 1], *values, *words[end:]]


def make_room(words):
    """A run that a page makes takes the place of the prepared one of that name."""
    if words[0] == "train" and words[1] != "--resume" and "--dry-run" not in words:
        name = words[words.index("--name") + 1] if "--name" in words else words[1]
        shutil.rmtree(Path("runs", name), ignore_errors=True)


def understood(words):
    """Read a command without running it."""
    program, *rest = words
    if program == "torchrun":
        return understood(["ditlab", *rest[rest.index("ditlab") + 1 :]])
    if program.startswith("deploy/"):
        assert (ROOT / program).exists()
        return understood(["ditlab", "train", *rest[1:]])
    if program == "sbatch":
        if "--wrap" in rest:
            return understood(split(rest[rest.index("--wrap") + 1]))
        script = next(i for i, word in enumerate(rest) if word.endswith(".sbatch"))
        assert (ROOT / rest[script]).exists()
        return understood(["ditlab", "train", *rest[script + 2 :]])
    if program == "python":
        assert (ROOT / rest[0]).exists()
        return None
    if program == "tensorboard":
        return None
    assert program == "ditlab", program
    (verb, *rest), modules = without_plugins(rest)
    plugins.load(modules)
    if verb == "train":
        return parse_train(rest)
    if verb == "latents":
        verb, *rest = rest
    return options.parse(OPTIONS[verb], rest, f"ditlab {verb}")


OPTIONS = {
    "lab": options.LabOptions,
    "sample": options.SampleOptions,
    "eval": options.EvalOptions,
    "import": options.ImportOptions,
    "export": options.ExportOptions,
    "encode": options.LatentsEncodeOptions,
}


def has_target(words):
    """A target of the Makefile, or several."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(words) <= set(targets)


def has_extra(words):
    """``pip install 'ditlab[EXTRA]'``, or ``'.[EXTRA]'``; or PyTorch's own CPU build."""
    if words == ["install", "torch", "--index-url", "https://download.pytorch.org/whl/cpu"]:
        return
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    action, *targets = words
    assert action == "install"
    for target in targets:
        found = re.fullmatch(r"(ditlab|\.)(\[(?P<extras>[\w,]+)\])?", target)
        assert found, target
        assert not found["extras"] or set(found["extras"].split(",")) <= set(known)


def activates(words):
    """``. .venv/bin/activate``."""
    assert words == [".venv/bin/activate"]


PROGRAMS = {"make": has_target, "pip": has_extra, ".": activates}
