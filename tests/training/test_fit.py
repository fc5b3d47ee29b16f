"""A run folder: what is in it, that a resumed run ends as an uninterrupted one, and that damage is found."""

import inspect
import json
import math
import subprocess
import sys
import textwrap
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file

import ditlab
from ditlab.config import Config, SamplingConfig
from ditlab.core.errors import CheckpointWarning, TrainingError
from ditlab.core.rng import generator_for
from ditlab.recipes import RECIPES
from ditlab.runs.build import build_dataset
from ditlab.runs.folder import RunFolder
from ditlab.train import fit
from ditlab.training.ema import EMA
from ditlab.training.loop import TrainState, train
from ditlab.training.optim import Optimizers, block_matrices, learning_rate_factor
from ditlab.training.recorder import preview
from tests.diffusion.test_process import shaken

SELF_MADE = [name for name, make in RECIPES.items() if not inspect.signature(make).parameters]  # need no files


class Nobody:
    """Watches and says nothing."""

    def notice(self, message):
        pass

    def begin(self, done, steps):
        pass

    def progress(self, step, loss, images_per_s, seconds_left):
        pass


def tiny(recipe="circles", **changes):
    """A recipe made small."""
    config = RECIPES[recipe]()
    network = (
        {} if recipe == "points" else {"network": config.network.model_copy(update={"dim": 16, "depth": 2, "heads": 2})}
    )
    small = {"steps": 6, "batch_size": 8, "warmup_steps": 2, "precision": "fp32", "log_every": 2, "record_every": 2}
    small |= {"preview_every": 3, "checkpoint_every": 3}
    sampling = config.sampling.model_copy(update={"steps": 2})
    return Config(**{**dict(config), **network, "sampling": sampling, **small, **changes})


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("recipe", SELF_MADE)
def test_what_a_run_leaves_behind(tmp_path, recipe):
    fit(tiny(recipe), RunFolder(tmp_path / "r"), watcher=Nobody())
    checkpoint = [f"{name}.safetensors" for name in ("averages", "ema", "model", "optimizer")]
    checkpoint += ["manifest.json", "state.json"]
    expected = [".lock", "checkpoints/LATEST", "config.json", "metrics.jsonl"]
    expected += [f"checkpoints/step-0000000{s}/{name}" for s in (3, 6) for name in checkpoint]
    expected += [f"samples/step-0000000{s}.png" for s in (0, 3, 6)]
    expected += [f"averages/step-0000000{s}.safetensors" for s in range(1, 7)]
    if recipe != "points":
        expected += [f"probes/step-0000000{s}.safetensors" for s in (0, 2, 4, 6)]
    assert files(tmp_path / "r") == sorted(expected)
    assert (tmp_path / "r/checkpoints/LATEST").read_text().strip() == "step-00000006"
    lines = [json.loads(line) for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4, 6]
    for line in lines[1:]:
        assert {"loss", "lr", "grad_norm", "images_per_s", "seconds"} <= set(line)
        assert all(math.isfinite(line[k]) for k in ("loss", "lr", "grad_norm", "images_per_s", "seconds"))
    if recipe != "points":
        assert lines[0]["gates"] == {"attn": [0.0, 0.0], "mlp": [0.0, 0.0]}
        assert lines[0]["effective_depth"] == 0
        assert all(g > 0 for g in lines[-1]["gates"]["attn"] + lines[-1]["gates"]["mlp"])
        recorded = load_file(tmp_path / "r/probes/step-00000006.safetensors")
        times = len(recorded["t"])
        assert {k: tuple(v.shape) for k, v in recorded.items()} == {
            "t": (times,),
            "effective_depth": (times,),
            "gate": (times, 2, 2),
            "contribution": (times, 2, 2),
        }
        assert recorded["gate"].mean(0)[:, 0].tolist() == pytest.approx(lines[-1]["gates"]["attn"])


