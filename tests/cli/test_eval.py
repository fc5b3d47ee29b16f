"""``ditlab eval``: the same figures of the same seed, in any batch; what they were decided by; and what is kept."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import ditlab
from ditlab.cli.main import main
from ditlab.core.rng import generator_for
from ditlab.data.circles import circles
from ditlab.data.digits import digit_halves
from ditlab.data.images.dataset import Images
from ditlab.data.latents.dataset import Latents
from ditlab.evaluation.evaluate import evaluate, measure
from ditlab.evaluation.evaluator import Evaluator
from ditlab.evaluation.metrics.frechet import Moments, frechet
from ditlab.evaluation.reference import real_data
from tests.images import folder_of, noise, write
from tests.interop.peers import random_vae

SMALL = ["--steps", "2", "--batch-size", "8", "--network.dim", "16", "--network.depth", "1", "--network.heads", "2"]
SMALL += ["--sampling.steps", "2"]
RUNS = {
    "circles": ["circles", *SMALL],
    "digits": ["digits", *SMALL],
    "labelled": ["images", "--data.path", "photos", "--data.image-size", "8", *SMALL],
    "plain": ["images", "--data.path", "photos/a", "--data.image-size", "8", *SMALL],
    "latents": ["latents", "--data.path", "latents/photos", *SMALL, "--network.patch-size", "1"],
}
PUBLISHED = {"frechet", "kernel", "precision", "recall", "density", "coverage"}
DECIDED = {"n", "seed", "solver", "steps", "weights", "run_step", "features", "features_digest", "preprocessing"}
DECIDED |= {"reference", "reference_n", "device", "dtype", "threads", "ditlab", "torch"}


def call(capsys, *words):
    """Exit status, stdout, stderr."""
    try:
        status = main([str(w) for w in words])
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def measured(capsys, run, *words, n=100):
    status, out, err = call(capsys, "eval", run, "--n", n, *words, "--json")
    assert status == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each kind of data."""
    here = tmp_path_factory.mktemp("measured")
    folder_of(here / "photos", each=80)
    folder_of(here / "others", each=10)
    for file in (here / "others").rglob("*.png"):
        Image.fromarray(255 - noise(int(file.stem))).save(file)
    random_vae(here / "vae")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        encode = ["latents", "encode", "--data.path", "photos", "--data.image-size", "8", "--vae", "vae"]
        assert main(encode) == 0
        for name, words in RUNS.items():
            assert main(["train", *words, "--name", name]) == 0
    return here


@pytest.fixture
def here(runs, monkeypatch):
    monkeypatch.chdir(runs)
    return runs


@pytest.mark.parametrize("run", RUNS)
def test_one_seed_gives_one_answer_and_the_batch_none(here, capsys, run):
    first = measured(capsys, run, "--seed", 3)
    published = PUBLISHED - ({"frechet"} if run == "plain" else set())  # 64 features of 40 images to compare with
    assert published | {f"{name}_interval" for name in published} | DECIDED <= set(first)
    assert ("frechet" in first) == ("frechet" in published)
    assert measured(capsys, run, "--seed", 3) == first
    other = measured(capsys, run, "--seed", 3, "--batch-size", 13)
    assert set(other) == set(first)
    for name, value in first.items():
        if isinstance(value, float):
            assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-7), name
        elif not isinstance(value, list | dict):
            assert other[name] == value


