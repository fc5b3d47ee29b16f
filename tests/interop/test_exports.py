"""What is exported is what others compute with, and what was imported, bit for bit."""

import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel

import ditlab
from ditlab.config import (
    CirclesData,
    Config,
    DDPMConfig,
    DigitsData,
    DiTConfig,
    ExternalData,
    FlowConfig,
    MLPConfig,
    PointsData,
    UNetConfig,
)
from ditlab.core.errors import InputError
from ditlab.diffusion.solvers import as_solver, integrate
from ditlab.interop.conventions import rotated
from ditlab.interop.exports import export_run
from ditlab.interop.imports import import_checkpoint
from ditlab.runs.build import build_dataset, build_network
from ditlab.runs.checkpoint import write_checkpoint
from ditlab.runs.decode import decoder
from ditlab.runs.folder import RunFolder
from tests.diffusion.test_process import shaken
from tests.interop.peers import diffusers_dit, diffusers_state, random_diffusers, random_vae, relative, with_frequencies
from tests.interop.test_imports import K, noise, saved, small

LATENTS = ExternalData(shape=(4, 8, 8), num_classes=10, latent_scale=0.18215)
OWN = DiTConfig(patch_size=2, dim=32, depth=2, mlp_ratio=4.0, positions="sincos", gelu="tanh", time_features=256)


def run_of(folder, network, data=LATENTS, process=None):
    """A run with random weights."""
    config = Config(data=data, network=network, process=process or DDPMConfig(), steps=1)
    weights = shaken(build_network(config, build_dataset(config))).state_dict()
    made = RunFolder(folder)
    made.write_config(config)
    write_checkpoint(made.checkpoints, 0, {"model": weights, "ema": weights, "optimizer": {}})
    return ditlab.load(folder)


def output(run, k):
    label = torch.arange(len(k)) % 11
    with torch.no_grad():
        return run.process.network(noise(len(k), size=8), (k + 1) / 1000, {"label": label}), label


@pytest.mark.parametrize(("format", "outputs"), [("facebook-dit", 8), ("facebook-dit", 4), ("sit", 4), ("sit", 8)])
def test_a_state_dict_comes_back_bit_for_bit(tmp_path, format, outputs):
    state = small(outputs)
    state["pos_embed"] += 1e-7
    import_checkpoint(saved(tmp_path, state), format, tmp_path / "run", heads=4)
    notes = export_run(tmp_path / "run", "facebook-dit", tmp_path / "out.pt").notes
    back = torch.load(tmp_path / "out.pt", weights_only=True)
    if format == "sit":
        assert "learn_sigma=False" in notes[0]
        for p in ("weight", "bias"):
            rows = state[f"final_layer.linear.{p}"]
            state[f"final_layer.linear.{p}"] = rows.unflatten(0, (4, outputs))[:, :4].flatten(0, 1)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    import_checkpoint(tmp_path / "out.pt", format, tmp_path / "again", heads=4)
    ours, again = (ditlab.load(tmp_path / name).process.network.state_dict() for name in ("run", "again"))
    assert all(torch.equal(ours[name], again[name]) for name in ours)


def test_diffusers_comes_back_bit_for_bit(tmp_path):
    random_diffusers().save_pretrained(tmp_path / "model")
    import_checkpoint(tmp_path / "model", "diffusers", tmp_path / "run")
    notes = export_run(tmp_path / "run", "diffusers", tmp_path / "out").notes
    assert not [note for note in notes if "frequencies" in note]
    theirs, back = (DiTTransformer2DModel.from_pretrained(tmp_path / name) for name in ("model", "out/transformer"))
    assert all(torch.equal(back.state_dict()[name], value) for name, value in theirs.state_dict().items())