def everything(folder):
    """All tensors and all figures that are no times."""
    tensors = {f: load_file(folder / f) for f in files(folder) if f.endswith(".safetensors")}
    pictures = {f: (folder / f).read_bytes() for f in files(folder) if f.endswith(".png")}
    clock = {"images_per_s", "seconds"}
    metrics = [
        {k: v for k, v in json.loads(line).items() if k not in clock}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    return tensors, pictures, metrics


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("recipe", ["circles", "digits"])
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, recipe, optimizer):
    from ditlab.config import KINDS

    config = tiny(recipe, optimizer=KINDS["optimizer"][optimizer]())
    fit(config, RunFolder(tmp_path / "whole"), watcher=Nobody())
    cut = RunFolder(tmp_path / "cut")

    class PullsThePlug(Nobody):
        def progress(self, step, loss, images_per_s, seconds_left):
            if step == 4:
                raise SystemExit

    with pytest.raises(SystemExit):
        fit(config, cut, watcher=PullsThePlug())
    assert cut.step == 3
    assert cut.read_metrics()[-1]["step"] == 4  # beyond the checkpoint: to be cut
    with cut.metrics_file.open("a") as stream:
        stream.write('{"step": 5, "lo')  # as a crash leaves it
    fit(config, cut, watcher=Nobody(), resume=True)
    (a, b, c), (d, e, f) = everything(tmp_path / "whole"), everything(tmp_path / "cut")
    assert a.keys() == d.keys()
    for name in a:
        assert all(torch.equal(a[name][key], d[name][key]) for key in a[name]), name
    assert b == e
    # the mean loss of a line that spans the cut starts at the cut
    spanning = [line["step"] for line in c if line not in f]
    assert spanning in ([], [4])


def test_training_can_go_further(tmp_path):
    folder = RunFolder(tmp_path / "r")
    fit(tiny(), folder, watcher=Nobody())
    fit(tiny(steps=9), folder, watcher=Nobody(), resume=True)
    assert folder.step == 9
    assert folder.read_config().steps == 9
    with pytest.raises(ditlab.InputError, match="behind it"):
        fit(tiny(steps=2), folder, watcher=Nobody(), resume=True)


def test_the_training_draws_do_not_depend_on_global_state():
    losses = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        config = tiny()
        from ditlab.runs.build import build_dataset

        data = build_dataset(config)
        state = TrainState(config, data)
        torch.rand(noise + 1)
        losses.append([float(step.loss) for step in train(state, data)])
    assert losses[0] == losses[1]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    folder = RunFolder(tmp_path / "r")
    with pytest.raises(TrainingError, match=r"try --lr 100"):
        fit(tiny(lr=1000.0, steps=400, grad_clip=1e9, log_every=100, record_every=100), folder, watcher=Nobody())
    for line in folder.read_metrics():
        assert math.isfinite(line.get("loss", 0))
    for file in set(folder.path.rglob("*.safetensors")) - set(folder.failures.iterdir()):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values()), file


@pytest.fixture
def run(tmp_path):
    fit(tiny("digits"), RunFolder(tmp_path / "r"), watcher=Nobody())
    return tmp_path / "r"


def test_a_recording_of_weights_that_ran_away_is_left_out_of_the_metrics(tmp_path):
    wild = {"lr": 1e3, "grad_clip": 1e9, "warmup_steps": 0, "bad_steps": 1, "averages": ()}
    few = {"steps": 12, "batch_size": 2, "record_every": 1, "log_every": 1, "preview_every": 12}
    config = Config.model_validate(dict(RECIPES["circles"]()) | wild | few)
    with pytest.raises(TrainingError, match="could not be learned from"):
        fit(config, RunFolder(tmp_path / "run"), watcher=Nobody())
    assert "gates" in RunFolder(tmp_path / "run").read_metrics()[0]


def test_load_and_sample(run):
    averaged, raw, early = ditlab.load(run), ditlab.load(run, weights="raw"), ditlab.load(run, step=3)
    assert (averaged.step, early.step) == (6, 3)
    assert not averaged.process.training
    samples = averaged.sample(12, steps=2)
    assert samples.shape == (12, 1, 8, 8)
    assert samples.abs().max() <= 1
    assert torch.equal(samples, averaged.sample(12, labels=[i % 10 for i in range(12)], steps=2))
    torch.testing.assert_close(samples, averaged.sample(12, steps=2, batch_size=5), atol=1e-4, rtol=0)
    assert not torch.equal(samples, averaged.sample(12, labels=3, steps=2))
    assert not torch.equal(samples, raw.sample(12, steps=2))
    assert not torch.equal(samples, early.sample(12, steps=2))


