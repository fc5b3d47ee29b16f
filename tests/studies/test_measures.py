"""What the comparing studies measure: laws of the measures, and that networks are as alike as their names say."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ditlab.config import DiTConfig
from ditlab.core.registry import SOLVERS
from ditlab.runs.build import build_dataset
from ditlab.runs.run import load
from studies import conditioning, measures, networks, objectives, scaling
from studies.measures import cost, count_jumps, cpu_of_step, held_out_loss, smoothness, steps_within
from studies.powerlaw import fit_power_law, fits_over_seeds, left_out_r2
from studies.training import FULL, SMOKE, Trained, Workers, base

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
    as_many = [cost(conditioning.quality_config(FULL, 0, *each)).parameters for each in conditioning.WIDTHS.items()]
    ours = cost(conditioning.quality_config(FULL, 0, "adaln-zero")).parameters
    small = [cost(networks.digits_of(SMOKE, 0, each, 1e-3)).parameters for each in networks.DIGITS]
    assert max(small) <= (1 + NEAR) * min(small)
    assert as_many == pytest.approx([ours, ours], rel=NEAR)


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
    trainings = [objectives.config_of(SMOKE, 0, each, 4e-3) for each in objectives.OBJECTIVES]
    assert all(without(each, "process") == without(trainings[0], "process") for each in trainings)
    assert trainings[0].process.times == "uniform"  # as DDPM draws its own
    assert trainings[0].process.shift == 1
    for configure, names in ((networks.config_of, networks.NETWORKS), (networks.digits_of, networks.DIGITS)):
        peers = [configure(SMOKE, 0, each, 4e-3) for each in names]
        assert all(without(each, "network") == without(peers[0], "network") for each in peers)
        assert peers[0].optimizer.kind == "adamw"  # Muon would move the DiT alone


def test_learning_rates_are_chosen_by_what_is_best(monkeypatch):
    figures = {"valid": 0.5, "energy_distance": 1.0}
    better, nearer = figures | {"valid": 0.6, "energy_distance": 9.0}, figures | {"energy_distance": 0.5}
    assert max((figures, better, nearer), key=objectives.goodness) is better
    assert max((figures, nearer), key=objectives.goodness) is nearer
    workers = Workers(Path("unused"), 0, lambda _: None)
    wanted = []

    def train(configs):
        wanted.append(configs)
        return {name: Trained(Path(name), 0.0) for name in configs}

    monkeypatch.setattr(workers, "train", train)
    monkeypatch.setattr(workers, "map", lambda _, jobs: [abs(float(LR_OF.search(str(f))[1]) - 2e-3) for f, _ in jobs])
    rates, chosen, runs = networks.tuned(SMOKE, workers, "digits", ["MLP", "DiT"], networks.digits_of)
    assert chosen == {"MLP": 2e-3, "DiT": 2e-3}
    assert rates["MLP"] == pytest.approx({1e-3: 1e-3, 2e-3: 0, 4e-3: 2e-3})
    assert [run.folder.name for run in runs] == list(wanted[1])
    assert len(wanted[0]) == 2 * len(networks.LRS)
    assert len(wanted[1]) == 2 * len(SMOKE.seeds)


LR_OF = re.compile(r"lr([0-9.e-]+)-seed")


def test_a_larger_network_takes_longer_to_train():
    small, large = (base(SMOKE, 0, network=DiTConfig(dim=dim, depth=depth)) for dim, depth in ((32, 1), (96, 8)))
    assert 0 < cpu_of_step(small) < cpu_of_step(large)


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
    for seed in range(3):
        assert left_out_r2(compute, np.random.default_rng(seed).normal(1, 0.1, 12)) < 0.5


def test_sizes_on_a_line_foretell_one_another():
    compute = np.geomspace(1e10, 1e13, 12)
    loss = 0.2 + 3 * (compute / 1e10) ** -0.35
    assert left_out_r2(compute, loss) > 0.999
    off = loss + np.where(np.arange(12) % 2, 0.5, -0.5)
    assert left_out_r2(compute, off) < fit_power_law(compute, off).r2  # a fit knows what it was fitted to
    assert left_out_r2(compute, np.ones(12)) == 0


def test_fits_over_seeds_hold_the_truth():
    compute, generator = np.geomspace(1e10, 1e13, 12), np.random.default_rng(0)
    losses = [0.2 + 3 * (compute / 1e10) ** -0.35 + generator.normal(0, 0.01, 12) for _ in range(5)]
    figures = fits_over_seeds(compute, losses)
    assert figures["exponent"].low <= 0.35 <= figures["exponent"].high
    assert figures["floor"].low <= 0.2 <= figures["floor"].high
    assert figures["left-out r2"].low > 0.9


def test_too_few_sizes_are_refused():
    with pytest.raises(ValueError, match="needs 5"):
        left_out_r2([1e10, 1e11, 1e12, 1e13], [4, 3, 2, 1])


def test_a_gain_is_of_each_seed_and_not_of_each_pair():
    small, large = scaling.Size(32, 2, 4), scaling.Size(64, 2, 4)
    other = scaling.Size(96, 2, 4)
    loss = {small: [3.0, 3.1, 3.2], large: [2.0, 2.1, 2.2], other: [1.9, 2.0 + 1e-8, 2.1 - 1e-8]}
    figure = scaling.gain(loss, [(small, large), (large, other)])
    assert figure.value == pytest.approx(0.55)
    assert 0 < figure.high - figure.low < 1e-6
    assert figure.interval == "t over 3 seeds"


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
        ((0.9, 0.92), (0.5, 0.51), "confirmed"),
        ((0.5, 0.51), (0.9, 0.92), "contradicted"),
        ((0.5, 0.9), (0.9, 0.5), "not shown here"),
    ],
)
def test_verdicts_follow_from_the_figures(flow, eps, verdict):
    for what in ("valid", "energy_distance"):
        finding = objectives.compare(judged(flow=flow, eps=eps), "eps", what, [25, 49, 100], 1200)
        assert finding.verdict == verdict


@pytest.mark.parametrize(("best", "verdict"), [("U-Net", "confirmed"), ("DiT", "contradicted")])
def test_who_wins_follows_from_the_losses(best, verdict):
    figures = {
        each: [{"loss": (1 + 0.001 * i) * (1 + (each != best)), "valid": 0.5, "energy_distance": 1.0} for i in range(3)]
        for each in ("U-Net", "DiT")
    }
    assert networks.better("A U-Net wins.", figures, "U-Net", "DiT").verdict == verdict


DEEP = replace(SMOKE, depths=(4, 12))


class Given(conditioning.Stability):
    """Losses that are a function of the key, but for a little that each run has of its own."""

    def __init__(self, loss):
        self.keys, self.depths = conditioning.stability_keys(DEEP), DEEP.depths
        drawn = np.random.default_rng(0)
        self.loss = {key: [loss(*key) + shift for shift in drawn.normal((0, 0.01, 0.005), 1e-4)] for key in self.keys}
        self.smooth = {key: [] for key in self.keys}


def test_warm_up_that_matters_contradicts_stability():
    assert conditioning.stable(Given(lambda *_: 0.3)).verdict == "confirmed"
    assert conditioning.stable(Given(lambda kind, depth, warm, lr: 0.3 * (2 - warm))).verdict == "contradicted"


def test_film_fails_when_it_is_deep_if_it_does_more_than_others():
    def verdict(film, zero):
        grown = {"film": film, "adaln-zero": zero}
        return conditioning.start(Given(lambda kind, depth, *_: 0.3 + grown.get(kind, 0) * (depth > 4))).verdict

    assert verdict(0.3, 0.0) == "confirmed"
    assert verdict(0.0, 0.3) == "contradicted"
    assert verdict(0.01, 0.0) == "contradicted"  # by a thirtieth: it is above, and does train
    assert verdict(0.3, 0.6) == "contradicted"  # deep networks do not train, but that is not FiLM's


def test_the_start_matters_if_open_gates_need_the_warm_up():
    def verdict(opened, zero):
        harm = {conditioning.OPEN: opened, "adaln-zero": zero}
        return conditioning.identity(Given(lambda kind, _, warm, *__: 0.3 + harm.get(kind, 0) * (not warm))).verdict

    assert verdict(0.2, 0.0) == "confirmed"
    assert verdict(0.0, 0.0) == "contradicted"
    assert verdict(0.2, 0.2) == "contradicted"


def test_as_many_parameters_can_turn_the_verdict():
    def runs(loss):
        return [{"loss": loss * (1 + shift)} for shift in (0, 0.01, 0.005)]

    plain = {kind: runs(0.3) for kind in conditioning.KINDS}
    verdicts = [
        conditioning.equal(plain, {kind: runs(loss) for kind in conditioning.WIDTHS}, 800).verdict
        for loss in (0.4, 0.2)
    ]
    assert verdicts == ["confirmed", "contradicted"]


def test_a_tier_trains_for_a_part_of_its_steps():
    tier = replace(SMOKE, steps=1000)
    assert scaling.config_of(tier, 0, scaling.SIZES[0]).steps == 75
