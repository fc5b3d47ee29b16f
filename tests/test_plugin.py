"""Parts of one's own, from one file outside the package: trained, killed, resumed, sampled, measured, looked at."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import ditlab
from ditlab.cli.main import main
from ditlab.core.registry import REGISTRIES
from ditlab.lab import Lens
from ditlab.lab.lens.describe import describe

PLUGIN = Path(__file__).parents[1] / "examples" / "plugin.py"
WITH = ["--plugin", str(PLUGIN)]
PARTS = ["--network", "convolutional", "--network.settings", "width", "8", "depth", "1", "--process", "huber"]
PARTS += ["--sampling.solver", "midpoint", "--sampling.steps", "2", "--auxiliary", "smooth", "0.01"]
ADDED = [("dataset", "stripes"), ("network", "convolutional"), ("process", "huber"), ("solver", "midpoint")]
ADDED += [("loss", "smooth")]
SMALL = ["--batch-size", "8", "--precision", "fp32", "--no-compile", "--log-every", "1", "--checkpoint-every", "2"]


@pytest.fixture
def forgotten():
    """What the plug-in registers is forgotten after the test."""
    before = {kind: dict(registry.parts) for kind, registry in REGISTRIES.items()}
    yield
    for kind, parts in before.items():
        REGISTRIES[kind].parts.clear()
        REGISTRIES[kind].parts.update(parts)


@pytest.fixture
def forget(forgotten):
    """Forgets it at once, as another process does not know it."""

    def forget():
        sys.modules.pop("plugin", None)
        for kind, name in ADDED:
            REGISTRIES[kind].parts.pop(name, None)

    yield forget
    forget()


def tensors(run):
    step = sorted((run / "checkpoints").glob("step-*"))[-1]
    return load_file(step / "model.safetensors"), load_file(step / "ema.safetensors")


def test_one_file_brings_data_network_process_solver_and_loss(tmp_path, monkeypatch, capsys, forget):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "stripes", *WITH, *PARTS, *SMALL, "--steps", "4", "--name", "whole"]) == 0
    assert main(["train", "stripes", *WITH, *PARTS, *SMALL, "--steps", "4", "--name", "cut"]) == 0
    whole, cut = tmp_path / "runs" / "whole", tmp_path / "runs" / "cut"

    shutil.rmtree(cut / "checkpoints" / "step-00000004")  # as a kill between two checkpoints leaves it
    (cut / "checkpoints" / "LATEST").write_text("step-00000002")
    forget()
    capsys.readouterr()
    assert main(["train", "--resume", "cut"]) == 2  # the run says which plug-in it needs
    assert f"--plugin {PLUGIN}" in capsys.readouterr().err
    assert main(["train", "--resume", "cut", *WITH]) == 0
    for one, other in zip(tensors(whole), tensors(cut), strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)

    capsys.readouterr()
    told = ["--label", "rising", "--cond", "period=4", "--n", "3", "--json"]
    assert main(["sample", "whole", *WITH, *told, "--out", "x.npz"]) == 0
    drawn = np.load("x.npz")
    assert drawn["samples"].shape == (3, 1, 16, 16)
    assert drawn["labels"].tolist() == [1, 1, 1]
    other = [word.replace("period=4", "period=8") for word in told]
    assert main(["sample", "whole", *WITH, *other, "--out", "y.npz"]) == 0
    assert not np.array_equal(drawn["samples"], np.load("y.npz")["samples"])
    run = ditlab.load("whole")
    same = run.draw(3, cond={"label": "rising", "period": 4.0})
    np.testing.assert_allclose(same.numpy(), drawn["samples"], atol=1e-6)

    capsys.readouterr()
    assert main(["eval", "whole", *WITH, "--n", "20", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["solver"] == "midpoint"
    assert any(name.startswith("sliced") for name in figures)
    assert describe(Lens(run))["solvers"][-1] == "midpoint"


def test_a_plugin_that_fails_is_said_in_one_line(tmp_path, monkeypatch, capsys, forgotten):
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text("1 / 0\n")
    for name, words in (("broken.py", "ZeroDivisionError"), ("absent", "absent")):
        assert main(["sample", "whole", "--plugin", name]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