def test_facebook_to_diffusers_to_facebook(tmp_path):
    state = small()
    import_checkpoint(saved(tmp_path, state), "facebook-dit", tmp_path / "run", heads=4)
    notes = export_run(tmp_path / "run", "diffusers", tmp_path / "pipe").notes
    assert "half − 1" in notes[2]
    assert "%" in notes[2]
    theirs = DiTTransformer2DModel.from_pretrained(tmp_path / "pipe", subfolder="transformer")
    expected = diffusers_state(state)
    assert all(torch.equal(value, expected[name]) for name, value in theirs.state_dict().items())
    run = ditlab.load(tmp_path / "run")
    ours, label = output(run, K)
    with torch.no_grad():
        assert relative(theirs(noise(6, size=8), K, label).sample, ours) > 1e-3
        mended = with_frequencies(theirs, 0)(noise(6, size=8), K, label).sample
    assert relative(mended, ours) < 1e-5
    import_checkpoint(tmp_path / "pipe", "diffusers", tmp_path / "back", time_frequency_shift=0)
    export_run(tmp_path / "back", "facebook-dit", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert all(torch.equal(back[name], state[name]) for name in state if name != "pos_embed")


def test_the_pipeline_draws_with_the_run_s_autoencoder(tmp_path):
    random_vae(tmp_path / "vae", scale=0.5)
    run_of(tmp_path / "run", OWN)
    without = export_run(tmp_path / "run", "diffusers", tmp_path / "without").notes
    assert "DiTPipeline.from_pretrained(PATH, vae=AutoencoderKL.from_pretrained(...))" in without[0]
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert DiTPipeline.from_pretrained(tmp_path / "without", vae=vae).vae is vae
    notes = export_run(tmp_path / "run", "diffusers", tmp_path / "pipe", vae=tmp_path / "vae").notes
    assert "guidance_scale=1" in notes[0]
    pipe = DiTPipeline.from_pretrained(tmp_path / "pipe")
    assert pipe.vae.config.scaling_factor == 0.18215
    assert pipe.scheduler.config.clip_sample is False
    pipe.set_progress_bar_config(disable=True)
    images = pipe([1, 2], guidance_scale=1, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 32, 32, 3)
    assert images.std() > 0


@pytest.mark.parametrize("offset", [0.0, 2.5])
def test_another_time_offset_is_absorbed_by_the_first_layer(tmp_path, offset):
    """Our own DDPM counts k + 1 where the published one counts k."""
    run = run_of(tmp_path / "run", OWN.model_copy(update={"time_offset": offset, "learned_variance": True}))
    ours, label = output(run, K)
    export_run(run, "facebook-dit", tmp_path / "out.pt")
    theirs = diffusers_dit(torch.load(tmp_path / "out.pt", weights_only=True), 4)(noise(6, size=8), K, label).sample
    assert relative(theirs, ours) < 1e-5
    import_checkpoint(tmp_path / "out.pt", "facebook-dit", tmp_path / "back", heads=4)
    assert relative(output(ditlab.load(tmp_path / "back"), K)[0], ours) < 1e-5


@pytest.mark.parametrize("direction", [1, -1])
def test_a_rotation_of_the_features_is_exact(direction):
    rates = torch.rand(8, dtype=torch.float64)
    weight, time, delta = torch.randn(5, 16, dtype=torch.float64), 37.0, -1.3

    def features(angle):
        return torch.cat([angle.cos(), angle.sin()])

    ahead = weight @ features((direction * time + delta) * rates)
    torch.testing.assert_close(rotated(weight, rates, direction, delta) @ features(time * rates), ahead)


def test_a_flow_that_runs_the_other_way_is_turned_into_a_sit(tmp_path):
    forwards = OWN.model_copy(update={"time_scale": 1.0, "time_offset": 0.25})
    run = run_of(tmp_path / "run", forwards, process=FlowConfig())
    export_run(run, "facebook-dit", tmp_path / "out.pt")
    state, (t, label) = torch.load(tmp_path / "out.pt", weights_only=True), (torch.rand(6), torch.arange(6))
    theirs = diffusers_dit(state, 4)(noise(6, size=8), 1 - t, label).sample
    with torch.no_grad():
        assert relative(-theirs, run.process.network(noise(6, size=8), t, {"label": label})) < 1e-5


@pytest.mark.parametrize(
    ("change", "process", "format", "named"),
    [
        ({"gelu": "exact"}, DDPMConfig(), "facebook-dit", "network.gelu=exact, not tanh"),
        ({"time_frequency_shift": 1}, DDPMConfig(), "facebook-dit", "network.time_frequency_shift=1, not 0"),
        ({"mlp_ratio": 2.0}, DDPMConfig(), "diffusers", "network.mlp_ratio=2.0, not 4.0"),
        ({"positions": "learned"}, DDPMConfig(), "diffusers", "network.positions=learned, not sincos"),
        ({"null_label": False}, DDPMConfig(), "diffusers", "network.null_label=False, not True"),
        ({}, FlowConfig(), "diffusers", "process.kind=flow, not ddpm"),
        ({}, FlowConfig(), "facebook-dit", "network.time_scale=1000, not ±1"),
        ({}, DDPMConfig(schedule="cosine"), "facebook-dit", "process.schedule=cosine, not linear"),
        ({}, DDPMConfig(steps=500), "diffusers", "network.time_scale=1000, not ±500"),
    ],
)
def test_what_a_format_cannot_say_is_named(tmp_path, change, process, format, named):
    run = run_of(tmp_path / "run", OWN.model_copy(update=change), process=process)
    with pytest.raises(InputError) as refusal:
        export_run(run, format, tmp_path / "out")
    assert str(refusal.value).split(": ", 1)[1] == named
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_other_networks_are_refused(tmp_path):
    run = run_of(tmp_path / "run", UNetConfig(width=8), data=CirclesData())
    with pytest.raises(InputError, match="network=unet, not dit"):
        export_run(run, "facebook-dit", tmp_path / "out.pt")


def test_nothing_is_overwritten_and_options_that_say_nothing_are_refused(tmp_path):
    run = run_of(tmp_path / "run", OWN)
    (tmp_path / "there").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        export_run(run, "facebook-dit", tmp_path / "there")
    assert (tmp_path / "there").read_text() == "mine"
    with pytest.raises(InputError, match="--vae goes with --format diffusers"):
        export_run(run, "facebook-dit", tmp_path / "out", vae=tmp_path)
    with pytest.raises(InputError, match=r"no config\.json"):
        export_run(run, "diffusers", tmp_path / "out", vae=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "there"]


@pytest.mark.parametrize(
    ("network", "data"),
    [
        (DiTConfig(dim=16, depth=1), CirclesData()),
        pytest.param(DiTConfig(dim=16, depth=1, patch_size=2), DigitsData(), marks=pytest.mark.slow),
        (OWN.model_copy(update={"learned_variance": True, "embedders": "per-block"}), LATENTS),
        pytest.param(UNetConfig(width=8), DigitsData(), marks=pytest.mark.slow),
        (MLPConfig(), PointsData()),
    ],
    ids=["circles", "digits", "latents", "unet", "mlp"],
)
def test_onnx_computes_the_same_for_any_batch(tmp_path, network, data, capfd, unchecked):
    process = DDPMConfig() if data is LATENTS else FlowConfig()
    run = run_of(tmp_path / "run", network, data, process)
    capfd.readouterr()
    export_run(run, "onnx", tmp_path / "net.onnx")
    assert capfd.readouterr() == ("", "")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for n in (1, 5):
        x, t = torch.randn(n, *run.shape), torch.rand(n)
        given = {"x": x, "t": t} | ({} if run.num_classes is None else {"label": torch.arange(n) + 6})
        with torch.no_grad():
            ours = run.process.network(x, t, {"label": given["label"]} if "label" in given else None)
        (theirs,) = session.run(None, {name: value.numpy() for name, value in given.items()})
        np.testing.assert_allclose(theirs, ours.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_onnx_has_an_input_for_the_interval(tmp_path, unchecked):
    run = run_of(tmp_path / "run", DiTConfig(dim=16, depth=1), CirclesData(), FlowConfig())
    network = shaken(ditlab.DiT(dim=16, depth=1, interval=True))
    export_run(replace(run, process=ditlab.FlowMatching(network)), "onnx", tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    x, t, interval = torch.randn(3, 1, 16, 16), torch.rand(3), torch.rand(3)
    with torch.no_grad():
        ours = network(x, t, {"interval": interval})
    (theirs,) = session.run(None, {"x": x.numpy(), "t": t.numpy(), "interval": interval.numpy()})
    np.testing.assert_allclose(theirs, ours.numpy(), rtol=1e-5, atol=1e-5)


def test_an_unknown_format_is_refused(tmp_path, unchecked):
    with pytest.raises(InputError, match="unknown format 'pdf'"):
        export_run(tmp_path, "pdf", tmp_path / "out")
    with pytest.raises(InputError, match="unknown format 'pdf'"):
        import_checkpoint(tmp_path, "pdf", tmp_path / "out")


def test_scheduler_says_what_the_process_is(tmp_path):
    network = OWN.model_copy(update={"time_scale": 500.0})
    run = run_of(tmp_path / "run", network, process=DDPMConfig(steps=500, schedule="cosine", target="v"))
    export_run(run, "diffusers", tmp_path / "out")
    scheduler = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["beta_schedule"] == "squaredcos_cap_v2"
    assert (scheduler["num_train_timesteps"], scheduler["prediction_type"]) == (500, "v_prediction")


def test_a_whole_guided_ddim_loop_is_the_pipeline_s(tmp_path):
    """Import, export, let diffusers draw; and draw the same from the same noise ourselves."""
    random_vae(tmp_path / "vae")
    import_checkpoint(saved(tmp_path, small(rows=1001)), "facebook-dit", tmp_path / "run", heads=4)
    export_run(tmp_path / "run", "diffusers", tmp_path / "pipe", vae=tmp_path / "vae")
    pipe = DiTPipeline.from_pretrained(tmp_path / "pipe")
    with_frequencies(pipe.transformer, 0)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    settings = {"guidance_scale": 1.5, "num_inference_steps": 10, "generator": generator, "output_type": "pt"}
    theirs = pipe([3, 999], **settings).images

    run = ditlab.load(tmp_path / "run")
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    denoise = run.process.denoiser({"label": torch.tensor([3, 999])}, 1.5)
    grid = run.process.sampling_times(10, "leading")
    with torch.no_grad():
        *_, (_, latents) = integrate(as_solver("ddim"), denoise, run.process.path, start, grid, lambda: start)
    ours = decoder(run, tmp_path / "vae")(latents)
    torch.testing.assert_close((ours + 1) / 2, theirs, rtol=0, atol=1e-4)
