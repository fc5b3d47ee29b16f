"""Classes by name and scalars in their unit, from the page's questions to the network."""

import dataclasses

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import ditlab
from ditlab.config import Config, DiTConfig, OwnData, SamplingConfig
from ditlab.core.errors import InputError
from ditlab.data.conditions import Label, Scalar
from ditlab.data.dataset import Batch, External
from ditlab.lab import Lens
from ditlab.lab.lens.describe import describe
from ditlab.lab.server.api import Drawn, Walk, Where
from ditlab.runs.folder import RunFolder
from ditlab.runs.run import Run


@pytest.fixture(scope="module")
def lens(tmp_path_factory):
    """A network with random weights, told the kind and the age of a pet."""
    torch.manual_seed(0)
    small = {"patch_size": 4, "dim": 16, "depth": 2, "heads": 2}
    network = ditlab.DiT(image_size=8, num_classes=2, scalars=("age",), **small)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.3)
    data = OwnData(shape=(1, 8, 8), classes=("cats", "dogs"), scalars={"age": {"unit": "years", "mean": 9, "std": 4}})
    config = Config(data=data, network=DiTConfig(**small), sampling=SamplingConfig(steps=3, solver="euler"))
    process = ditlab.FlowMatching(network).eval().requires_grad_(False)
    conditions = {"label": Label(data.classes), "age": Scalar("years", 9.0, 4.0)}
    return Lens(Run(RunFolder(tmp_path_factory.mktemp("pets")), config, process, 0, External((1, 8, 8), conditions)))


def test_a_description_has_the_names_and_the_units(lens):
    found = describe(lens)
    assert (found["num_classes"], found["classes"]) == (2, ["cats", "dogs"])
    assert found["scalars"] == [{"name": "age", "unit": "years", "mean": 9.0, "std": 4.0}]
    assert describe(Lens(lens.run))["draws"] == 2


@pytest.mark.parametrize("told", [{"age": 13.0}, {"age": 5.0}, {}])
def test_samples_are_those_of_the_run(lens, told):
    np.testing.assert_array_equal(lens.samples(n=3, cond=told)["samples"], lens.run.draw(3, told))
    dogs = lens.samples(n=3, cond=told, label=1)["samples"]
    np.testing.assert_array_equal(dogs, lens.run.draw(3, {"label": "dogs", **told}))


def test_a_scalar_reaches_the_network_standardised(lens):
    steps = {"steps": 2, "solver": "euler", "seed": 1}
    walk = lens.trajectory(**steps, cond={"age": 13.0})["x"][-1]
    told = {"label": torch.tensor([1]), "age": torch.tensor([1.0])}  # one standard deviation above the mean
    expected = lens.process.sample(1, (1, 8, 8), cond=told, **steps)
    np.testing.assert_allclose(walk, expected, atol=1e-6)
    for ask in (lens.input, lens.attention):
        one, other = (ask(input="sample:1", cond=cond) for cond in ({"age": 13.0}, None))
        assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_an_example_has_its_own_scalars_unless_others_are_asked_for(lens):
    class Pets:
        shape, conditions = lens.run.shape, lens.run.conditions

        def batch(self, seed, position, size):
            age = torch.arange(position, position + size) / 10
            return Batch(torch.zeros(size, 1, 8, 8), {"label": torch.ones(size).long(), "age": age})

    scenes = Lens(dataclasses.replace(lens.run, dataset=Pets())).scenes
    assert scenes.has_examples
    own = scenes.scene("data:2").cond
    assert (own["label"].item(), own["age"].item()) == (1, pytest.approx(0.2))
    assert scenes.scene("data:2", cond={"age": 5.0}).cond["age"].item() == -1
    assert not lens.scenes.has_examples


@pytest.mark.parametrize("cond", [{"height": 1.0}, {"label": 1.0}])
def test_a_scalar_that_is_not_there_is_refused(lens, cond):
    with pytest.raises(InputError, match="age"):
        lens.samples(n=1, cond=cond)


@pytest.mark.parametrize("query", [Where, Walk, Drawn])
@pytest.mark.parametrize("cond", ["{", "[1]", '{"age":NaN}', '{"age":1e999}', '{"age":"old"}', '{"age":null}', "1"])
def test_a_query_takes_numbers_by_name_alone(query, cond):
    with pytest.raises(ValidationError):
        query.model_validate({"cond": cond})
    assert query.model_validate({"cond": '{"age":30}'}).arguments["cond"] == {"age": 30}