def test_figures_are_kept_beside_what_decided_them(here, capsys):
    shutil.copytree("runs/digits", "runs/kept", dirs_exist_ok=True)
    Path("runs/kept/eval.json").unlink(missing_ok=True)
    first, second = measured(capsys, "kept"), measured(capsys, "kept", "--labels", "data")
    assert measured(capsys, "kept") == first
    kept = json.loads(Path("runs/kept/eval.json").read_text())["evaluations"]
    assert kept == [second, first]  # the same settings once, the newest last
    assert (first["labels"], second["labels"]) == ("balanced", "data")
    status, out, err = call(capsys, "eval", "kept", "--n", 100)
    assert status == 0
    assert "runs/kept/eval.png and runs/kept/eval-nearest.png" in err
    assert "frechet " in out
    assert "(real data: " in out
    assert Image.open("runs/kept/eval.png").size == (10 * 68 + 4, 6 * 68 + 4)
    assert Image.open("runs/kept/eval-nearest.png").size[0] == 6 * 68 + 4
    assert {"ditlab", "features_digest", "kernel_subsets"}.isdisjoint(line.split()[0] for line in out.splitlines())


def test_figures_are_those_of_the_samples(here):
    run = ditlab.load("digits")
    samples = run.sample(100, steps=2)
    figures = evaluate(run, 100, steps=2)
    half_b = digit_halves()[1].images
    expected = frechet(Moments.of(samples.flatten(1)), Moments.of(half_b.flatten(1)))
    assert figures["frechet"] == pytest.approx(expected, rel=1e-6)
    assert figures["frechet_features"] == "64 pixel values"
    few = evaluate(run, 20, steps=2, features="none")  # too few for a Fréchet distance, which is not asked for
    assert 0 <= few["copied"] <= 1
    none = evaluate(run, 100, steps=2, features="none")
    assert "frechet" not in none
    assert none["accuracy"] == figures["accuracy"]


@pytest.mark.parametrize("features", ["auto", "none"])
def test_samples_that_are_no_numbers_have_no_figures(here, capsys, monkeypatch, features):
    monkeypatch.setattr(
        "ditlab.diffusion.process.Process.sample", lambda _, n, shape, **__: torch.full((n, *shape), torch.nan)
    )
    status, out, err = call(capsys, "eval", "circles", "--n", 10, "--features", features, "--json")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "some samples are not finite numbers" in err


def test_what_was_trained_on_may_be_gone_where_other_data_are_named(here, capsys):
    words = ("labelled", "--data", "others", "--features", "pixels", "--n", 100, "--json")
    with_them = json.loads(call(capsys, "eval", *words)[1])
    Path("photos").rename("away")
    try:
        status, out, err = call(capsys, "eval", *words)
        refused = call(capsys, "eval", *words, "--labels", "data")
        alone = call(capsys, "eval", "labelled", "--n", 100)
    finally:
        Path("away").rename("photos")
    found = json.loads(out)
    assert (status, found["kernel"]) == (0, with_them["kernel"])
    assert "measured without them: no floors, no search for copies" in err
    assert {"copied", "memorisation_ratio", "kernel_floor"}.isdisjoint(found)
    assert {"copied", "memorisation_ratio", "kernel_floor"} <= set(with_them)
    assert (refused[0], "use balanced" in refused[2]) == (2, True)
    assert (alone[0], "the images are not at" in alone[2]) == (2, True)


def test_copies_beyond_what_is_kept_are_found(here, monkeypatch):
    """They are drawn again for the picture, and are what they were."""
    run = ditlab.load("labelled")
    whole = measure(run, 60, steps=2, features="pixels")
    monkeypatch.setattr("ditlab.evaluation.evaluator.MOST_VALUES", 10 * 3 * 8 * 8)
    part = measure(run, 60, steps=2, features="pixels", batch_size=10)
    assert max(copy.number for copy in part.copies) >= 10
    assert [copy.number for copy in part.copies] == [copy.number for copy in whole.copies]
    for a, b in zip(part.copies, whole.copies, strict=True):
        torch.testing.assert_close(a.sample, b.sample)
    assert (part.figures["memorisation_n"], part.figures["memorisation_training_n"]) == (60, 160)
    assert part.figures["memorisation_ratio"] == pytest.approx(whole.figures["memorisation_ratio"])


