"""Training in several processes that are killed, stopped and spoiled, on one machine."""

import json
import os
import pickle
import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

import ditlab
from ditlab.cli.main import VERBS
from ditlab.core.errors import DamagedCheckpoint
from ditlab.evaluation.evaluate import evaluate
from ditlab.interop.exports import export_run
from ditlab.runs.checkpoint import read_part, step_name
from ditlab.runs.folder import RunFolder
from tests.images import folder_of
from tests.reliability.faults import asked, tree

TINY = ["--batch-size", "12", "--precision", "fp32", "--checkpoint-every", "2", "--keep-last", "3", "--log-every", "5"]
TINY += ["--record-every", "10", "--preview-every", "50", "--sampling.steps", "1", "--network.dim", "16"]
TINY += ["--network.depth", "1", "--network.heads", "2"]
KINDS = ["ddp", "fsdp"]


@pytest.fixture(scope="module")
def jobs():
    """Ask a process with torch imported to run jobs in forks of itself."""

    class Jobs:
        def start(self, folder, words, world, log="log", **faults):
            words = words if words[0] in VERBS else ["train", *words]
            line = {"folder": str(folder), "words": words, "world": world, "log": str(folder / log)}
            send(line | {"faults": faults})
            self.forks = answer()
            return self.forks

        def end(self):
            return answer()

        def kill(self):
            os.killpg(self.forks[0], signal.SIGKILL)
            return answer()

        def run(self, folder, words, world, log="log", **faults):
            self.start(folder, words, world, log, **faults)
            ended = self.end()
            told = "".join((folder / f"{log}.{rank}.err").read_text() for rank in range(world))
            return ended, told

    with asked("tests.reliability.ranks") as (send, answer):
        yield Jobs()


def seen(folder, log, world):
    """What was trained on: the rows of each step's batch, all processes' shares one after the other."""
    shares = [(folder / f"{log}.{rank}").read_text().splitlines() for rank in range(world)]
    return [" ".join(rows) for rows in zip(*shares, strict=True)]


def wait_for(file, lines):
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_bytes().count(b"\n") >= lines) and time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("kind", "kills"),
    [("ddp", 2), *[pytest.param(kind, 20, marks=pytest.mark.slow) for kind in KINDS]],
)
def test_kill_9_of_a_job_of_two(jobs, tmp_path, kind, kills):
    chance = random.Random(f"{kind} {kills}")
    words = ["circles", *TINY, "--steps", str(10 * kills), "--parallel", kind]
    ended, told = jobs.run(tmp_path, [*words, "--name", "whole"], 2, "whole")
    assert ended == [0, 0], told

    def again():
        return ["--resume", "cut"] if (tmp_path / "runs/cut/config.json").exists() else [*words, "--name", "cut"]

    for kill in range(kills):
        if kill % 2:
            jobs.start(tmp_path, again(), 2, "cut", die_at=chance.randrange(40))
        else:
            forks = jobs.start(tmp_path, again(), 2, "cut")
            log = tmp_path / "cut.0"
            wait_for(log, (log.read_bytes().count(b"\n") if log.exists() else 0) + chance.randrange(1, 6))
            time.sleep(0.04 * chance.random())
            os.killpg(forks[0], signal.SIGKILL)
        assert jobs.end() == [-signal.SIGKILL] * 2
    ended, told = jobs.run(tmp_path, again(), 2, "cut")
    assert ended == [0, 0], told
    a, b = tree(tmp_path / "runs/whole"), tree(tmp_path / "runs/cut")
    assert a.keys() == b.keys()
    for name in a:
        assert a[name] == b[name] or name == "metrics.jsonl", name  # which has durations


