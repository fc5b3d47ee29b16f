"""Checkpoints as they are found: nested and prefixed by trainers, of 16 bits, of REPA, of ten classes that stay ten."""

import argparse

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

import ditlab
from ditlab.cli.main import main
from ditlab.core.errors import InputError
from ditlab.interop.exports import export_run
from ditlab.interop.imports import import_checkpoint
from tests.interop.peers import diffusers_dit, relative
from tests.interop.test_imports import K, noise, saved, small

RAW, AVERAGED = small(seed=1), small(seed=2)


def under(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def ema_pytorch():
    """What ``ema_pytorch.EMA(model).state_dict()`` holds."""
    counters = {"initted": torch.tensor(True), "step": torch.tensor(7)}
    return under("online_model.", RAW) | under("ema_model.", AVERAGED) | counters


def lightning(state):
    return {"pytorch-lightning_version": "2.5", "epoch": 3, "state_dict": state, "optimizer_states": [{"state": {}}]}


BOTH = {
    "scripts": {"model_state_dict": RAW, "ema_state_dict": AVERAGED, "optimizer_state_dict": {}, "epoch": 3},
    "parallel and compiled": {"model": under("module._orig_mod.", RAW), "ema": under("_orig_mod.", AVERAGED)},
    "ema_pytorch": ema_pytorch(),
    "ema_pytorch in a trainer": {"step": 7, "model": RAW, "ema": ema_pytorch(), "opt": {}},
    "Lightning": lightning(under("model.", RAW) | under("ema_model.", AVERAGED)),
    "Lightning with ema_pytorch": lightning(under("model.", RAW) | under("ema.", ema_pytorch())),
    "nested": {"state_dict": {"model": under("net.", RAW), "ema": under("module.", AVERAGED)}},
}
ONE = {
    "alone": RAW,
    "compiled": under("_orig_mod.", RAW),
    "in a Lightning module": lightning(under("model.", RAW)),
    "averaged by torch": under("module.", RAW) | {"n_averaged": torch.tensor(3)},
    "an average alone": {"ema": RAW, "model": None},
}


@pytest.mark.parametrize("name", BOTH)
def test_weights_and_their_average_are_found_wherever_a_trainer_put_them(tmp_path, name):
    import_checkpoint(saved(tmp_path, BOTH[name]), "facebook-dit", tmp_path / "run", heads=4)
    for weights, state in (("raw", RAW), ("ema", AVERAGED)):
        network = ditlab.load(tmp_path / "run", weights=weights).process.network
        assert torch.equal(network.final.linear.weight, state["final_layer.linear.weight"])
        assert torch.equal(network.blocks[1].mlp[2].bias, state["blocks.1.mlp.fc2.bias"])


@pytest.mark.parametrize("name", ONE)
def test_one_state_dict_is_found_wherever_a_trainer_put_it(tmp_path, name):
    made = import_checkpoint(saved(tmp_path, ONE[name]), "facebook-dit", tmp_path / "run", heads=4)
    for weights in ("raw", "ema"):
        network = ditlab.load(tmp_path / "run", weights=weights).process.network
        assert torch.equal(network.final.linear.weight, RAW["final_layer.linear.weight"])
    assert ("is removed" in " ".join(made.imported.notes)) == (name not in ("alone", "an average alone"))


def test_the_wrappers_prefixes_are_those_of_torch():
    """That the names above are as torch writes them."""
    names = set(AveragedModel(nn.Linear(1, 1)).state_dict())
    assert names == {"n_averaged", "module.weight", "module.bias"}
    assert set(torch.compile(nn.Linear(1, 1)).state_dict()) == {"_orig_mod.weight", "_orig_mod.bias"}


def test_a_safetensors_file_of_the_same_names_is_read(tmp_path):
    save_file({name: tensor.contiguous() for name, tensor in RAW.items()}, tmp_path / "model.safetensors")
    import_checkpoint(tmp_path / "model.safetensors", "facebook-dit", tmp_path / "run", heads=4)
    assert torch.equal(ditlab.load(tmp_path / "run").process.network.positions, RAW["pos_embed"])


def test_two_state_dicts_of_a_kind_are_not_chosen_from(tmp_path):
    path = saved(tmp_path, {"state_dict": RAW, "model": AVERAGED})
    with pytest.raises(InputError, match="two state dicts of one kind, the second as 'state_dict'"):
        import_checkpoint(path, "facebook-dit", tmp_path / "run", heads=4)


# ---- REPA


def with_projectors():
    shapes = {"projectors.0.0": (64, 32), "projectors.0.2": (64, 64), "projectors.0.4": (48, 64)}
    layers = {f"{name}.weight": torch.ones(shape) for name, shape in shapes.items()}
    return small(4) | layers | {f"{name}.bias": torch.ones(shape[0]) for name, shape in shapes.items()}


def test_a_sit_of_repa_is_itself_without_its_projectors(tmp_path):
    """Its time is ours unscaled, with the noise at 1, and its prediction eps − x0 is ours (Yu et al. 2025, eq. 3)."""
    state = with_projectors()
    made = import_checkpoint(saved(tmp_path, {"ema": state}), "repa", tmp_path / "run", heads=4)
    assert "projectors of REPA, 6 tensors" in made.imported.notes[0]
    t, label = torch.tensor([0.0, 0.01, 0.4, 0.5, 0.9, 1.0]), torch.tensor([0, 1, 5, 9, 10, 10])
    run = ditlab.load(tmp_path / "run")
    with torch.no_grad():
        ours = run.process.network(noise(6, size=8), t, {"label": label})
        theirs = diffusers_dit(small(4), 4)(noise(6, size=8), t, label).sample
    assert relative(ours, theirs) < 1e-5
    assert run.sample(2, steps=2, labels=[0, 1], guidance=1.8).isfinite().all()


def test_a_sit_of_repa_is_refused_as_another_kind_of_sit(tmp_path, capsys):
    path = saved(tmp_path, with_projectors())
    for format in ("sit", "facebook-dit"):
        assert main(["import", str(path), "--format", format, "--heads", "4", "--out", str(tmp_path / "run")]) == 2
        assert "whose time runs from the data to the noise: use --format repa" in capsys.readouterr().err


def test_a_run_of_repas_becomes_a_sit_that_says_the_same(tmp_path):
    import_checkpoint(saved(tmp_path, with_projectors()), "repa", tmp_path / "run", heads=4)
    export_run(tmp_path / "run", "facebook-dit", tmp_path / "sit.pt")
    import_checkpoint(tmp_path / "sit.pt", "sit", tmp_path / "again", heads=4)
    one, other = (ditlab.load(tmp_path / name).process.network for name in ("run", "again"))
    t, cond = torch.tensor([0.0, 0.3, 1.0]), {"label": torch.tensor([0, 5, 10])}
    with torch.no_grad():
        assert relative(other(noise(3, size=8), t, cond), one(noise(3, size=8), t, cond)) < 1e-5


@pytest.mark.parametrize(
    ("name", "looks"),
    [
        ("transformer_blocks.0.attn1.to_q.weight", "--format diffusers"),
        ("blocks.0.mlp.w12.weight", "LightningDiT"),
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
    ],
)
def test_a_network_of_another_kind_is_refused_by_its_name(tmp_path, name, looks):
    state = {name: torch.ones(2, 2)} | (RAW if name.startswith("blocks.") else {})
    with pytest.raises(InputError, match=f"looks like .*{looks}"):
        import_checkpoint(saved(tmp_path, state), "facebook-dit", tmp_path / "run", heads=4)


# ---- 16 bits


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_can_be_exported(tmp_path, kind):
    """Positions that were rounded are still the table of sines and cosines, which diffusers computes."""
    state = {name: tensor.to(kind) for name, tensor in small().items()}
    import_checkpoint(saved(tmp_path, state), "facebook-dit", tmp_path / "run", heads=4)
    run = ditlab.load(tmp_path / "run")
    assert run.config.network.positions == "sincos"
    export_run(run, "facebook-dit", tmp_path / "same.pt")
    again = torch.load(tmp_path / "same.pt")
    assert all(torch.equal(again[name], state[name].float()) for name in state)
    export_run(run, "diffusers", tmp_path / "pipe")
    import_checkpoint(tmp_path / "pipe", "diffusers", tmp_path / "back", time_frequency_shift=0)
    back, cond = ditlab.load(tmp_path / "back").process.network, {"label": torch.arange(6)}
    with torch.no_grad():
        ours, theirs = (net(noise(6, size=8), (K + 1) / 1000, cond) for net in (run.process.network, back))
    assert relative(theirs, ours) < 4 * torch.finfo(kind).eps


# ---- classes


def test_ten_classes_without_a_null_row_stay_ten(tmp_path):
    made = import_checkpoint(saved(tmp_path, small(rows=10)), "facebook-dit", tmp_path / "run", heads=4)
    config = made.imported.config
    assert (config.data.num_classes, config.network.null_label, config.sampling.guidance) == (10, False, 1)
    assert made.imported.notes[-1].endswith("use --num-classes 9")
    assert ditlab.load(tmp_path / "run").sample(10, steps=2, solver="ddim").isfinite().all()
    told = import_checkpoint(tmp_path / "weights.pt", "facebook-dit", tmp_path / "nine", heads=4, num_classes=9)
    assert (told.imported.config.data.num_classes, told.imported.notes) == (9, ())


@pytest.mark.parametrize(("rows", "told", "expected"), [(10, 9, 9), (10, 10, 10), (7, 7, 7), (7, 6, 6), (7, 1000, 6)])
def test_what_a_trainer_noted_of_its_classes_decides(tmp_path, rows, told, expected):
    arguments = argparse.Namespace(num_classes=told, lr=1e-4)
    for i, extra in enumerate(({"args": arguments}, {"hyper_parameters": {"num_classes": told}})):
        path = saved(tmp_path, {"model": small(rows=rows)} | extra)
        made = import_checkpoint(path, "facebook-dit", tmp_path / f"run{i}", heads=4)
        assert made.imported.config.data.num_classes == expected
        assert made.imported.config.network.null_label == (expected < rows)
