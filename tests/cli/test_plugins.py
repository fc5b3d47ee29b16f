"""Parts of the user's own, imported by ``--plugin``: known to every verb, kept in the run, refused in one line."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import ditlab
from ditlab.cli.main import main
from ditlab.core import plugins
from ditlab.core.registry import REGISTRIES

PARTS = '''
import torch
from torch import nn

import ditlab
from ditlab.data.conditions import Label, Scalar
from ditlab.data.dataset import Batch


@ditlab.register("network", "scaled")
class Scaled(nn.Module):
    def __init__(self, shape, num_classes, scalars=(), start=0.5):
        super().__init__()
        self.factor, self.null = nn.Parameter(torch.full(shape, start)), num_classes

    def null_condition(self, cond):
        return {name: torch.full_like(v, self.null if name == "label" else float("nan")) for name, v in cond.items()}

    def forward(self, x, t, cond=None):
        told = torch.zeros(len(x)) if cond is None or "age" not in cond else cond["age"].nan_to_num(0.0)
        return (x + told.view(-1, 1, 1, 1)) * self.factor


@ditlab.register("dataset", "pets")
class Pets:
    """Noise of a kind, and how old it is."""

    def __init__(self, side=8):
        self.shape = (1, side, side)
        self.conditions = {"label": Label(("cats", "dogs")), "age": Scalar("years", 10.0, 5.0)}

    def batch(self, seed, position, size):
        generator = torch.Generator().manual_seed(seed + position)
        label = torch.arange(position, position + size) % 2
        x0 = torch.randn(size, *self.shape, generator=generator)
        return Batch(x0, {"label": label, "age": torch.randn(size, generator=generator)})


@ditlab.register("solver", "small-steps")
def small_steps():
    from ditlab.diffusion.solvers import Euler

    return Euler()


@ditlab.register("recipe", "quick")
def quick():
    """Circles in no time."""
    from ditlab.recipes import circles

    return circles().model_copy(update={"steps": 2, "batch_size": 4})
'''
NAMES = {"scaled", "pets", "small-steps", "quick"}
SMALL = ["--steps", "2", "--batch-size", "4", "--sampling.steps", "2", "--name", "own"]
PETS = ["train", "pets", "--network", "scaled", *SMALL]


def forget():
    """What was imported, as in another process."""
    for name in ("own_parts", "failing"):
        sys.modules.pop(name, None)
    for registry in REGISTRIES.values():
        for name in set(registry.parts) & NAMES:
            del registry.parts[name]
    plugins.GIVEN.clear()


@pytest.fixture
def parts(in_tmp, monkeypatch):
    """A file that registers parts, in the folder ``code``."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (in_tmp / "code").mkdir()
    (in_tmp / "code" / "own_parts.py").write_text(PARTS)
    yield in_tmp / "code"
    forget()


@pytest.mark.parametrize("name", ["code/own_parts.py", "own_parts"])
def test_a_run_keeps_its_plugins_and_is_refused_without_them(parts, name, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(parts))
    words = ["--data.settings", "side", "4", "--network.settings", "start", "0.25", "--sampling.solver", "small-steps"]
    assert main([*PETS, *words, "--plugin", name]) == 0
    config = json.loads(Path("runs/own/config.json").read_text())
    assert config["plugins"] == [name]
    assert (config["data"]["name"], config["data"]["settings"]) == ("pets", {"side": 4})
    assert config["network"] == {"kind": "own", "name": "scaled", "settings": {"start": 0.25}}
    forget()
    for verb in (["sample", "own"], ["doctor", "own"], ["train", "--resume", "own"], ["lab", "own"]):
        assert main(verb) == 2
        assert f"--plugin {name}" in capsys.readouterr().err
    assert main(["--plugin=code/own_parts.py", "train", "--resume", "own", "--steps", "3"]) == 0  # however it is named
    assert main(["sample", "own", "--n", "2", "--plugin", "own_parts"]) == 0