def test_ordered_batches_on_one_two_and_three_processes(jobs, tmp_path):
    for world in (1, 2, 3):
        ended, told = jobs.run(
            tmp_path, ["circles", *TINY, "--steps", "3", "--name", f"of{world}"], world, f"of{world}"
        )
        assert ended == [0] * world, told
    one = seen(tmp_path, "of1", 1)
    assert len(set(" ".join(one).split())) == 36
    assert seen(tmp_path, "of2", 2) == one
    assert seen(tmp_path, "of3", 3) == one


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [("muon", "fp32"), ("adamw", "fp32"), pytest.param("adamw", "fp16", marks=pytest.mark.slow)],
)
def test_ddp_and_fsdp_agree(jobs, tmp_path, optimizer, precision, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [precision if word == "fp32" else word for word in TINY]
    for kind in KINDS:
        words = ["circles", "--optimizer", optimizer, *small, "--steps", "5", "--parallel", kind, "--name", kind]
        ended, told = jobs.run(tmp_path, words, 2, kind)
        assert ended == [0, 0], told
    for weights in ("ema", "raw"):
        a, b = (ditlab.load(kind, weights=weights).process.network.state_dict() for kind in KINDS)
        assert max(float((a[name] - b[name]).abs().max()) for name in a) < (1e-3 if optimizer == "muon" else 1e-6)


def test_other_world_size(jobs, tmp_path):
    """A run goes from two processes to three, one and two, and each takes up the very numbers that were saved."""
    words = ["circles", *TINY, "--steps", "2", "--parallel", "fsdp", "--name", "run"]
    assert jobs.run(tmp_path, words, 2)[0] == [0, 0]
    folder = RunFolder(tmp_path / "runs/run")
    export_run(folder.path, "ditlab", tmp_path / "runs/alone")
    assert (tmp_path / "runs/alone/checkpoints/step-00000002/model.safetensors").is_file()
    assert torch.equal(ditlab.load(tmp_path / "runs/alone").sample(2), ditlab.load(folder.path).sample(2))
    parts = ("model", "ema", "optimizer", "averages")
    for world, steps in ((3, 4), (1, 6), (2, 8)):
        before = folder.checkpoints / step_name(steps - 2)
        saved = {part: read_part(before, part) for part in parts}
        # A loss that is not a number leaves all as it was: what is saved next is what was loaded.
        words = ["--resume", "run", "--steps", str(steps)]
        for step in (1, 2):
            ended, told = jobs.run(tmp_path, [*words[:-1], str(steps - 2 + step)], world, nan_at=[0, 1])
            assert ended == [0] * world, told
        after = folder.checkpoints / step_name(steps)
        assert (after / "model").is_dir() == (world > 1)
        for part in parts:
            now = read_part(after, part)
            assert now.keys() == saved[part].keys()
            assert all(torch.equal(now[name], saved[part][name]) for name in now), (world, part)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_on_one_rank(jobs, tmp_path, kind):
    words = ["circles", *TINY, "--steps", "5", "--parallel", kind, "--name", "run"]
    ended, told = jobs.run(tmp_path, words, 2, nan_at=[1, 3])
    assert ended == [0, 0], told
    lines = RunFolder(tmp_path / "runs/run").read_metrics()
    assert [line["step"] for line in lines if "skipped" in line] == [3]
    assert told.count("step 3 was not learned from") == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_dead_or_stopped_rank(jobs, tmp_path, number):
    words = ["circles", *TINY, "--steps", "10000", "--stall-after", "3", "--name", "run"]
    forks = jobs.start(tmp_path, words, 2)
    wait_for(tmp_path / "log.1", 6)
    os.kill(forks[1], number)
    begun = time.monotonic()
    ended = jobs.end()
    assert ended == [1, -signal.SIGKILL]
    assert time.monotonic() - begun < 60
    told = (tmp_path / "log.0.err").read_text()
    assert "is gone" in told or "no step was finished" in told
    assert "loop.py" in (tmp_path / "runs/run/stalled.txt").read_text()
    folder = RunFolder(tmp_path / "runs/run")
    ended, told = jobs.run(tmp_path, ["--resume", "run", "--steps", str(folder.step + 2)], 2)
    assert ended == [0, 0], told


def test_sigterm_to_one_of_them_stops_all_after_the_same_step(jobs, tmp_path):
    forks = jobs.start(tmp_path, ["circles", *TINY, "--steps", "10000", "--name", "run"], 2)
    wait_for(tmp_path / "log.1", 4)
    os.kill(forks[1], signal.SIGTERM)
    assert jobs.end() == [143, 143]
    assert (tmp_path / "log.0.err").read_text().count("saved") == 1


@pytest.mark.slow
def test_last_save_longer_than_the_patience(jobs, tmp_path):
    """The second process, which has nothing to write, waits for the first one as long as that gives signs of life."""
    words = ["circles", *TINY, "--steps", "10000", "--checkpoint-every", "10000", "--stall-after", "5"]
    forks = jobs.start(tmp_path, [*words, "--name", "run"], 2, slow=1.2)
    wait_for(tmp_path / "log.1", 4)
    os.kill(forks[0], signal.SIGTERM)
    assert jobs.end() == [143, 143], (tmp_path / "log.1.err").read_text()
    assert (tmp_path / "log.0.err").read_text().count("saved") == 1


def test_accumulated_over_processes(jobs, tmp_path, monkeypatch):
    """The gradient is that of the whole batch, however many processes and parts it is divided among."""
    monkeypatch.chdir(tmp_path)
    words = ["circles", "--optimizer", "adamw", *TINY, "--steps", "5"]
    ways = {"one": (1, []), "ddp": (2, ["--accumulate", "3"]), "fsdp": (2, ["--accumulate", "3", "--parallel", "fsdp"])}
    for name, (world, more) in ways.items():
        ended, told = jobs.run(tmp_path, [*words, *more, "--name", name], world, name, steady=True)
        assert ended == [0] * world, told
    one, *others = (ditlab.load(name, weights="raw").process.network.state_dict() for name in ways)
    for other in others:
        assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-5


def test_a_run_that_went_on_saves_the_same_bytes(jobs, tmp_path):
    """Of shards, which name the tensors in them in the order they came in."""
    words = ["circles", *TINY, "--steps", "4", "--parallel", "fsdp"]
    for name in ("whole", "cut"):
        assert jobs.run(tmp_path, [*words, "--name", name], 2)[0] == [0, 0]
    checkpoints = tmp_path / "runs/cut/checkpoints"
    shutil.rmtree(checkpoints / step_name(4))
    (checkpoints / "LATEST").write_text(step_name(2))
    assert jobs.run(tmp_path, ["--resume", "cut"], 2)[0] == [0, 0]
    a, b = tree(tmp_path / "runs/whole/checkpoints"), tree(checkpoints)
    assert len(a) > 10
    assert a == b


def test_samples_and_figures_are_those_of_one_process(jobs, tmp_path):
    words = ["digits", *TINY, "--steps", "2", "--network.patch-size", "4", "--name", "run"]
    assert jobs.run(tmp_path, words, 1)[0] == [0]
    drawing = ["run", "--steps", "2", "--solver", "euler"]
    measuring = [*drawing, "--n", "101", "--features", "classifier", "--nll", "--nll-n", "65", "--json"]
    figures, samples = {}, {}
    for world in (1, 2):
        ended, told = jobs.run(tmp_path, ["sample", *drawing, "--n", "5", "--out", f"{world}.npz"], world)
        assert ended == [0] * world, told
        samples[world] = np.load(tmp_path / f"{world}.npz")["samples"]
        ended, told = jobs.run(tmp_path, ["eval", *measuring], world, f"eval{world}")
        assert ended == [0] * world, told
        figures[world] = json.loads((tmp_path / f"eval{world}.0.err").read_text().splitlines()[-1])
    assert np.array_equal(samples[1], samples[2])
    assert (figures[1]["nll_n"], figures[1]["features"]) == (65, "classifier")
    assert figures[1] == figures[2]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_measured_on_the_way_is_that_of_one_process(jobs, tmp_path, kind):
    """And the training of two processes does not feel that it is measured."""
    words = ["digits", *TINY, "--steps", "2", "--network.patch-size", "4", "--parallel", kind]
    for name, more in (("with", ["--eval-every", "2", "--eval-n", "101"]), ("without", [])):
        ended, told = jobs.run(tmp_path, [*words, *more, "--name", name], 2)
        assert ended == [0, 0], told
    kept, plain = (tree(tmp_path / "runs" / name / "checkpoints") for name in ("with", "without"))
    assert len(plain) > 4
    assert {name: body for name, body in kept.items() if name.endswith(".safetensors")} == {
        name: body for name, body in plain.items() if name.endswith(".safetensors")
    }
    run = ditlab.load(tmp_path / "runs/with")
    (told,) = (line["eval"] for line in run.folder.read_metrics() if "eval" in line)
    after = evaluate(run, 101, **run.config.sampling.model_dump())
    assert "frechet" in told
    for name, value in told.items():
        if isinstance(value, float):
            assert after[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_compiled_and_computed_again(jobs, tmp_path, kind):
    words = ["circles", *TINY, "--steps", "2", "--parallel", kind, "--recompute", "--compile"]
    ended, told = jobs.run(tmp_path, words, 2)
    assert ended == [0, 0], told


def refused(jobs, folder, words, reason, **faults):
    """Both end with status 2, and what is wrong is said once."""
    for left in folder.glob("refused.*"):
        left.unlink()
    ended, told = jobs.run(folder, words, 2, "refused", **faults)
    assert ended == [2, 2], told
    assert told.count("ditlab:") == 1, told
    assert reason in told


def test_batch_that_cannot_be_divided(jobs, tmp_path):
    words = ["circles", *TINY, "--steps", "1", "--batch-size", "5"]
    refused(jobs, tmp_path, words, "cannot be divided among 2 processes")


def test_one_process_cannot_prepare_the_data(jobs, tmp_path):
    """What is wrong on the last one's machine alone is said by the first, which does not go on waiting."""
    folder_of(tmp_path / "photos")
    (tmp_path / "file").touch()
    words = ["images", *TINY, "--steps", "1", "--data.path", "photos", "--data.image-size", "8"]
    words += ["--network.patch-size", "4"]
    refused(jobs, tmp_path, words, "file", elsewhere={"DITLAB_CACHE": str(tmp_path / "file")})


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_checkpoint(jobs, tmp_path, kind):
    words = ["circles", *TINY, "--steps", "2", "--parallel", kind, "--name", "run"]
    assert jobs.run(tmp_path, words, 2)[0] == [0, 0]
    file = RunFolder(tmp_path / "runs/run").checkpoints / step_name(2) / "state.json"
    file.write_text(file.read_text().replace("guard", "draug"))
    refused(jobs, tmp_path, ["--resume", "run", "--steps", "3"], "no checkpoint")


def test_errors_cross_from_process_to_process():
    """What a checkpoint is refused for reaches the others as it was said."""
    error = pickle.loads(pickle.dumps(DamagedCheckpoint("state.json is damaged")))
    assert (str(error), error.reason) == (str(DamagedCheckpoint("state.json is damaged")), "state.json is damaged")


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (["--seed", "5"], "--seed is 0 in process 0 and 5 in process 1"),
        (["--lr", "0.001"], "--lr is 0.004 in process 0 and 0.001 in process 1"),
        (["--accumulate", "2"], "--accumulate is 1 in process 0"),
        (["--steps", "2"], "--steps is 1 in process 0 and 2 in process 1"),
        (["--name", "b"], "--name is a in process 0 and b in process 1"),
        (["--optimizer", "adamw"], "--optimizer"),
    ],
)
def test_processes_that_were_asked_for_different_things_do_not_train(jobs, tmp_path, other, named):
    words = ["circles", *TINY, "--steps", "1", "--name", "a"]
    refused(jobs, tmp_path, words, named, others=["train", *words, *other])
    assert not (tmp_path / "runs").exists()


