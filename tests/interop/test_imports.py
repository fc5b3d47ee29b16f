"""An imported network computes what its authors' code computes with the same weights."""

import json

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file

import ditlab
from ditlab.core.errors import InputError
from ditlab.core.rng import generator_for
from ditlab.interop.imports import import_checkpoint
from tests.interop.peers import diffusers_dit, facebook_state, random_diffusers, random_vae, relative

K = torch.tensor([0, 1, 10, 250, 500, 999])


def noise(n, channels=4, size=32):
    return torch.randn(n, channels, size, size, generator=generator_for("x"))


def saved(tmp_path, state, name="weights.pt"):
    torch.save(state, tmp_path / name)
    return tmp_path / name


def agreement(tmp_path, name, depth=None, n=1):
    """Relative difference between the imported network and diffusers' with the same weights."""
    state = facebook_state(name, depth)
    import_checkpoint(saved(tmp_path, state), "facebook-dit", tmp_path / "run", preset=None if depth else name)
    run = ditlab.load(tmp_path / "run")
    k, label = K[-n:], torch.arange(1000, 1000 - n, -1)
    with torch.no_grad():
        ours = run.process.network(noise(n), (k + 1) / 1000, {"label": label})
        theirs = diffusers_dit(state, ditlab.networks.presets.preset(name)["heads"])(noise(n), k, label).sample
    return relative(ours, theirs)


@pytest.mark.parametrize(("name", "depth", "n"), [("DiT-S/2", None, 1), ("DiT-S/8", 3, 6), ("DiT-B/4", 2, 6)])
def test_the_network_is_diffusers_with_the_same_weights(tmp_path, name, depth, n):
    assert agreement(tmp_path, name, depth, n) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"DiT-{size}/{patch}" for size in "SB" for patch in (8, 4, 2)])
def test_published_sizes_in_full(tmp_path, name):
    assert agreement(tmp_path, name, n=6) < 1e-5


def small(outputs=8, rows=11, **sizes):
    return facebook_state(**{"dim": 32, "depth": 2, "patch": 2, "size": 8, "rows": rows, "outputs": outputs, **sizes})


def imported(tmp_path, state, format="facebook-dit", **told):
    made = import_checkpoint(saved(tmp_path, state), format, tmp_path / "run", heads=4, **told)
    return made.imported.config, ditlab.load(tmp_path / "run")


def test_raw_and_averaged_weights_are_both_kept(tmp_path):
    raw, averaged = small(seed=1), small(seed=2)
    content = {"model": raw, "ema": averaged, "opt": {"state": {}, "param_groups": []}, "args": None}
    import_checkpoint(saved(tmp_path, content), "facebook-dit", tmp_path / "run", heads=4)
    for weights, state in (("raw", raw), ("ema", averaged)):
        network = ditlab.load(tmp_path / "run", weights=weights).process.network
        assert torch.equal(network.final.linear.weight, state["final_layer.linear.weight"])


def test_what_the_configuration_records(tmp_path):
    config, run = imported(tmp_path, small())
    assert (config.data.shape, config.data.num_classes, config.data.latent_scale) == ((4, 8, 8), 10, 0.18215)
    assert (config.network.time_scale, config.network.time_offset, config.network.heads) == (1000, -1, 4)
    assert (config.network.learned_variance, config.network.positions, config.network.null_label) == (
        True,
        "sincos",
        True,
    )
    assert (config.process.kind, config.process.steps, config.process.target) == ("ddpm", 1000, "eps")
    assert (run.step, run.latent, run.shape) == (0, True, (4, 8, 8))


def test_other_positions_are_kept_as_they_are(tmp_path):
    state = small()
    state["pos_embed"] = state["pos_embed"] + 0.01
    config, run = imported(tmp_path, state)
    assert config.network.positions == "learned"
    assert torch.equal(run.process.network.positions, state["pos_embed"])


def test_a_label_table_without_a_row_for_no_label(tmp_path):
    config, run = imported(tmp_path, small(rows=10), num_classes=10)
    assert (config.data.num_classes, config.network.null_label, config.sampling.guidance) == (10, False, 1.0)
    assert run.sample(2, steps=2, solver="ddim").shape == (2, 4, 8, 8)
    with pytest.raises(InputError, match="label table has 10 rows"):
        import_checkpoint(tmp_path / "weights.pt", "facebook-dit", tmp_path / "b", heads=4, num_classes=7)


@pytest.mark.parametrize("outputs", [4, 8])
def test_sit_runs_against_its_own_time_and_sign(tmp_path, outputs):
    """SiT is given 1 − t and says minus our velocity; of a learned variance it never uses the second half."""
    state = small(outputs)
    config, run = imported(tmp_path, state, "sit")
    assert (config.process.kind, config.network.learned_variance) == ("flow", False)
    t, label = torch.tensor([0.0, 0.01, 0.4, 0.5, 0.9, 1.0]), torch.tensor([0, 1, 5, 9, 10, 10])
    with torch.no_grad():
        ours = run.process.network(noise(6, size=8), t, {"label": label})
        theirs = diffusers_dit(state, 4)(noise(6, size=8), 1 - t, label).sample[:, :4]
    assert relative(ours, -theirs) < 1e-5


