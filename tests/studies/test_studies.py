"""Each study runs from end to end at a tiny size, its verdicts can come out each way, and kept results are its own."""

import json
import shutil
import subprocess
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditlab import probe
from ditlab.config import DiTConfig
from ditlab.core.errors import CheckpointWarning, InputError
from ditlab.data.circles import circles
from ditlab.inspection.statistics import brightness, distances
from ditlab.runs.build import build_dataset, initial_network
from studies import study as framework
from studies.__main__ import ORDER
from studies.intervals import CONFIRMED, CONTRADICTED, NOT_SHOWN, Measured
from studies.study import Outcome, main, perform
from studies.training import SMOKE, Workers, base

RESULTS = Path(__file__).parents[2] / "studies" / "results"
VERDICTS = {CONFIRMED, CONTRADICTED, NOT_SHOWN}
KEYS = ["study", "tier", "claim", "findings", "rows", "curves", "command", "machine"]
KEYS += ["wall_seconds_of_call", "training_process_seconds", "steps", "seeds", "commit"]


def study(name):
    return import_module(f"studies.{name}").STUDY


def check(told):
    """What every result must be."""
    assert list(told) == KEYS
    assert told["claim"] == study(told["study"]).claim
    assert told["command"].startswith(f"python -m studies.{told['study']}")
    assert {"cpu", "cores", "processes", "threads_each", "torch"} <= set(told["machine"])
    assert told["findings"]
    assert told["rows"]
    assert all(list(row) == list(told["rows"][0]) for row in told["rows"])
    for finding in told["findings"]:
        assert list(finding) == ["claim", "measurement", "verdict", "reason", "figures"]
        assert finding["verdict"] in VERDICTS
        assert finding["claim"].endswith(".")
        assert finding["measurement"].endswith(".")
        assert finding["reason"]
        assert finding["figures"]
        for figure in finding["figures"].values():
            assert figure["low"] <= figure["value"] <= figure["high"]
            assert figure["interval"].startswith(("t over", "none, ", "Clopper-Pearson", "exact"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Where the studies of these tests share their runs."""
    return tmp_path_factory.mktemp("runs")


LONG = {"objectives", "scaling", "networks", "conditioning", "patch_embedding"}  # take longer than the others


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else []) for n in ORDER])
def test_a_study_runs_from_end_to_end(name, runs, tmp_path):
    told = perform(study(name), SMOKE, Workers(runs, 0, lambda _: None), tmp_path)
    kept = json.loads((tmp_path / f"{name}.json").read_text())
    assert kept == json.loads(json.dumps(told))
    check(kept)
    assert Image.open(tmp_path / f"{name}.png").size[0] >= 400
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.json", f"{name}.png"]


@pytest.mark.parametrize("name", ORDER)
def test_a_study_opens_with_its_command_and_what_to_expect(name):
    text = import_module(f"studies.{name}").__doc__
    for words in (f"python -m studies.{name} ", f"python -m studies.{name} --full", "Claim:", "Expect:", "CPU cores"):
        assert words in text


@pytest.mark.parametrize("file", sorted(RESULTS.glob("full/*.json")), ids=lambda file: file.stem)
def test_kept_results_are_those_of_their_scripts(file):
    told = json.loads(file.read_text())
    check(told)
    assert told["study"] == file.stem
    assert told["tier"] == "full"
    assert told["command"] == f"python -m studies.{file.stem} --full"
    assert Image.open(file.with_suffix(".png")).size[0] >= 400


def test_a_study_that_fails_leaves_no_result(tmp_path):
    failing = study("counts")._replace(draw=lambda told: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        perform(failing, SMOKE, Workers(tmp_path, 1), tmp_path / "results")
    no_number = study("counts")._replace(measure=lambda tier, workers: Outcome([], [{"x": float("nan")}]))
    with pytest.raises((ValueError, KeyError)):
        perform(no_number, SMOKE, Workers(tmp_path, 1), tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_unknown_studies_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main([study("counts"), study("counts")], ["spelling"])
    assert stop.value.code == 2
    assert "no study spelling; there are counts" in capsys.readouterr().err


def test_results_do_not_make_a_commit_look_changed(tmp_path, monkeypatch):
    def git(*words):
        told = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words]
        subprocess.run(told, check=True, capture_output=True)

    git("init")
    (tmp_path / "studies" / "results").mkdir(parents=True)
    (tmp_path / "src").mkdir()
    for file in ("src/a.py", "studies/b.py"):
        (tmp_path / file).touch()
    git("add", ".")
    git("commit", "-m", "First")
    monkeypatch.setattr(framework, "ROOT", tmp_path)
    (tmp_path / "studies" / "results" / "c.json").touch()
    assert not framework.commit().endswith("+")
    (tmp_path / "studies" / "b.py").write_text("changed")
    assert framework.commit().endswith("+")


# ---- training


def scaled(factor, network):
    with torch.no_grad():
        network.positions.mul_(factor)


def test_changed_starts_are_trained_from_and_kept(tmp_path):
    config = base(SMOKE, 0, steps=4)
    runs = Workers(tmp_path, 1, lambda _: None).train(
        {"plain": config, "changed": config}, {"changed": partial(scaled, 100.0)}
    )
    plain, changed = (run.load() for run in runs.values())
    assert changed.process.network.positions.std() > 10 * plain.process.network.positions.std()
    assert changed.step == plain.step == 4
    here = Workers(tmp_path, 0, lambda _: None)
    assert here.train({"plain": config})["plain"] == runs["plain"]
    with pytest.raises(InputError, match="was trained with other settings: remove it"):
        here.train({"plain": base(SMOKE, 0, steps=4, lr=1e-3)})


def test_a_run_that_was_interrupted_goes_on_to_the_same_weights(tmp_path):
    config = base(SMOKE, 0, steps=8)
    here = Workers(tmp_path, 0, lambda _: None)
    whole = here.train({"whole": config})["whole"].load()
    (tmp_path / "cut").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / "cut" / "checkpoints")
    shutil.copy(tmp_path / "whole" / "config.json", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000008")
    with pytest.warns(CheckpointWarning, match="step 6 is used instead"):
        again = here.train({"cut": config})["cut"].load()
    for one, other in zip(whole.process.parameters(), again.process.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_that_runs_away_is_told_of_and_not_hidden(tmp_path):
    config = base(SMOKE, 0, lr=1e3, grad_clip=1e9, warmup_steps=0, bad_steps=1)
    (run,) = Workers(tmp_path, 0, lambda _: None).train({"wild": config}).values()
    assert "could not be learned from" in run.failed


# ---- findings on constructed inputs: each can be confirmed, contradicted and, where it has an interval, neither


def outcomes(function, *inputs):
    return [function(*given).verdict for given in inputs]


def spread(middle, by=0.01):
    """Three seeds that agree well."""
    return [middle - by, middle, middle + by]


def test_counts_can_come_out_each_way():
    counts = import_module("studies.counts")
    assert counts.about({"MLP": 25_346, "DiT": 252_496}) == CONFIRMED
    assert counts.about({"MLP": 41_858, "DiT": 252_496}) == CONTRADICTED
    alike = {"functions": ["a"], "inherited": True, "learned": True, "shape": "(B, 2)", "sample": "(B, 2)"}
    assert counts.alike({"MLP": alike, "DiT": alike}) == CONFIRMED
    for change in ({"functions": ["b"]}, {"inherited": False}, {"learned": False}, {"sample": "(B, 3)"}):
        assert counts.alike({"MLP": alike, "DiT": alike | change}) == CONTRADICTED


def test_patch_embedding_can_come_out_each_way():
    patches = import_module("studies.patch_embedding")
    assert patches.equal({torch.float32: 1e-6, torch.float64: 1e-15}) == CONFIRMED
    assert patches.equal({torch.float32: 1e-6, torch.float64: 1e-6}) == CONTRADICTED
    ratios = [{("S/4", "forward"): Measured(value, value - 0.1, value + 0.1, "")} for value in (1.3, 0.8, 1.05)]
    assert outcomes(patches.faster, *((each,) for each in ratios)) == [CONFIRMED, CONTRADICTED, NOT_SHOWN]
    conv, cut, x = patches.pair(patches.SIZES["lesson"])
    with torch.no_grad():
        cut.weight[0, 0] += 0.1
    assert not torch.allclose(conv(x), cut(x), atol=1e-3)


def test_gates_can_come_out_each_way():
    gates = import_module("studies.gates")

    def seen(*values, wobble=0.01):
        """Three seeds whose gates and depth take these values, one recording after the other."""
        tables = []
        for shift in spread(0, wobble):
            moved = np.array([value and value + shift * i for i, value in enumerate(values)])
            gate = np.broadcast_to(moved[:, None, None], (len(values), 4, 2))
            tables.append({"step": np.arange(len(values)), "gate": gate, "depth": moved})
        return tables

    assert outcomes(gates.opening, (seen(0, 1, 2),), (seen(1, 1, 2),)) == [CONFIRMED, CONTRADICTED]
    ways = (seen(0, 1, 2),), (seen(3, 2, 1),), (seen(0, 1, 0.5, wobble=1),)
    assert outcomes(gates.deepening, *ways) == [CONFIRMED, CONTRADICTED, NOT_SHOWN]
    ways = (seen(0, 2, 1, 3),), (seen(0, 3, 1, 2),), (seen(0, 2, 1, 2.1, wobble=0.5),)
    for finding in (gates.keeping_on, gates.growing):
        assert outcomes(finding, *ways) == [CONFIRMED, CONTRADICTED, NOT_SHOWN]
    assert "not monotone in 3 of 3 seeds: from its peak at step 1 " in gates.growing(seen(0, 3, 1, 2)).reason
    assert "rose" in gates.growing(seen(0, 1, 2)).reason
    assert gates.turning(np.array([0, 3, 2.5, 1, 2, 1.5])) == (1, 3)
    assert gates.turning(np.array([0, 1, 2])) == (0, 0)


def test_attention_can_come_out_each_way():
    attention = import_module("studies.attention")
    share = torch.zeros(2, 16)
    share[0, [0, 1, 4, 5]] = share[1, [10, 11, 14, 15]] = 1  # a disc in each of two corners
    itself, alike = torch.eye(16).expand(2, 2, 16, 16), torch.full((2, 2, 16, 16), 1 / 16)
    away = torch.eye(16).flip(0).expand(2, 2, 16, 16)  # to the patch across the centre
    own = (share / 4)[:, None, None].expand(2, 2, 16, 16)  # to the disc of the image
    other = own.flip(0)

    def seen(maps, by=1e-6):
        one = attention.of_layer(maps, share, (4, 4))
        return [
            {key: np.full((5, 1), value * (1 + shift) + shift) for key, value in one.items()} for shift in (0, by, -by)
        ]

    diagonals = [(seen(maps),) for maps in (itself, away)]
    assert outcomes(attention.diagonal, *diagonals) == [CONFIRMED, CONTRADICTED]
    assert outcomes(attention.own_cell, *((seen(maps), 1) for maps in (itself, away))) == [CONFIRMED, CONTRADICTED]
    assert outcomes(attention.in_disc, *((seen(maps), 1) for maps in (own, other, alike))) == [
        CONFIRMED,
        CONTRADICTED,
        NOT_SHOWN,
    ]
    near = [(seen(maps), 1) for maps in (itself, away, alike)]
    assert outcomes(attention.background, *near) == [CONFIRMED, CONTRADICTED, NOT_SHOWN]


def test_looking_nearby_is_not_looking_at_the_disc():
    attention = import_module("studies.attention")
    share = brightness(circles(200, torch.Generator().manual_seed(0)).images, (4, 4))
    nearby = torch.softmax(-distances((4, 4)), -1).expand(len(share), 1, 16, 16)  # sees no image
    found = attention.of_layer(nearby, share, (4, 4))
    assert found["inside"] > 1.3 * found["inside_chance"]
    assert found["inside"] == pytest.approx(found["inside_others"], rel=0.02)
    pairs = [(b, c) for b in range(3) for c in range(3) if b != c]
    maps = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)).softmax(-1)
    by_hand = [float(share[c] @ maps[b] @ share[c] / share[c].sum()) for b, c in pairs]
    assert attention.inside_others(maps, share[:3]) == pytest.approx(np.mean(by_hand), rel=1e-5)


def test_a_cell_that_fp32_cannot_hold_is_not_zero():
    attention = import_module("studies.attention")
    config = base(SMOKE, 0)
    network = initial_network(config, build_dataset(config))
    x, t = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.9])

    def smallest():
        with probe(network, gates=False) as record, attention.smallest_logs(network) as logs:
            network(x, t, None)
        return logs, [float(maps.min()) for maps in record.attention.values()]

    logs, cells = smallest()
    assert np.exp(logs) == pytest.approx(cells, rel=1e-3)
    with torch.no_grad():
        for block in network.blocks:
            block.attn.qkv.weight.mul_(100)
    logs, cells = smallest()
    assert min(cells) == 0
    assert min(logs) < -200
    told = [[{"smallest_log": np.array([each]), "faint": np.array([0.1])}] * 2 for each in (min(logs), -np.inf)]
    assert outcomes(attention.reaching, *((each,) for each in told)) == [CONFIRMED, CONTRADICTED]
    assert attention.power_of_ten(-1000 * np.log(10) + np.log(2.5)) == "2.5e-1000"


def test_time_ends_can_come_out_each_way():
    ends = import_module("studies.time_ends")

    def seen(**figures):
        rest = dict.fromkeys(("spread", "variance", "to mean", "valid"), 0.0)
        return [
            {key: np.full(len(ends.TIMES), value + shift) for key, value in (rest | figures).items()}
            for shift in spread(0)
        ]

    ways = [CONFIRMED, CONTRADICTED, NOT_SHOWN]
    assert outcomes(ends.handing_on, *((seen(change=value),) for value in (0.03, 0.3, 0.1))) == ways
    assert outcomes(ends.leaving_noise, *((seen(left=value),) for value in (0.9, 0.3, 0.5))) == ways
    assert (
        outcomes(partial(ends.structure, t=0.9), *((seen(spread=value, variance=value),) for value in (0.9, 0.2, 0.5)))
        == ways
    )
    assert ends.structure(seen(spread=0.9, variance=0.2), 0.9).verdict == CONTRADICTED
    lasts = ((0.5, 0.98), (0.55, 0.99), (0.95, 1.0))
    falling = [{"valid": np.where(np.array(ends.TIMES) < last, share, 0.0)} for last, share in lasts]
    assert ends.latest(falling, "valid") == "0.4"
    assert ends.latest(seen(), "valid") == "none"
    x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert ends.explained(-2 * x, x) == pytest.approx(1)
    assert ends.explained(x.flip(0), x) < 0.1
    assert ends.explained(0 * x, x) == 0


def test_identity_can_come_out_each_way():
    identity = import_module("studies.identity")
    fresh = {"blocks": 0.0, "output": 0.0, "output less x": 1.0}
    moved = fresh | {"blocks": 1e-3, "output less x": 0.0}
    assert outcomes(identity.blocks_are_identity, ({4: fresh},), ({4: fresh, 12: moved},)) == [CONFIRMED, CONTRADICTED]
    assert outcomes(identity.output_is_x, ({4: moved},), ({4: fresh},)) == [CONFIRMED, CONTRADICTED]

    def seen(ours, theirs=1.0):
        return {
            (4, start): [
                {"loss": shift + (ours if start == identity.ZERO else theirs)}
                for shift in (spread(0) if start == identity.ZERO else spread(0, 0.012))
            ]
            for start in identity.STARTS
        }

    ways = [CONFIRMED, CONTRADICTED, NOT_SHOWN]
    assert outcomes(identity.faster, *((seen(loss), 4) for loss in (0.5, 1.5, 1.0))) == ways


def test_other_starts_are_what_they_are_called():
    identity = import_module("studies.identity")
    config = base(SMOKE, 0, network=DiTConfig(depth=3))
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([0.2, 0.9])
    opened, divided, random = (initial_network(config, build_dataset(config)) for _ in range(3))
    identity.open_gates(opened)
    identity.scaled(divided)
    identity.small_random(random, seed=0)
    for network, gate in ((opened, 1.0), (divided, 1.0)):
        with probe(network, attention=False) as record:
            assert not network(x, t, None).any()  # the last linear layer is still zero
        assert all((value == gate).all() for branches in record.gates.values() for value in branches.values())
    for one, other in zip(opened.blocks, divided.blocks, strict=True):
        torch.testing.assert_close(one.attn.out.weight, other.attn.out.weight * 6**0.5)
        torch.testing.assert_close(one.mlp[-1].weight, other.mlp[-1].weight * 6**0.5)
        assert torch.equal(one.mlp[0].weight, other.mlp[0].weight)
    with probe(random, attention=False) as record:
        random(x, t, None)
    assert all(0 < value.abs().mean() < 0.1 for branches in record.gates.values() for value in branches.values())
