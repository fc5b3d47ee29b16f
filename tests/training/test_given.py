"""Data, networks and processes that are given as objects: they train, resume to the same bytes, load and draw."""

import pytest
import torch
from torch import nn

import ditlab
from ditlab.core.errors import InputError
from ditlab.core.registry import DATASETS
from ditlab.runs.folder import RunFolder
from ditlab.runs.sampling import conditioned
from tests.training.test_fit import Nobody, everything, tiny

AGES = torch.linspace(20, 65, 24)


def discs():
    """Images with a label and a number."""
    x = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    return ditlab.as_dataset(x, cond={"label": ["cat", "dog"] * 12, "age": AGES}, units={"age": "years"})


class Shift(nn.Module):
    """The least network: a learned value for each number of a sample."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.randn(3))

    def forward(self, x, t, cond=None):
        return x * t[:, None] + self.value


class Cut(Nobody):
    def progress(self, step, *_):
        if step == 4:
            raise SystemExit


def fit_twice(tmp_path, *given, **named):
    """Train whole, and with a cut in the middle; the run that was not cut."""
    whole = ditlab.fit(*given[:1], tmp_path / "whole", *given[1:], watcher=Nobody(), **named)
    with pytest.raises(SystemExit):
        ditlab.fit(*given[:1], tmp_path / "cut", *given[1:], watcher=Cut(), **named)
    ditlab.fit(*given[:1], tmp_path / "cut", *given[1:], watcher=Nobody(), resume=True, **named)
    (a, *_), (b, *_) = everything(tmp_path / "whole"), everything(tmp_path / "cut")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[file][key], b[file][key]) for file in a for key in a[file])
    return whole


def test_given_data_train_resume_load_and_draw_under_their_conditions(tmp_path):
    config = tiny("circles", compile=False)
    config = config.model_copy(update={"network": config.network.model_copy(update={"patch_size": 2})})
    run = fit_twice(tmp_path, config, discs())
    loaded = ditlab.load(tmp_path / "whole")  # without the data
    assert loaded.conditions == run.conditions == discs().conditions
    with torch.no_grad():
        for one in (run, loaded):
            one.process.network.final.linear.weight.add_(0.1)  # the zero of so few steps hides conditions
    cond = {"label": "dog", "age": [20, 65]}
    x = run.draw(2, cond, steps=2)
    assert torch.equal(x, loaded.draw(2, cond, steps=2))
    assert torch.equal(x, loaded.draw(2, {"label": [1, 1], "age": torch.tensor([20.0, 65.0])}, steps=2))
    assert not torch.equal(x[1:], loaded.draw(2, {"label": 1, "age": 20}, steps=2)[1:])
    assert torch.equal(loaded.draw(4, steps=2), loaded.sample(4, steps=2, guidance=run.config.sampling.guidance))
    figures = ditlab.evaluate(run, n=12)
    assert {"n", "seed", "solver", "steps", "sliced_wasserstein", "evaluations"} <= figures.keys()
    with pytest.raises(InputError, match="dataset="):
        ditlab.evaluate(loaded, n=12)
    with pytest.raises(InputError, match="dataset="):
        ditlab.fit(loaded.config, tmp_path / "whole", resume=True)
    again = ditlab.evaluate(ditlab.load(tmp_path / "whole", dataset=discs()), n=12)
    assert again.keys() == figures.keys()


def test_a_given_network_and_process_train_resume_and_load(tmp_path):
    data = ditlab.as_dataset(torch.randn(40, 3, generator=torch.Generator().manual_seed(1)))

    def process(network):
        return ditlab.FlowMatching(network, times="uniform")

    run = fit_twice(tmp_path, tiny("points"), data, Shift, process)
    with pytest.raises(InputError, match="network="):
        ditlab.load(tmp_path / "whole")
    with pytest.raises(InputError, match="process="):
        ditlab.load(tmp_path / "whole", network=Shift())
    loaded = ditlab.load(tmp_path / "whole", network=Shift(), process=process)
    assert torch.equal(run.draw(5), loaded.draw(5))
    with pytest.raises(InputError, match="function of the network"):
        ditlab.fit(tiny("points"), tmp_path / "r", data, process=process(Shift()))


def test_a_registered_data_set_is_built_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(DATASETS, "parts", {})
    made = []

    @ditlab.register("dataset", "mine")
    def mine(count=4):
        made.append(count)
        return ditlab.as_dataset(torch.randn(count, 2), cond={"label": torch.arange(count) % 2})

    from ditlab.config import OwnData

    config = tiny("points").model_copy(update={"data": OwnData(name="mine", settings={"count": 8})})
    run = ditlab.fit(config, tmp_path / "r", watcher=Nobody())
    assert (made, run.num_classes) == ([8], 2)
    recorded = RunFolder(tmp_path / "r").read_config().data
    assert (recorded.name, recorded.settings, recorded.shape, recorded.classes) == (
        "mine",
        {"count": 8},
        (2,),
        ("0", "1"),
    )
    assert torch.equal(ditlab.load(tmp_path / "r").draw(3), run.draw(3))


CONDITIONS = {"label": ditlab.Label(["cat", "dog"]), "age": ditlab.Scalar("years", 40, 10), "text": ditlab.Text(4)}


def test_conditions_as_the_network_sees_them():
    assert conditioned(CONDITIONS, 3, first=1)["label"].tolist() == [1, 0, 1]
    told = conditioned(
        CONDITIONS, 2, {"label": ["dog", "0"], "age": 60, "text": torch.ones(5, 4), "text_mask": [True] * 5}
    )
    assert told["label"].tolist() == [1, 0]
    assert told["age"].tolist() == [2, 2]
    assert (told["text"].shape, told["text_mask"].shape) == ((2, 5, 4), (2, 5))


@pytest.mark.parametrize(
    ("cond", "said"),
    [
        ({"colour": 1}, "without colour"),
        ({"label": 2}, "from 0 to 1"),
        ({"label": 0.5}, "whole numbers"),
        ({"label": "cow"}, "0 cat, 1 dog"),
        ({"age": "old"}, "takes numbers"),
        ({"age": [1.0, 2.0, 3.0]}, "each of the 2"),
        ({"text": torch.ones(2, 5, 3)}, r"\(L, 4\)"),
    ],
)
def test_conditions_that_do_not_fit(cond, said):
    with pytest.raises(InputError, match=said):
        conditioned(CONDITIONS, 2, cond)