def test_points_are_not_clamped(tmp_path):
    fit(tiny("points"), RunFolder(tmp_path / "p"), watcher=Nobody())
    assert ditlab.load(tmp_path / "p").sample(500, steps=2).abs().max() > 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: ditlab.load(run / "nowhere"), "no run at"),
        (lambda run: ditlab.load(run, step=5), r"there are \[3, 6\]"),
        (lambda run: ditlab.load(run, weights="best"), "'ema' or 'raw'"),
        (lambda run: ditlab.load(run).sample(2, labels=10), "from 0 to 9"),
        (lambda run: ditlab.load(run).sample(2, labels=[0, -1]), "from 0 to 9"),
        (lambda run: ditlab.load(run).sample(3, labels=[1, 2]), "one for each of the 3"),
        (lambda run: ditlab.load(run).sample(2, labels=[0.5, 1.5]), "whole number"),
        (lambda run: ditlab.load(run).sample(0), "at least 1"),
    ],
)
def test_errors_name_the_fix(unchecked, run, call, message):
    with pytest.raises(ditlab.InputError, match=message):
        call(run)


def test_a_lost_pointer_is_found_again(run):
    """LATEST missing or nonsense: the newest checkpoint is the latest, and going on cuts nothing."""
    pointer = run / "checkpoints/LATEST"
    for content in ("garbage", "step-00000009", None):
        pointer.unlink() if content is None else pointer.write_text(content)
        lost = content == "step-00000009"
        with pytest.warns(CheckpointWarning, match=f"names {content}") if lost else nullcontext():
            assert ditlab.load(run).step == 6
    (run / "checkpoints/step-foo").mkdir()
    fit(tiny("digits", steps=7), RunFolder(run), watcher=Nobody(), resume=True)
    assert ditlab.load(run).step == 7
    assert ditlab.load(run, step=3).step == 3


def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path):
    folder = RunFolder(tmp_path / "r")

    class PullsThePlug(Nobody):
        def progress(self, step, loss, images_per_s, seconds_left):
            raise SystemExit

    with pytest.raises(SystemExit):
        fit(tiny(), folder, watcher=PullsThePlug())
    (folder.checkpoints / ".step-00000003.1.tmp").mkdir(parents=True)
    fit(tiny(), folder, watcher=Nobody(), resume=True)
    assert [line["step"] for line in folder.read_metrics()] == [0, 2, 4, 6]
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == ["LATEST", "step-00000003", "step-00000006"]


def test_a_damaged_line_of_metrics_is_named_and_stays_where_it_is(run):
    """A run that goes on reads its metrics from the end, and touches none of those before."""
    folder = RunFolder(run)
    before = "garbage{\n" + folder.metrics_file.read_text()
    folder.metrics_file.write_text(before)
    fit(tiny("digits", steps=7), folder, watcher=Nobody(), resume=True)
    assert folder.metrics_file.read_text().startswith(before)
    with pytest.raises(ditlab.InputError, match="line 1"):
        folder.read_metrics()


@pytest.mark.parametrize("name", ["model", "ema"])
def test_flipped_bytes_are_found(run, name):
    file = run / f"checkpoints/step-00000006/{name}.safetensors"
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes(content)
    with pytest.raises(ditlab.InputError, match=f"{name}.safetensors is damaged"):
        ditlab.load(run, step=6)
    assert ditlab.load(run, step=3).step == 3
    file.unlink()
    with pytest.raises(ditlab.InputError, match=f"{name}.safetensors is missing"):
        ditlab.load(run, step=6)


def test_weights_that_do_not_fit_are_listed(run):
    config = json.loads((run / "config.json").read_text())
    config["network"]["depth"] = 3
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ditlab.InputError, match=r"missing blocks\.2"):
        ditlab.load(run)
    config["network"]["depth"] = None
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ditlab.InputError, match=r"config\.json: network\.depth=None"):
        ditlab.load(run)
    (run / "config.json").write_text("{")
    with pytest.raises(ditlab.InputError, match="not valid JSON"):
        ditlab.load(run)


