"""Run folders harmed by chance: no traceback, no hang, nothing outside touched, no weights but what was read."""

import io
import json
import random
import shutil
import signal
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress

import numpy as np
import pytest
from safetensors import SafetensorError

import ditlab
from ditlab.cli.main import guarded, main
from ditlab.core.errors import InputError
from ditlab.lab.lens.recordings import gate_recordings, losses, picture, previews
from ditlab.lab.server.library import Library
from ditlab.lab.server.live import Watch
from ditlab.runs.folder import RunFolder
from ditlab.train import fit
from tests.reliability.faults import tree
from tests.reliability.harms import HARMS, special
from tests.training.test_fit import Nobody, tiny

PROCESSOR, CLOCK = 5, 120  # seconds of this process, and on the clock for what waits without end
IN_THE_WAY = OSError, ValueError, LookupError, TypeError, RecursionError, SafetensorError  # of another harm
NUMPY = {"F32": np.float32, "F16": np.float16, "I64": np.int64, "F64": np.float64}


class Hang(BaseException):
    """Nothing catches it."""


@contextmanager
def limited():
    """Interrupt what takes too long: by the time of the processor, so that a busy machine changes nothing."""

    def stop(*_):
        raise Hang

    before = [signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, PROCESSOR)
    signal.setitimer(signal.ITIMER_REAL, CLOCK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


# ---- what is done with a run


def pieces(file):
    """(name, where it belongs, array) of a safetensors file, by the format's own description."""
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    offsets = json.loads(header.pop("__metadata__", {}).get("DCP_SHARDING_INFO", "{}"))
    for name, told in header.items():
        first, last = told["data_offsets"]
        array = np.frombuffer(content[8 + size + first : 8 + size + last], NUMPY[told["dtype"]]).reshape(told["shape"])
        yield name, offsets.get(name, {}).get("saved_offsets", [0] * array.ndim), array


def stored(checkpoint, part):
    """The tensors of a part, put together by hand; what no file holds stays NaN."""
    found = {}
    named = sorted(json.loads((checkpoint / "manifest.json").read_text()))
    for file in [name for name in named if name == f"{part}.safetensors" or name.startswith(f"{part}/")]:
        for name, where, array in pieces(checkpoint / file):
            found.setdefault(name, []).append((where, array))
    whole = {}
    for name, parts in found.items():
        ends = [[first + size for first, size in zip(where, array.shape, strict=True)] for where, array in parts]
        whole[name] = np.full([max(axis) for axis in zip(*ends, strict=True)], np.nan, parts[0][1].dtype)
        for where, array in parts:
            whole[name][tuple(slice(a, a + n) for a, n in zip(where, array.shape, strict=True))] = array
    return whole


def load(path, chance):
    """Its weights are those that lie in the files, number by number."""
    weights = chance.choice(["ema", "raw", 0.1])
    run = ditlab.load(path, weights)
    part = {"ema": "ema", "raw": "model", 0.1: "averages"}[weights]
    start = "0.1/" if part == "averages" else ""
    expected = stored(path / f"checkpoints/step-{run.step:08d}", part)
    own = dict(run.process.network.named_parameters())
    for name, weight in own.items():
        np.testing.assert_array_equal(weight.detach().numpy(), expected[start + name], err_msg=name)


def lab(path, _):
    library, folder = Library(path), RunFolder(path)
    library.catalogue()
    for name in library.folders():
        library.describe(name, None, "ema")
    Watch(folder).look()
    for step in previews(folder):
        with suppress(InputError, OSError):
            picture(folder, step)
    losses(folder)
    gate_recordings(folder)


def command(*words):
    def act(path, _):
        return main([word.format(run=path) for word in words])

    return act


resume = command("train", "--resume", "{run}", "--steps", "4")
further = command("train", "--resume", "{run}", "--steps", "5")
sample = command("sample", "{run}", "--n", "2", "--steps", "1", "--out", "{run}/drawn.png")
doctor = command("doctor", "{run}")
ema = command("ema", "{run}", "--sigma-rel", "0.15", "--out", "{run}/averaged")
QUICK = [load, load, load, load, lab, resume, sample, ema]
SLOW = [*QUICK, further, doctor]


def works_as_it_says(path):
    """Whether a configuration is another one that holds: to train by it may take any time, as it says."""
    with suppress(InputError, OSError):
        told, whole = (RunFolder(place).read_config() for place in (path, path.parent / "whole"))
        return told.model_copy(update={"data": whole.data}) == whole
    return True


# ---- the laws


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A whole run, a home with what must stay, and every act done once on a run that nothing happened to."""
    place = tmp_path_factory.mktemp("fuzz")
    fit(
        tiny(steps=4, checkpoint_every=2, preview_every=2, record_every=2), RunFolder(place / "whole"), watcher=Nobody()
    )
    shutil.copytree(place / "whole", place / "home")
    for name in (".ssh/id", ".git/config", "samples/.hidden", "samples/step-00000099.png", "checkpoints/.keep"):
        (place / "home" / name).parent.mkdir(exist_ok=True)
        (place / "home" / name).write_text(name)
    for act in dict.fromkeys(SLOW):
        shutil.copytree(place / "whole", place / "run")
        assert done(act, place / "run", random.Random(0)) in (0, 1 if act is doctor else 0), act
        shutil.rmtree(place / "run")
    return place


def done(act, path, chance):
    """The status of an act, which says what is wrong in a line."""
    said = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status = guarded(lambda _: act(path, chance) or 0, [])
    lines = said.getvalue().splitlines()
    assert "Traceback" not in said.getvalue()
    assert status in (0, 1, 2)
    assert status != 2 or (lines[-1].startswith("ditlab: ") and len(lines[-1]) < 4000), lines
    return status


def one(place, number, acts):
    """An input, from its number alone; what went wrong with it, or None."""
    chance = random.Random(number)
    run, kinds = place / "run", chance.choices(HARMS, k=chance.choice([1, 1, 1, 2, 3]))
    shutil.copytree(place / "whole", run)
    kinds.sort(key=lambda harm: harm is special)  # a pipe comes last, for harms wait for what they read
    outside, act = {name: tree(place / name) for name in ("home", "whole")}, chance.choice(acts)
    try:
        for harm in kinds:
            with suppress(*IN_THE_WAY):
                harm(run, chance)
        if act in (resume, further, sample) and not works_as_it_says(run):
            act = load
        with limited():
            done(act, run, chance)
        assert {name: tree(place / name) for name in outside} == outside
        assert sorted(path.name for path in place.iterdir()) == ["home", "run", "whole"]
    except (Exception, Hang) as error:
        names = [getattr(thing, "__name__", "command") for thing in (*kinds, act)]
        return f"{number} {names}: {type(error).__name__}: {str(error)[:300]}"
    finally:
        shutil.rmtree(run)
    return None


def test_harmed_run_folders_end_in_a_line(place):
    wrong = [found for number in range(300) if (found := one(place, number, QUICK))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(3, 50))
def test_more_harmed_run_folders_end_in_a_line(place, hundred):
    wrong = [found for i in range(100) if (found := one(place, 100 * hundred + i, SLOW))]
    assert not wrong, "\n".join(wrong)
