"""What runs are compared by, beside torch and the files: settings, loss, samples and figures."""

import json

import numpy as np
import pytest

import ditlab
from ditlab.config import Config
from ditlab.core.errors import InputError
from ditlab.data.images.dataset import Images
from ditlab.evaluation.evaluate import evaluate
from ditlab.evaluation.metrics.by_data import measure_circles
from ditlab.lab import Lens
from ditlab.lab.lens.answer import look_away
from ditlab.lab.lens.comparing import configuration, quality
from ditlab.lab.lens.recordings import losses
from ditlab.lab.server.api import create_app
from ditlab.lab.server.library import Library
from ditlab.lab.server.worker import Gone, Worker
from ditlab.recipes import RECIPES
from ditlab.runs.folder import RunFolder
from tests.images import folder_of
from tests.lab.conftest import train_into
from tests.lab.shell import ask, serving

N = 100


@pytest.fixture(scope="module")
def library(runs):
    return Library(runs)


@pytest.fixture(scope="module")
def names(library):
    return {entry["name"]: entry["id"] for entry in library.catalogue()["runs"]}


def leave_after(passes):
    """A ``look`` that has seen enough."""
    left = [passes]

    def look():
        left[0] -= 1
        if left[0] < 0:
            raise Gone("the client left")

    return look