def test_labels_as_the_data_have_them(here, capsys):
    asked = measured(capsys, "digits", "--labels", "data", n=1000)["accuracy_by_label"]
    assert set(asked) == {str(k) for k in range(10)}
    assert call(capsys, "eval", "digits", "--labels", "sorted")[0] == 2


def test_a_classifier_is_trained_once_and_judges(here, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DITLAB_CACHE", str(tmp_path))
    _, out, err = call(capsys, "eval", "labelled", "--n", 80, "--json")
    first = json.loads(out)
    assert "training a small classifier on 160 images" in err
    assert first["features"] == "classifier"
    assert set(first["accuracy_by_label"]) == {"0", "1"}
    assert 0 <= first["accuracy_real"] <= 1
    _, out, err = call(capsys, "eval", "labelled", "--n", 80, "--json")
    assert (json.loads(out), err) == (first, "")
    (kept,) = (tmp_path / "classifiers").glob("*.safetensors")
    kept.write_bytes(b"damaged")
    assert measured(capsys, "labelled", n=80) == first  # trained again, to the same weights
    turned = measured(capsys, "plain", n=20)
    assert turned["frechet_features"] == "64 features of a classifier trained on which way up an image is"
    assert "accuracy" not in turned


def test_other_data_and_decoded_latents(here, capsys):
    own, other = (
        measured(capsys, "labelled", "--features", "pixels"),
        measured(capsys, "labelled", "--features", "pixels", "--data", "others"),
    )
    assert own["reference"].startswith("half of 160 images")
    assert other["reference"].startswith("20 images")
    assert (other["reference_n"], other["floor_n"]) == (20, 100)
    assert own["kernel"] != other["kernel"]
    assert own["sliced_wasserstein"] != other["sliced_wasserstein"]
    assert "frechet" not in own  # of 192 pixel values and 100 samples
    same = measured(capsys, "labelled", "--features", "pixels", "--data", "photos")
    assert (same["reference_n"], same["floor_n"]) == (160, 0)
    assert {"kernel_floor", "sliced_wasserstein_floor", "recall_real"}.isdisjoint(same)
    latents = measured(capsys, "latents")
    decoded = measured(capsys, "latents", "--vae", "vae", n=20)
    against = measured(capsys, "latents", "--vae", "vae", "--data", "photos", "--features", "pixels", n=20)
    assert latents["preprocessing"] == "none"
    assert decoded["preprocessing"].startswith("decoded, clamped to [-1, 1], rounded")
    assert against["reference"].startswith("160 images")
    assert (against["vae"], len(against["vae_digest"])) == ("vae", 12)


def test_a_run_of_others_is_compared_with_a_folder(here, capsys):
    """What was imported has no data here, and is measured against those that are named."""
    shutil.copytree("runs/labelled", "runs/external", dirs_exist_ok=True)
    config = json.loads(Path("runs/external/config.json").read_text())
    config["data"] = {"kind": "external", "shape": [3, 8, 8], "num_classes": 2}
    Path("runs/external/config.json").write_text(json.dumps(config))
    against = ("--data", "others", "--features", "pixels")
    found, own = measured(capsys, "external", *against), measured(capsys, "labelled", *against)
    assert found["kernel"] == own["kernel"]
    assert "kernel_floor" not in found
    for words, message in (((), "name a folder with --data"), ((*against, "--labels", "data"), "use balanced")):
        status, _, err = call(capsys, "eval", "external", *words)
        assert (status, message in err) == (2, True), err


def test_a_function_of_ones_own(here, capsys):
    body = "import torch\n\ndef moments(x):\n    x = x.flatten(1)\n    return torch.stack([x.mean(1), x.std(1)], 1)\n"
    body += "\ndef wrong(x):\n    return x.mean()\n\nnumber = 3\n"
    body += "\ndef broken(x):\n    raise KeyError(len(x))\n"
    write(here / "own_features.py", body.encode())
    write(here / "unfinished.py", b"def embed(x)\n")
    figures = measured(capsys, "circles", "--features", "own_features:moments")
    assert figures["features"] == "own_features:moments"
    x, y = (
        ditlab.load("circles").sample(100, steps=2),
        circles(2000, generator_for(0, "evaluation", "reference")).images,
    )
    samples, data = ([z.flatten(1).mean(1), z.flatten(1).std(1)] for z in (x, y))
    expected = frechet(Moments.of(torch.stack(samples, 1)), Moments.of(torch.stack(data, 1)))
    assert figures["frechet"] == pytest.approx(expected, rel=1e-5)
    for word, message in (
        ("own_features:wrong", "is to give (100, D) features of 100 samples"),
        ("own_features:number", "is a int"),
        ("own_features:nothing", "has no attribute 'nothing'"),
        ("own_features:broken", "own_features:broken failed: KeyError: 100"),
        ("unfinished:embed", "--features unfinished:embed: SyntaxError: expected ':' (unfinished.py, line 1)"),
        (":embed", "--features :embed: name a function as module:function"),
        (":", "--features :: name a function"),
        ("..x:f", "--features ..x:f: name a function"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("classifier", "circles are compared by disc or pixels"),
        ("unknown", "circles are compared by disc or pixels"),
    ):
        status, _, err = call(capsys, "eval", "circles", "--n", 100, "--features", word)
        assert (status, message in err, err.count("\n")) == (2, True, 1), err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["circles", "--data", "photos"], "circles are compared with circles"),
        (["labelled", "--data", "nowhere"], "there is no such folder"),
        (["labelled", "--vae", "vae"], "are no latents"),
        (["labelled", "--features", "inception"], "--features inception needs"),
        (["latents", "--features", "classifier"], "latents are compared by pixels"),
        (["latents", "--data", "photos"], "is not a store"),
        (["unreadable"], "holds no list of evaluations"),
    ],
)
def test_what_cannot_be_compared_is_said_before_drawing(here, capsys, monkeypatch, words, message):
    shutil.copytree("runs/circles", "runs/unreadable", dirs_exist_ok=True)
    Path("runs/unreadable/eval.json").write_text("{}")
    monkeypatch.setattr("ditlab.runs.run.Run.sample", lambda *_, **__: pytest.fail("drawn before it was refused"))
    status, _, err = call(capsys, "eval", *words)
    assert (status, message in err) == (2, True), err


