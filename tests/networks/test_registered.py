"""A network of one's own, by name, in the verbs that train and draw."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import ditlab
from ditlab.cli.main import main
from ditlab.config import Config, OwnConfig
from ditlab.core.registry import NETWORKS

WORDS = ["train", "digits", "--network", "own", "--steps", "3", "--batch-size", "4", "--sampling.steps", "2"]


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(NETWORKS, "parts", {})
    assert NETWORKS.parts == {}

    @ditlab.register_network("scaled")
    class Scaled(nn.Module):
        def __init__(self, shape, num_classes, start=0.5, by_label=False):
            super().__init__()
            self.factors = nn.Parameter(torch.full((num_classes + 1 if by_label else 1, *shape), start))

        def null_condition(self, cond):
            return {"label": torch.full_like(cond["label"], len(self.factors) - 1)}

        def forward(self, x, t, cond=None):
            return x * (self.factors[cond["label"]] if cond and len(self.factors) > 1 else self.factors[-1])

    return Scaled


def test_trained_resumed_and_sampled_by_name(in_tmp, registered):
    assert main([*WORDS, "--network.name", "scaled", "--network.settings", "start", "0.25", "by_label", "True"]) == 0
    settings = json.loads((in_tmp / "runs/digits/config.json").read_text())["network"]
    assert settings == {"kind": "own", "name": "scaled", "settings": {"start": 0.25, "by_label": True}}
    assert main(["train", "--resume", "digits", "--steps", "5"]) == 0
    run = ditlab.load("runs/digits")
    assert isinstance(run.process.network, registered)
    assert run.process.network.factors.shape == (11, 1, 8, 8)
    assert not torch.equal(run.process.network.factors, torch.full((11, 1, 8, 8), 0.25))
    assert main(["sample", "digits", "--n", "3", "--guidance", "2", "--out", "x.npz"]) == 0
    assert np.load("x.npz")["samples"].shape == (3, 1, 8, 8)


def test_what_is_wrong_is_said_in_a_line(in_tmp, registered, capsys):
    for words, message in (
        ([], "--network own --network.name NAME"),
        (["--network.name", "scale"], "unknown network 'scale'; choose one of scaled, or register it first"),
        (["--network.name", "scaled", "--network.settings", "begin", "1"], "unexpected keyword argument 'begin'"),
        (["--network.name", "scaled", "--process", "meanflow"], "takes an interval"),
    ):
        assert main([*WORDS, *words]) == 2
        assert message in capsys.readouterr().err
    assert not (in_tmp / "runs").exists()


def test_a_network_that_is_not_registered_is_said_when_a_run_is_loaded(in_tmp, registered, monkeypatch, capsys):
    assert main([*WORDS, "--network.name", "scaled"]) == 0
    monkeypatch.setattr(NETWORKS, "parts", {})
    assert main(["sample", "digits"]) == 2
    assert "unknown network 'scaled'; register it first" in capsys.readouterr().err


def test_the_configuration_survives_a_file(registered):
    network = OwnConfig(name="scaled", settings={"start": 1, "by_label": True, "word": "a", "x": 0.5})
    config = Config(data={"kind": "digits"}, network=network)
    again = Config.model_validate_json(config.model_dump_json())
    assert again == config
    assert [type(value) for value in again.network.settings.values()] == [int, bool, str, float]