def test_every_parameter_has_one_optimizer():
    for network in (ditlab.DiT(positions="sincos"), ditlab.UNet(), ditlab.MLPDenoiser()):
        optimizers = Optimizers(network, tiny())
        names = [name for group in optimizers.names.values() for name in group]
        assert sorted(names) == sorted(n for n, p in network.named_parameters() if p.requires_grad)
    assert len(block_matrices(ditlab.DiT())) == 20
    assert not block_matrices(ditlab.UNet())


def test_learning_rate_warms_up_and_falls_to_zero():
    factors = [learning_rate_factor(step, 1000, 100) for step in range(1000)]
    assert factors[0] == pytest.approx(0.01, rel=0.01)
    assert max(factors) == factors[99] == pytest.approx(0.98, abs=0.01)
    assert factors[99:] == sorted(factors[99:], reverse=True)
    assert factors[-1] < 1e-5


def test_ema_by_hand():
    network = ditlab.MLPDenoiser()
    ema = EMA(network, 0.9)
    expected = network.out.bias.detach().clone()
    for step in range(1, 30):
        shaken(network)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network.out.bias.detach()
        ema.update(step)
    torch.testing.assert_close(ema.network.out.bias, expected)
    assert not ema.network.training
    assert not any(p.requires_grad for p in ema.network.parameters())


def test_bf16_keeps_time_and_modulation_in_full_precision():
    network = shaken(ditlab.DiT())
    seen = {}
    for name in ("conditioner.time", "blocks.0.modulation.linear", "blocks.0.attn.qkv"):
        network.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: seen.__setitem__(name, o.dtype))
    x, t = torch.randn(4, 1, 16, 16, generator=generator_for(0)), torch.rand(4)
    with torch.autocast("cpu", torch.bfloat16):
        low = network(x, t)
    assert seen["conditioner.time"] == seen["blocks.0.modulation.linear"] == torch.float32
    assert seen["blocks.0.attn.qkv"] == torch.bfloat16
    assert (low - network(x, t)).norm() / network(x, t).norm() < 0.02


@pytest.mark.cuda
@pytest.mark.parametrize("recipe", SELF_MADE)
def test_training_on_cuda(tmp_path, recipe):
    fit(tiny(recipe, device="cuda", precision="bf16"), RunFolder(tmp_path / "r"), watcher=Nobody())
    assert ditlab.load(tmp_path / "r", device="cuda").sample(3, steps=2).isfinite().all()


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux alone")
def test_asking_for_huge_pages_changes_no_number():
    """In a process of its own, for the memory it has is rearranged."""
    script = """
        import torch
        from ditlab.core.malloc import _private_memory, use_huge_pages
        blocks = [torch.randn(2**18 + 7 * i) for i in range(40)]
        copies = [block.clone() for block in blocks]
        assert any(start <= block.data_ptr() < end for block in blocks for start, end in _private_memory())
        use_huge_pages()
        assert all(map(torch.equal, blocks, copies))
        blocks += [torch.ones(2**20) for _ in range(10)]
        assert all(torch.isfinite(block).all() for block in blocks)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_previews_are_drawn_as_the_configuration_says():
    sampling = SamplingConfig(
        steps=3, solver="dpm-solver++3m", grid="karras", shift=2.0, guidance=3.0, guidance_interval=(0.2, 0.8)
    )
    config = tiny("digits", sampling=sampling.model_copy(update={"guidance_rescale": 0.5}))
    state = TrainState(config, build_dataset(config))
    for _ in zip(range(3), train(state, build_dataset(config)), strict=False):
        pass
    samples, columns = preview(state, (1, 8, 8), build_dataset(config).conditions)
    expected = state.averaged_process.sample(
        60,
        (1, 8, 8),
        {"label": torch.arange(60) % 10},
        steps=3,
        solver="dpm-solver++3m",
        grid="karras",
        shift=2.0,
        guidance=ditlab.Interval(ditlab.Rescaled(3.0, 0.5), 0.2, 0.8),
    )
    assert columns == 10
    assert torch.equal(samples, expected)