def test_few_data_make_no_floor_and_say_so(here, capsys):
    status, out, err = call(capsys, "eval", "plain", "--n", 60, "--features", "pixels", "--json")
    assert (status, json.loads(out)["floor_n"]) == (0, 0)
    assert "no floors: 40 data are left to put in the place of 60 samples" in err
    assert "no Fréchet distance: 192 features need more than 40 samples and data" in err
    assert {"kernel_floor", "recall_real", "sliced_wasserstein_floor", "frechet"}.isdisjoint(json.loads(out))
    assert json.loads(call(capsys, "eval", "plain", "--n", 50, "--features", "pixels", "--json")[1])["floor_n"] == 40


@pytest.mark.parametrize(("classes", "judges"), [(("a", "b"), True), (("b", "a"), False)])
def test_a_judge_knows_the_classes_that_were_asked_for(here, classes, judges):
    """Of an imported run their number has to do; where names are known, other ones are others."""
    run, told = ditlab.load("labelled"), []
    own = Latents("nowhere", (3, 8, 8), classes)
    other = Images(str(here / "photos"), (8, 8), 3, ("a", "b"))
    labels = torch.arange(80) % 2
    evaluator = Evaluator(run.config, own, n=80, features="classifier", other=other, notice=told.append)
    evaluator.__dict__["real"] = real_data(other, 80, 0)
    found = evaluator.measure(lambda numbers: run.sample(len(numbers), labels[: len(numbers)], steps=2), labels)
    assert ("accuracy" in found.figures) == judges
    assert ("no accuracy: the classes of --data are not those that samples are drawn for" in told) != judges
