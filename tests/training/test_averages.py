"""Power-function averages against their definition, and averages of other lengths against those tracked directly."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.integrate import quad
from scipy.linalg import null_space

import ditlab
from ditlab import disk
from ditlab.averaging import make_averages
from ditlab.build import build_dataset
from ditlab.errors import ConfigError, InputError, TrainingError
from ditlab.fit import fit
from ditlab.run import RunFolder
from ditlab.training.averages import PowerAverages, exponent, relative_width
from ditlab.training.loop import TrainState, train
from ditlab.training.posthoc import ROUNDING, combine, inner_products, read_snapshot, write_snapshot
from tests.diffusion.test_process import shaken
from tests.reliability.faults import At, tree
from tests.training.test_fit import Nobody, tiny

WIDTHS = (0.05, 0.1)


def profile(width, step):
    """How much the weights after each of the steps 1 … ``step`` count in the average after the last."""
    edges = (np.arange(step + 1) / step) ** (exponent(width) + 1)
    return np.diff(edges)


# ---- the mathematics


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_relative_width_is_the_standard_deviation_of_the_profile(width):
    """By quadrature."""
    power = exponent(width)
    assert power > 0
    assert relative_width(power) == pytest.approx(width, rel=1e-9)
    moments = [quad(lambda u, n=n: (power + 1) * u ** (power + n), 0, 1, epsabs=1e-12)[0] for n in range(3)]
    assert moments[0] == pytest.approx(1)
    assert np.sqrt(moments[2] - moments[1] ** 2) == pytest.approx(width, rel=1e-5)


def test_the_update_gives_the_power_function():
    """After any number of steps: each weight counts as the integral of the profile over its step."""
    network = ditlab.MLPDenoiser()
    averages, path = PowerAverages(network, (0.05, 0.28)), []
    for step in range(1, 41):
        torch.manual_seed(step)
        path.append(shaken(network).out.bias.detach().double().clone())
        averages.update(step)
        for width in (0.05, 0.28):
            expected = torch.from_numpy(profile(width, step)) @ torch.stack(path)
            own = averages.state_dict()[f"{width}/out.bias"]
            assert own.dtype == torch.float32
            torch.testing.assert_close(own.double(), expected, rtol=1e-5, atol=1e-6)


@given(ends=st.tuples(*[st.floats(0.001, 1)] * 2), powers=st.tuples(*[st.floats(1, 100)] * 2))
@settings(max_examples=50, deadline=None)
def test_inner_products_by_quadrature(ends, powers):
    a, b = (tuple(np.array([value]) for value in pair) for pair in zip(ends, powers, strict=True))
    expected = quad(
        lambda u: min(u / ends[0], 1) ** powers[0] * min(u / ends[1], 1) ** powers[1],
        *(0, 1),
        points=sorted({*ends, *(end * 2 ** (-1 / power) for end, power in zip(ends, powers, strict=True))}),
        limit=200,
    )[0]
    assert inner_products(a, b)[0, 0] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def residual(made, width, step, steps):
    """By how much the integrated profiles differ after each step; the path is constant over a step."""
    mixed = np.zeros(step)
    for own, coefficients in zip(steps, made.coefficients, strict=True):
        for tracked, c in zip(WIDTHS, coefficients, strict=True):
            mixed[:own] += c * profile(tracked, own)
    return np.cumsum(mixed - profile(width, step))


@pytest.mark.parametrize("width", [0.02, 0.05, 0.08, 0.15, 0.25, 0.28])
@pytest.mark.parametrize("every", [60, 125, 500])
def test_the_error_is_bounded_by_how_far_the_weights_move(width, every):
    """|combination − average| ≤ (Σ ΔP²)^½ (Σ |θ(i+1) − θ(i)|²)^½ on any path, and ΔP is what is called the error."""
    step, steps = 2000, list(range(every, 2001, every))
    made = combine(width, step, steps, WIDTHS)
    assert made.coefficients.shape == (len(steps), 2)
    assert made.coefficients.sum() == pytest.approx(1, abs=1e-9)
    delta = residual(made, width, step, steps)
    assert abs(delta[-1]) < 1e-9
    noise = ROUNDING * np.linalg.norm(made.coefficients)
    assert np.hypot(np.sqrt((delta**2).mean()), noise) == pytest.approx(made.expected_error, rel=0.05, abs=1e-6)
    draw = np.random.default_rng(0)
    t = np.arange(1, step + 1) / step
    for path in (draw.standard_normal(step).cumsum(), np.sin(5 * t), np.log(t), draw.standard_normal(step), t > 0.3):
        error = np.diff(delta, prepend=0) @ path
        assert abs(error) <= np.linalg.norm(delta) * np.linalg.norm(np.diff(path)) + 1e-9
        shifted = np.diff(delta, prepend=0) @ (path + 1000.0)  # where the weights are does not matter
        assert shifted == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize("width", [0.03, 0.07, 0.2])
def test_no_other_combination_of_the_same_sum_is_nearer(width):
    """Against least squares on a fine grid, without the closed forms."""
    steps, step = [30, 55, 80, 100], 100
    grid = (np.arange(200_000) + 0.5) / 200_000

    def integrated(power, end):
        return np.minimum(grid / end, 1) ** power

    columns = [integrated(exponent(w) + 1, own / step) for own in steps for w in WIDTHS]
    design = np.stack(columns, 1) / np.sqrt(len(grid))
    wanted = integrated(exponent(width) + 1, 1) / np.sqrt(len(grid))
    design = np.concatenate([design, ROUNDING * np.eye(len(columns))])
    wanted = np.concatenate([wanted, np.zeros(len(columns))])
    free = null_space(np.ones((1, len(columns))))
    even = np.full(len(columns), 1 / len(columns))
    expected = even + free @ np.linalg.lstsq(design @ free, wanted - design @ even)[0]
    made = combine(width, step, steps, WIDTHS)
    np.testing.assert_allclose(made.coefficients.ravel(), expected, atol=1e-3 * np.abs(expected).max())
    assert made.expected_error == pytest.approx(np.linalg.norm(design @ expected - wanted), rel=1e-3)


@pytest.mark.parametrize("count", [1, 7, 32, 400])
def test_a_tracked_width_comes_back(count):
    """Whatever else could be mixed in, to the rounding of one snapshot."""
    steps = [10 * (i + 1) for i in range(count)]
    for i, width in enumerate(WIDTHS):
        made = combine(width, steps[-1], steps, WIDTHS)
        assert made.expected_error <= ROUNDING * 1.001
        if count <= 7:
            assert made.coefficients[-1, i] == pytest.approx(1, abs=1e-2)


def test_more_snapshots_are_never_worse():
    steps = list(range(25, 801, 25))
    for width in (0.02, 0.15, 0.28):
        errors = [combine(width, 800, steps[::-n][::-1], WIDTHS).expected_error for n in (16, 8, 4, 2, 1)]
        assert errors == sorted(errors, reverse=True)


# ---- real training


def test_averages_made_afterwards_are_those_tracked_directly(tmp_path):
    """On a real run: 1e-3 of all weights, and of the largest for any one of them."""
    config = tiny("points", steps=256, log_every=256, preview_every=256, checkpoint_every=256, lr=3e-3)
    folder = RunFolder(tmp_path / "r")
    fit(folder, config, Nobody())
    assert folder.snapshot_steps == list(range(8, 257, 8))
    data = build_dataset(config)
    state = TrainState(config, data)
    wanted = (0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25)
    tracked = PowerAverages(state.network, wanted)
    for step in train(state, data):
        tracked.update(step.step)
    own = tracked.state_dict()
    for made in make_averages(folder.path, wanted):
        assert (made.step, made.snapshots, made.raw) == (256, 32, True)
        assert made.expected_error < 1e-3
        found = ditlab.load(made.folder.path).process.network.state_dict()
        names = [name for name in own if name.startswith(f"{made.sigma_rel}/")]
        assert len(names) == len(found)
        a, b = (
            torch.cat([tensors[key].flatten() for key in keys])
            for tensors, keys in ((found, [n.split("/")[1] for n in names]), (own, names))
        )
        assert (a - b).norm() <= 1e-3 * b.norm()
        assert (a - b).abs().max() <= 1e-3 * b.abs().max()
        if made.sigma_rel >= 0.15:  # the last weights would not have passed for the average
            assert (torch.cat([p.flatten() for p in state.network.parameters()]) - b).norm() > 1e-3 * b.norm()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "digits")
    config = tiny("digits", steps=12, checkpoint_every=6, averages=(0.05, 0.1, 0.2), keep_last=2)
    fit(folder, config.model_copy(update={"average_every": 2}), Nobody())
    return folder.path


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "digits")
    return tmp_path / "digits"


def test_a_tracked_average_is_loaded_by_its_width(run):
    stored = load_file(run / "checkpoints/step-00000012/averages.safetensors")
    for width in (0.05, 0.2):
        own = ditlab.load(run, weights=width).process.network.state_dict()
        assert all(torch.equal(stored[f"{width}/{name}"], tensor) for name, tensor in own.items())
    early = ditlab.load(run, weights=0.05, step=6).process.network.state_dict()
    assert not torch.equal(early["final.linear.weight"], stored["0.05/final.linear.weight"])
    with pytest.raises(InputError, match=r"tracked in .* are 0.05 and 0.1 and 0.2: ditlab ema .* --sigma-rel 0.15"):
        ditlab.load(run, weights=0.15)


def test_snapshots_are_the_averages_rounded(run):
    found, stored = read_snapshot(run / "averages/step-00000012.safetensors"), ditlab.load(run, weights=0.1)
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    assert {name.split("/")[0] for name in found} == {"0.05", "0.1", "0.2"}
    for name, tensor in stored.process.network.state_dict().items():
        assert torch.equal(found[f"0.1/{name}"], tensor.half())


def test_a_made_run_is_opened_like_any_other(run):
    (made,) = make_averages(run, [0.15], step=10)
    assert made.folder.path == run.parent / "digits-ema-0.15-step-00000010"
    assert not made.raw
    loaded, last = ditlab.load(made.folder.path), ditlab.load(made.folder.path, weights="raw")
    assert loaded.step == 10
    assert loaded.sample(2, steps=1).isfinite().all()
    names = loaded.process.network.state_dict()
    assert all(torch.equal(tensor, names[name]) for name, tensor in last.process.network.state_dict().items())
    (made,) = make_averages(run, [0.15], out=run.parent / "own")
    raw, own = (ditlab.load(path, weights="raw").process.network.state_dict() for path in (run, made.folder.path))
    assert made.raw
    assert all(torch.equal(raw[name], own[name]) for name in raw)
    assert not torch.equal(
        ditlab.load(made.folder.path).process.network.state_dict()["final.linear.bias"], raw["final.linear.bias"]
    )
    assert ditlab.load(made.folder.path).config.averages == ()


def test_a_made_run_is_not_trained_on(run):
    (made,) = make_averages(run, [0.15])
    config = made.folder.read_config().model_copy(update={"steps": 20})
    before = tree(made.folder.path)
    with pytest.raises(InputError, match=r"made of .*digits after its training: go on with that"):
        fit(made.folder, config, Nobody(), resume=True)
    after = tree(made.folder.path)
    assert {name: after[name] for name in before} == before


# ---- faults


def flip(file):
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


HARMS = {
    "flipped": flip,
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "empty": lambda file: file.write_bytes(b""),
    "another file": lambda file: save_file({"0.05/a": torch.zeros(3)}, file),
    "another name": lambda file: write_snapshot(file, {"0.05/a": torch.zeros(3)}),
    "a name less": lambda file: write_snapshot(file, dict(list(read_snapshot(file).items())[1:])),
    "another width": lambda file: write_snapshot(
        file, {name.replace("0.2/", "0.3/"): tensor for name, tensor in read_snapshot(file).items()}
    ),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("step", [2, 8, 12])
def test_a_damaged_snapshot_is_named_and_can_be_left_out(run, step, harm):
    file = run / f"averages/step-{step:08d}.safetensors"
    HARMS[harm](file)
    before = tree(run.parent)
    with pytest.raises(InputError, match=r"averages/step-\d+\.safetensors .*remove it") as told:
        make_averages(run, [0.15], step=12)
    assert "\n" not in str(told.value)
    assert tree(run.parent) == before
    file.unlink()
    (made,) = make_averages(run, [0.15], step=10 if step == 12 else 12)
    assert made.snapshots == 5
    assert ditlab.load(made.folder.path).step == made.step


def test_shapes_of_another_network_are_refused(run):
    for file in (run / "averages").iterdir():
        tensors = read_snapshot(file)
        write_snapshot(file, {name: tensor[:1] if tensor.ndim else tensor for name, tensor in tensors.items()})
    before = tree(run.parent)
    with pytest.raises(InputError, match="does not fit the configuration: "):
        make_averages(run, [0.15])
    assert tree(run.parent) == before


def test_nothing_is_left_of_what_was_not_made(run, monkeypatch):
    """A disk that is full at each write of the new run in turn."""
    before = tree(run.parent)

    def full(operation, path):
        raise OSError(28, "No space left on device", str(path))

    for n in range(20):
        fault = At(n, full, only=["write"])
        monkeypatch.setattr(disk, "before", fault)
        if fault.count <= n and n == 7:
            break
        with pytest.raises(OSError, match="No space left"):
            make_averages(run, [0.15])
        assert tree(run.parent) == before
        assert [path.name for path in run.parent.iterdir()] == ["digits"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sigma_rel": [0.15], "step": 7}, "no snapshot of step 7; of those that it has 4, 6, 8 are nearest"),
        ({"sigma_rel": [0.15, 0.2], "out": "x"}, "one folder, and 2 widths"),
        ({"sigma_rel": []}, "names no width"),
        ({"sigma_rel": [0.15, 0.15]}, "twice"),
        ({"sigma_rel": [0.28], "step": 2}, "1 snapshot of .* smaller --average-every"),
    ],
)
def test_what_cannot_be_made_is_said(run, arguments, words):
    before = tree(run.parent)
    with pytest.raises(InputError, match=words):
        make_averages(run, **arguments)
    assert tree(run.parent) == before


def test_a_run_without_snapshots_says_so(run, tmp_path):
    shutil.rmtree(run / "averages")
    with pytest.raises(InputError, match=r"no snapshots of averages .*--averages 0.05 0.1"):
        make_averages(run, [0.15])
    folder = RunFolder(tmp_path / "off")
    fit(folder, tiny("points", averages=()), Nobody())
    assert not folder.averages.exists()
    assert not list(folder.checkpoints.rglob("averages*"))
    with pytest.raises(InputError, match=r"no snapshots of averages"):
        make_averages(folder.path, [0.15])
    with pytest.raises(InputError, match=r"no averages were tracked in .*'ema' or 'raw'"):
        ditlab.load(folder.path, weights=0.05)


# ---- runs that go on


def test_a_run_of_before_goes_on_without(tmp_path):
    """Its configuration says nothing of averages, and its checkpoints have none: as it was, and said once."""
    folder = RunFolder(tmp_path / "r")
    fit(folder, tiny(averages=()), Nobody())
    told = json.loads(folder.config_file.read_text())
    del told["averages"], told["average_every"]
    folder.config_file.write_text(json.dumps(told))
    heard = []

    class Hears(Nobody):
        def notice(self, message):
            heard.append(message)

    for steps in (7, 8):
        config = folder.read_config().model_copy(update={"steps": steps})
        assert config.averages == ()
        fit(folder, config, Hears(), resume=True)
    assert len(heard) == 1
    assert "goes on without" in heard[0]
    assert folder.step == 8
    with pytest.raises(InputError, match=r"has no averages, which config\.json asks for"):
        fit(folder, tiny(steps=9), Nobody(), resume=True)


def test_snapshots_beyond_the_checkpoint_are_cut_and_made_again(run):
    """Killed after the snapshots of steps 8 and 10, and in the middle of one: they end with the same bytes."""
    whole = tree(run / "averages")
    shutil.rmtree(run / "checkpoints/step-00000012")
    (run / "checkpoints/LATEST").write_text("step-00000006\n")
    (run / "averages/step-00000012.safetensors").unlink()
    flip(run / "averages/step-00000008.safetensors")
    (run / "averages/.step-00000012.safetensors.7.tmp.safetensors").write_bytes(b"half")
    folder = RunFolder(run)
    fit(folder, folder.read_config(), Nobody(), resume=True)
    assert tree(run / "averages") == whole


def test_other_widths_than_were_tracked_are_refused_on_resume(run):
    folder = RunFolder(run)
    config = folder.read_config().model_copy(update={"averages": (0.05, 0.15, 0.2), "steps": 14})
    before = tree(run / "checkpoints")
    with pytest.raises(InputError, match=r"averages.safetensors does not fit .*missing 0.15/"):
        fit(folder, config, Nobody(), resume=True)
    assert tree(run / "checkpoints") == before


def test_what_fp16_cannot_hold_is_not_written():
    network = ditlab.MLPDenoiser()
    averages = PowerAverages(network, (0.05,))
    with torch.no_grad():
        network.out.bias[0] = 1e6
    averages.update(1)
    with pytest.raises(TrainingError, match=r"0.05/out.bias \(averages\) stopped being finite"):
        averages.snapshot()


@pytest.mark.parametrize("widths", [(0.0,), (0.3,), (float("nan"),), (0.1, 0.1), (-0.1,), ("x",)])
def test_widths_that_cannot_be_tracked_are_refused_by_name(widths):
    with pytest.raises(ConfigError, match="averages"):
        tiny(averages=widths)


def test_how_often_snapshots_are_taken():
    for steps, every in ((1, 1), (31, 1), (32, 1), (33, 2), (4000, 125), (7_000_000, 218_750)):
        assert tiny(steps=steps).snapshot_every == every
    assert tiny(average_every=5).snapshot_every == 5