@pytest.mark.slow  # a process of its own imports torch
def test_a_data_set_of_images_is_trained_on_by_its_name_alone_and_by_workers(parts):
    words = ["train", "pets", "--plugin", "code/own_parts.py", *SMALL, "--workers", "1", "--network.dim", "16"]
    assert main([*words, "--network.depth", "1"]) == 0
    assert ditlab.load("own").config.network.kind == "dit"


def test_registered_recipes_and_data_sets_are_listed_and_trained(parts, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help", "--plugin", "code/own_parts.py"])
    out = capsys.readouterr().out
    assert "Circles in no time." in out
    assert "Noise of a kind" in out
    assert main(["train", "quick", "--plugin", "code/own_parts.py", "--dry-run", "--json"]) == 0


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import ditlab\n\nnames = wrong\n", ["line 3", "NameError", "wrong"]),
        ("def broken(:\n", ["line 1", "SyntaxError"]),
        ("import no_such_module\n", ["line 1", "no_such_module"]),
        ("raise SystemExit(3)\n", ["line 1", "SystemExit"]),
        ("import ditlab\n\n@ditlab.register('solver', 'heun')\ndef mine(): ...\n", ["line 3", "ditlab's own"]),
    ],
)
def test_a_plugin_that_fails_is_told_by_its_line(parts, capsys, code, said):
    (parts / "failing.py").write_text(code)
    assert main(["train", "circles", "--plugin", "code/failing.py"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert all(word in told for word in ["--plugin code/failing.py", "failing.py", *said]), told


def test_samples_have_the_conditions_that_are_asked_for(parts, capsys):
    plugin = ["--plugin", "code/own_parts.py"]
    assert main([*PETS, *plugin]) == 0
    capsys.readouterr()
    told = ["--cond", "label=dogs", "--cond", "age=30", "--out", "x.npz", "--n", "3", "--steps", "2"]
    assert main(["sample", "own", *plugin, *told, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cond"] == {"age": 30}
    by_command = np.load("x.npz")
    assert by_command["labels"].tolist() == [1, 1, 1]
    run = ditlab.load("own")
    np.testing.assert_array_equal(by_command["samples"], run.draw(3, {"label": "dogs", "age": 30.0}, steps=2))
    assert not np.array_equal(by_command["samples"], run.draw(3, {"label": "dogs", "age": 10.0}, steps=2))


WRONG = [
    (["--cond", "colour=red"], ["label (0 cats, 1 dogs)", "age (years)"]),
    (["--cond", "age"], ["--cond age", "age (years)"]),
    (["--cond", "age=old"], ["age=old", "number of years"]),
    (["--cond", "age=nan"], ["age=nan"]),
    (["--cond", "age=1e40"], ["age=1e40"]),
    (["--cond", "age=1", "--cond", "age=2"], ["twice"]),
    (["--cond", "label=fish"], ["fish", "1 dogs"]),
    (["--cond", "label=2"], ["0 to 1"]),
    (["--cond", "label=0", "--label", "cats"], ["twice"]),
]


def test_a_condition_that_the_run_does_not_take_is_told_in_a_line(parts, capsys):
    assert main([*PETS, "--plugin", "code/own_parts.py"]) == 0
    capsys.readouterr()
    for words, said in WRONG:
        assert main(["sample", "own", "--n", "2", *words]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert all(word in told for word in said), told


@pytest.mark.parametrize("name", ["code/nothing.py", "nothing", "code.nothing", ""])
def test_a_plugin_that_is_not_there_is_named(parts, capsys, name):
    assert main(["sample", "own", "--plugin", name]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"--plugin {name}" in told


def test_a_plugin_does_not_take_the_place_of_another_module(parts, capsys):
    (parts / "json.py").write_text("")
    assert main(["sample", "own", "--plugin", "code/json.py"]) == 2
    assert "another name" in capsys.readouterr().err
