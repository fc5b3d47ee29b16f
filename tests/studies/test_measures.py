"""What the comparing studies measure: laws of the measures, and that networks are as alike as their names say."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ditlab.build import build_dataset
from ditlab.diffusion.solvers import SOLVERS
from ditlab.run import load
from studies import conditioning, measures, networks, objectives, scaling
from studies.measures import cost, count_jumps, held_out_loss, smoothness, steps_within
from studies.powerlaw import fit_power_law, intervals
from studies.training import SMOKE, Workers, base

NEAR = 0.03  # that sizes may differ by


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workers = Workers(tmp_path_factory.mktemp("runs"), 0, lambda _: None)
    steps = SMOKE.steps
    return workers.train({f"run-{seed}": base(SMOKE, seed, log_every=1, steps=steps) for seed in (0, 1)})


def test_a_network_that_says_nothing_has_the_loss_of_the_velocity_itself(trained):
    run = load(trained["run-0"].folder, device="cpu")
    for parameter in run.process.network.final.parameters():
        parameter.zero_()
    generator = torch.Generator().manual_seed(0)
    images, _ = build_dataset(run.config).held_out(0, 256)
    expected = float((torch.randn(images.shape, generator=generator) - images).square().mean())
    assert held_out_loss(run, 256) == pytest.approx(expected, rel=0.02)


def test_held_out_losses_are_paired(trained):
    runs = [load(trained[name].folder, device="cpu") for name in ("run-0", "run-1")]
    assert held_out_loss(runs[0], 64) == held_out_loss(runs[0], 64)
    runs[1].process.network.load_state_dict(runs[0].process.network.state_dict())
    assert held_out_loss(runs[1], 64) == held_out_loss(runs[0], 64)


def test_a_network_that_is_lost_still_counts(trained, monkeypatch):
    def lost(*args, **options):
        run = load(*args, **options)
        next(run.process.network.final.parameters()).fill_(torch.nan)
        return run

    monkeypatch.setattr(measures, "load", lost)
    assert measures.loss_of(trained["run-0"].folder, SMOKE) == measures.WORST
    monkeypatch.undo()
    assert measures.loss_of(trained["run-0"].folder, SMOKE) < measures.WORST


@pytest.mark.parametrize("solver", ["euler", "heun", "dpm-solver++", "dpm-solver++3m"])
@pytest.mark.parametrize("evaluations", [1, 5, 10, 49, 100])
def test_as_many_steps_as_the_evaluations_allow(solver, evaluations):
    count, steps = SOLVERS[solver]().evaluations, steps_within(solver, evaluations)
    assert count(steps) <= evaluations < count(steps + 1)


def test_jumps_are_counted():
    quiet = [1.0 - 0.01 * i for i in range(50)]
    assert count_jumps(quiet) == 0
    quiet[30] *= 2
    assert count_jumps(quiet) == 1
    assert count_jumps([3.0] * 5) == 0


def test_a_training_tells_how_it_went(trained):
    smooth = smoothness(trained["run-0"].folder)
    assert smooth.skipped == 0
    assert smooth.jumps == 0
    assert smooth.tail >= 1


def test_networks_are_as_large_as_their_names_say():
    spent = {each: cost(networks.config_of(SMOKE, 0, each, 1e-3)) for each in networks.NETWORKS}
    for each in ("U-Net", "MLP"):
        assert spent[each].parameters == pytest.approx(spent["DiT"].parameters, rel=NEAR)
    for each in ("U-Net of the DiT's compute", "MLP of the DiT's compute"):
        assert spent[each].products == pytest.approx(spent["DiT"].products, rel=NEAR)
    assert spent["DiT of the U-Net's compute"].products == pytest.approx(spent["U-Net"].products, rel=NEAR)
    small = [cost(networks.digits_of(SMOKE, 0, each, 1e-3)).parameters for each in networks.DIGITS]
    assert max(small) <= (1 + NEAR) * min(small)


def test_runs_that_are_compared_differ_in_nothing_else():
    def without(config, *names):
        return config.model_dump(exclude=set(names))

    kinds = [conditioning.quality_config(SMOKE, 0, kind) for kind in conditioning.KINDS]
    assert all(without(each, "network") == without(kinds[0], "network") for each in kinds)
    keys = conditioning.stability_keys(SMOKE)
    changed = ("network", "lr", "warmup_steps")
    runs = [conditioning.stability_config(SMOKE, 0, each) for each in keys]
    assert all(without(each, *changed) == without(runs[0], *changed) for each in runs)
    assert len({conditioning.run_name(each, 0) for each in keys}) == len(keys)
    sizes = [scaling.config_of(SMOKE, 0, size) for size in scaling.SIZES]
    assert all(without(each, "network") == without(sizes[0], "network") for each in sizes)
    silent = ("process", "record_every", "checkpoint_every", "sampling")  # how often something is looked at
    trainings = [objectives.runs_of(SMOKE, each)[name] for each, name in RUNS_AT_SEED_0.items()]
    assert all(without(each, *silent) == without(trainings[0], *silent) for each in trainings)


RUNS_AT_SEED_0 = {"flow": "base-0", "eps": "ddpm-eps-0", "v": "ddpm-v-0"}


def test_a_power_law_is_found():
    compute = np.geomspace(1e10, 1e13, 12)
    law = fit_power_law(compute, 0.2 + 3 * (compute / 1e10) ** -0.35)
    assert law.floor == pytest.approx(0.2, abs=0.02)
    assert law.exponent == pytest.approx(0.35, rel=0.03)
    assert law.r2 > 0.9999
    assert law(1e10) == pytest.approx(3.2, rel=0.01)


def test_what_does_not_fall_is_no_power_law():
    compute = np.geomspace(1e10, 1e13, 12)
    assert fit_power_law(compute, 1 + (compute / 1e10) ** 0.2).r2 == 0
    assert fit_power_law(compute, np.ones(12)).r2 == 0
    noise = np.random.default_rng(0).normal(1, 0.1, 12)
    figures = intervals(compute, noise, draws=100)
    assert figures["r2"].low < 0.5


def test_intervals_of_a_power_law_hold_the_truth():
    compute, generator, held = np.geomspace(1e10, 1e13, 12), np.random.default_rng(0), 0
    for _ in range(10):
        loss = 0.2 + 3 * (compute / 1e10) ** -0.35 + generator.normal(0, 0.01, 12)
        figure = intervals(compute, loss, draws=100)["exponent"]
        held += figure.low <= 0.35 <= figure.high
    assert held >= 7


def test_too_few_sizes_are_refused():
    with pytest.raises(ValueError, match="needs 4"):
        intervals([1e10, 1e11, 1e12], [3, 2, 1])


def judged(**by_evaluations):
    """Figures of flow matching and of eps at two seeds, the same for all evaluations."""
    return {
        objectives.Cell(each, count): [{"valid": value, "energy_distance": 1 - value} for value in by_evaluations[each]]
        for each in by_evaluations
        for count in objectives.EVALUATIONS
    }


@pytest.mark.parametrize(
    ("flow", "eps", "verdict"),
    [
        ((0.9, 0.91), (0.5, 0.51), "confirmed"),
        ((0.5, 0.51), (0.9, 0.91), "contradicted"),
        ((0.5, 0.9), (0.9, 0.5), "not shown here"),
    ],
)
def test_verdicts_follow_from_the_figures(flow, eps, verdict):
    for what in ("valid", "energy_distance"):
        finding = objectives.compare(judged(flow=flow, eps=eps), "eps", what, [25, 49, 100])
        assert finding.verdict == verdict


@pytest.mark.parametrize(("best", "verdict"), [("U-Net", "confirmed"), ("DiT", "contradicted")])
def test_who_wins_follows_from_the_losses(best, verdict):
    figures = {
        each: [{"loss": 0.2 + 0.1 * (each != best) + 0.001 * i, "valid": 0.5, "energy_distance": 1.0} for i in range(3)]
        for each in ("U-Net", "DiT")
    }
    assert networks.better("A U-Net wins.", figures, "U-Net", "DiT").verdict == verdict


def test_warm_up_that_matters_contradicts_stability():
    class Measured(conditioning.Stability):
        def __init__(self, loss):
            self.loss, self.smooth, self.depths = loss, {key: [] for key in loss}, SMOKE.depths

    keys = conditioning.stability_keys(SMOKE)
    same = {key: [0.3, 0.31, 0.305] for key in keys}
    assert conditioning.stable(Measured(same)).verdict == "confirmed"
    worse = {key: [(2 - key[2]) * value for value in values] for key, values in same.items()}
    assert conditioning.stable(Measured(worse)).verdict == "contradicted"
    assert conditioning.start(Measured(same)).verdict == "not shown here"
    deeper = {key: [key[1] * value for value in values] for key, values in same.items()}
    assert conditioning.start(Measured(deeper)).verdict == "confirmed"


def test_a_tier_trains_for_a_part_of_its_steps():
    tier = replace(SMOKE, steps=1000)
    assert scaling.config_of(tier, 0, scaling.SIZES[0]).steps == 150