def test_sit_flows_to_the_data_as_its_own_euler_steps_do(tmp_path):
    state = small(8)
    _, run = imported(tmp_path, state, "sit")
    ours = run.sample(3, labels=[1, 2, 3], steps=8, solver="euler", seed=4)
    x = run.process.trajectory(3, run.shape, cond={"label": torch.tensor([1, 2, 3])}, seed=4)
    x, peer = next(x)[1], diffusers_dit(state, 4)
    for i in range(8):
        velocity = peer(x, torch.full((3,), i / 8), torch.tensor([1, 2, 3])).sample[:, :4]
        x = x + velocity / 8
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


# ---- diffusers


@pytest.mark.parametrize("settings", [{}, {"out_channels": 4, "activation_fn": "gelu"}, {"norm_eps": 1e-6}])
def test_a_model_of_diffusers_is_computed_as_diffusers_does(tmp_path, settings):
    peer = random_diffusers(**settings)
    peer.save_pretrained(tmp_path / "model")
    import_checkpoint(tmp_path / "model", "diffusers", tmp_path / "run")
    run = ditlab.load(tmp_path / "run")
    assert run.config.network.embedders == "per-block"
    label = torch.tensor([0, 1, 5, 9, 10, 10])
    with torch.no_grad():
        ours = run.process.network(noise(6, size=8), (K + 1) / 1000, {"label": label})
        theirs = peer(noise(6, size=8), K, label).sample
    assert relative(ours, theirs) < 1e-5


def test_equal_embedders_become_one_and_frequencies_can_be_chosen(tmp_path):
    state = small()
    peer = diffusers_dit(state, 4)
    peer.save_pretrained(tmp_path / "model", max_shard_size="40KB")
    assert (tmp_path / "model" / "diffusion_pytorch_model.safetensors.index.json").exists()
    for shift in (0, 1):
        import_checkpoint(tmp_path / "model", "diffusers", tmp_path / f"run{shift}", time_frequency_shift=shift)
        run = ditlab.load(tmp_path / f"run{shift}")
        assert run.config.network.embedders == "shared"
        with torch.no_grad():
            ours = run.process.network(noise(6, size=8), (K + 1) / 1000, {"label": torch.arange(6)})
            theirs = diffusers_dit(state, 4, shift)(noise(6, size=8), K, torch.arange(6)).sample
        assert relative(ours, theirs) < 1e-5


def pipeline(tmp_path, **scheduler):
    """A pipeline's folder with a scheduler and an autoencoder."""
    folder = tmp_path / "pipeline"
    random_diffusers().save_pretrained(folder / "transformer")
    DDIMScheduler().save_pretrained(folder / "scheduler")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | scheduler))
    random_vae(folder / "vae", scale=0.25)
    return folder


def test_a_pipeline_tells_schedule_scale_and_autoencoder(tmp_path):
    folder = pipeline(tmp_path, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    config = import_checkpoint(folder, "diffusers", tmp_path / "run").imported.config
    assert (config.process.schedule, config.process.target) == ("cosine", "v")
    assert (config.data.latent_scale, config.data.vae) == (0.25, str((folder / "vae").resolve()))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"beta_schedule": "scaled_linear"}, "beta_schedule='scaled_linear'"),
        ({"beta_start": 0.00085, "beta_end": 0.012}, "betas from 0.00085 to 0.012"),
        ({"beta_start": "x"}, "beta_start='x'"),
        ({"trained_betas": [0.1] * 30}, "trained_betas"),
    ],
)
def test_other_schedules_are_refused_by_name(tmp_path, settings, named):
    folder = pipeline(tmp_path, **{"beta_start": 1e-4, "beta_end": 0.02, **settings})
    with pytest.raises(InputError, match=named):
        import_checkpoint(folder, "diffusers", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"_class_name": "UNet2DModel"}, "_class_name='UNet2DModel'"),
        ({"norm_type": "ada_norm"}, "norm_type='ada_norm'"),
        ({"num_layers": "many"}, "num_layers='many'"),
        ({"attention_head_dim": 8}, "says a width of 16, and the weights 32"),
        ({"in_channels": 3, "out_channels": 6}, "has inconsistent shapes"),
        ({"sample_size": 2000}, "1 to 256 times"),
        ({"activation_fn": "geglu"}, "activation_fn='geglu'"),
    ],
)
def test_a_configuration_that_is_no_dit_or_another_one_is_refused(tmp_path, change, named):
    random_diffusers().save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=named):
        import_checkpoint(tmp_path / "model", "diffusers", tmp_path / "run")


def test_missing_and_unexpected_tensors_of_diffusers_are_named(tmp_path):
    random_diffusers().save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["extra"] = tensors.pop("proj_out_1.bias")
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"missing proj_out_1\.bias; unexpected extra$"):
        import_checkpoint(tmp_path / "model", "diffusers", tmp_path / "run")
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(InputError, match="safe_serialization=True"):
        import_checkpoint(tmp_path / "model", "diffusers", tmp_path / "run")