def test_processes_at_different_verbs_or_versions_do_not_begin(jobs, tmp_path):
    words = ["circles", *TINY, "--steps", "1", "--name", "a"]
    refused(jobs, tmp_path, words, "the verb is train in process 0", others=["sample", "a"])
    refused(jobs, tmp_path, words, "torch is", newer="torch 3")


def test_processes_that_see_other_pixels_under_the_same_names_do_not_train(jobs, tmp_path):
    """The names, the sizes in bytes and the times of the files are the same; one pixel is not."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        folder_of(tmp_path / name / "photos")
    file = next((tmp_path / "b/photos").rglob("*.png"))
    before, pixels = file.stat(), np.array(Image.open(file))
    for value in range(256):  # one that compresses to as many bytes
        pixels[0, 0] = value
        Image.fromarray(pixels).save(file)
        if file.stat().st_size == before.st_size and not np.array_equal(
            pixels, np.array(Image.open(tmp_path / "a" / file.relative_to(tmp_path / "b")))
        ):
            break
    assert file.stat().st_size == before.st_size
    words = ["images", *TINY, "--steps", "1", "--data.path", "photos", "--data.image-size", "8", "--name", "run"]
    words += ["--network.patch-size", "4"]
    refused(jobs, tmp_path, words, "the data is", apart=[str(tmp_path / "a"), str(tmp_path / "b")])


def test_processes_that_would_draw_or_measure_other_weights_do_not(jobs, tmp_path):
    for seed in ("0", "1"):
        (tmp_path / seed).mkdir()
        words = ["circles", *TINY, "--steps", "2", "--name", "run", "--seed", seed]
        assert jobs.run(tmp_path / seed, words, 1)[0] == [0]
    apart = [str(tmp_path / "0"), str(tmp_path / "1")]
    for words in (["sample", "run", "--n", "2"], ["eval", "run", "--n", "4"]):
        refused(jobs, tmp_path, words, "the checkpoint is 2", apart=apart)
    refused(jobs, tmp_path, ["--resume", "run", "--steps", "3"], "--seed is 0 in process 0 and 1", apart=apart)


def test_a_run_that_one_process_alone_cannot_find_is_said_by_all(jobs, tmp_path):
    for name in ("there", "nothing"):
        (tmp_path / name).mkdir()
    assert jobs.run(tmp_path / "there", ["circles", *TINY, "--steps", "2", "--name", "run"], 1)[0] == [0]
    apart = [str(tmp_path / name) for name in ("there", "nothing")]
    for words in (["--resume", "run", "--steps", "3"], ["sample", "run"]):
        refused(jobs, tmp_path, words, "no run at run", apart=apart)


def test_who_is_missing_is_said_while_it_is_waited_for(jobs, tmp_path):
    words = ["circles", *TINY, "--steps", "1", "--name", "run"]
    jobs.start(tmp_path, words, 2, patience=0.2, alone=True)
    told = wait_for_words(tmp_path / "log.0.err", "process 1 of 2 did not come to 127.0.0.1:")
    assert "MASTER_PORT" in told
    assert "waiting for" in told
    told = wait_for_words(tmp_path / "log.1.err", "process 1 of 2 finds nobody at 127.0.0.1:")
    assert "Connection refused" in told
    jobs.kill()


def wait_for_words(file, words):
    deadline = time.monotonic() + 60
    while not (file.exists() and words in file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert words in file.read_text()
    return file.read_text()


@pytest.mark.parametrize("verb", ["sample", "eval"])
def test_a_process_that_is_killed_while_it_draws_or_measures_ends_the_others_in_a_line(jobs, tmp_path, verb):
    words = ["circles", *TINY, "--steps", "2", "--name", "run"]
    assert jobs.run(tmp_path, words, 1)[0] == [0]
    ended, told = jobs.run(tmp_path, [verb, "run", "--n", "4"], 2, "drawn", dies_drawing=True)
    assert ended == [1, -signal.SIGKILL], told
    assert "another of the 2 processes is gone" in told
    assert "Traceback" not in told
    assert told.count("ditlab:") == 1