def test_the_loss_is_that_of_the_metrics(runs):
    lines = [json.loads(line) for line in (runs / "circles" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    found = losses(RunFolder(runs / "circles"))
    assert found["loss_step"].tolist() == [line["step"] for line in lines] == [10, 20, 30, 40]
    np.testing.assert_allclose(found["loss"], [line["loss"] for line in lines], rtol=1e-6)
    np.testing.assert_allclose(found["loss_seconds"], [line["seconds"] for line in lines], rtol=1e-6)


def test_settings_go_by_the_names_of_their_options(runs):
    points, circles = (configuration(RunFolder(runs / name)) for name in ("points", "circles"))
    assert (points["data"], points["network"], circles["network"]) == ("points", "mlp", "dit")
    assert (circles["network.conditioning"], circles["network.depth"], circles["steps"]) == ("adaln-zero", 4, 40)
    assert "network.conditioning" not in points
    assert not [value for value in circles.values() if isinstance(value, dict)]


@pytest.mark.parametrize(("run", "label"), [("circles", None), ("digits", None), ("digits", 3), ("points", None)])
def test_samples_are_those_of_the_run_from_that_seed(runs, run, label):
    loaded = ditlab.load(runs / run)
    own = loaded.config.sampling
    guidance = own.guidance if loaded.num_classes is not None else None
    expected = loaded.sample(4, labels=label, steps=own.steps, solver=own.solver, guidance=guidance, seed=7)
    found = Lens(loaded).samples(seed=7, label=label, n=4)
    np.testing.assert_array_equal(found["samples"], expected)
    assert found.meta["drawn"].startswith(f"{own.solver}, {own.steps} steps")


def test_a_label_that_is_not_there_is_refused(runs):
    with pytest.raises(InputError, match="from 0 to 9"):
        Lens(runs / "digits").samples(label=10)
    with pytest.raises(InputError, match="without labels"):
        Lens(runs / "circles").samples(label=1)


def test_figures_are_those_of_ditlab_eval(runs, library, names):
    found = library.quality(names["circles"], 20, "raw", 20, 3, look_away)
    run = ditlab.load(runs / "circles", weights="raw", step=20)
    assert found == evaluate(run, 20, seed=3, features="none", **run.config.sampling.model_dump())
    drawn = run.sample(20, steps=25, solver="heun", seed=3)
    assert found["valid"] == measure_circles(drawn, 3)["valid"]
    assert found["energy_distance"] == pytest.approx(measure_circles(drawn, 3)["energy_distance"])
    assert found["run_step"] == 20


def test_figures_are_measured_once_and_the_network_is_not_kept(runs, names):
    library = Library(runs)
    first = library.quality(names["points"], None, "ema", N, 0, look_away)
    assert not library._lenses
    assert library.quality(names["points"], None, "ema", N, 0, leave_after(0)) == first
    with pytest.raises(Gone):
        library.quality(names["points"], None, "ema", N, 1, leave_after(0))


def test_who_leaves_ends_the_measuring_at_the_next_pass(runs):
    run = ditlab.load(runs / "circles")
    before = run.process.evaluations
    with pytest.raises(Gone):
        quality(run, n=N, look=leave_after(3))
    assert run.process.evaluations - before <= 4 * N
    assert run.sample(1).shape == (1, 1, 16, 16)  # nobody looks any more


def test_what_cannot_be_measured_says_why(runs):
    with pytest.raises(InputError, match="measure fewer samples"):
        quality(ditlab.load(runs / "circles"), n=10**9)
    with pytest.raises(InputError, match="ask for fewer samples"):
        Lens(runs / "circles").samples(n=10**9)


def test_images_that_are_not_prepared_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("DITLAB_CACHE", str(tmp_path / "cache"))
    folder = folder_of(tmp_path / "images", each=20)
    assert not Images(str(folder), (8, 8)).prepared
    assert not (tmp_path / "cache").exists()
    config = {"data": {"kind": "images", "path": str(folder), "image_size": (8, 8)}, "steps": 1, "batch_size": 4}
    config |= {"network": {"kind": "dit", "patch_size": 4, "dim": 16, "depth": 1, "heads": 1}, "precision": "fp32"}
    config |= {"sampling": {"steps": 2, "solver": "euler"}}
    run = ditlab.load(train_into(tmp_path / "run", Config(**(RECIPES["circles"]().model_dump() | config))))
    assert Images(str(folder), (8, 8)).prepared
    assert (
        quality(run, n=8)["sliced_wasserstein"]
        == evaluate(run, 8, features="none", steps=2, solver="euler")["sliced_wasserstein"]
    )
    monkeypatch.setenv("DITLAB_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(InputError, match="are not prepared here"):
        quality(run, n=8)
    assert not (tmp_path / "elsewhere").exists()
    assert not Images("owner/name", (8, 8)).prepared  # to look there would be to ask the Hub


def test_four_columns_stay_loaded_unless_they_are_large(runs, names, monkeypatch):
    library = Library(runs)
    lenses = [library.lens(names[run]) for run in names]
    assert [library.lens(names[run]) for run in names] == lenses
    monkeypatch.setattr("ditlab.lab.server.library.MOST_BYTES", 1)
    last = library.lens(names["circles"], 20)
    assert [*library._lenses.values()] == [lenses[-1], last]
    monkeypatch.setattr("ditlab.lab.server.library.MOST_BYTES", 1e9)
    monkeypatch.setattr("ditlab.lab.server.library.MOST_LOADED", 4)
    for run in names:
        library.lens(names[run])
    assert len(library._lenses) == 4


def test_the_api_answers_and_refuses_in_one_line(library, names):
    worker = Worker()
    with serving(create_app(library, worker)) as port:

        def get(run, path):
            answer = ask(port, f"/api/runs/{names[run]}{path}")
            return answer.status, answer.body.decode(errors="replace")

        assert json.loads(get("digits", "/config")[1])["data"] == "digits"
        assert get("circles", "/losses")[0] == 200
        assert get("points", "/samples?n=400&seed=2")[0] == 200
        assert json.loads(get("points", f"/quality?n={N}")[1])["n"] == N
        for run, path, status, word in (
            ("circles", "/losses?x=1", 400, "x"),
            ("circles", "/samples?n=17", 400, "at most 16"),
            ("circles", "/samples?label=1", 400, "without labels"),
            ("circles", "/quality?n=0", 400, "n:"),
            ("circles", "/quality?n=5001", 400, "n:"),
            ("circles", "/quality?step=30", 404, "20, 40"),
            ("circles", "/quality?t=0.5", 400, "t"),
        ):
            found = get(run, path)
            assert found[0] == status, (path, found)
            assert word in json.loads(found[1])["error"]
        assert ask(port, "/api/runs/000000000000/losses").status == 404
    worker.close()
