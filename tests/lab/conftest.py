"""Small real runs to look inside, trained once for each worker."""

import pytest

from ditlab.cli.main import main
from ditlab.config import Config
from ditlab.fit import fit
from ditlab.recipes import RECIPES
from ditlab.run import RunFolder

EVERY = {"checkpoint_every": 20, "preview_every": 20, "record_every": 10, "log_every": 10}
RUNS = {
    "circles": {"steps": 40, "batch_size": 32, "precision": "fp32"} | EVERY,
    "digits": {"steps": 20, "batch_size": 32, "precision": "fp32"} | EVERY,
    "points": {"steps": 20, "batch_size": 64} | EVERY,
}


class Quiet:
    def begin(self, done, steps):
        pass

    def progress(self, step, loss, images_per_s, seconds_left):
        pass


def train_into(folder, config: Config):
    fit(RunFolder(folder), config, Quiet())
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder with the runs circles, digits, points and unet."""
    folder = tmp_path_factory.mktemp("lab") / "runs"
    for name, changes in RUNS.items():
        train_into(folder / name, Config(**(RECIPES[name]().model_dump() | changes)))
    unet = RECIPES["circles"]().model_dump() | {"network": {"kind": "unet", "width": 8}, "steps": 2, "batch_size": 4}
    train_into(folder / "unet", Config(**(unet | {"precision": "fp32"})))
    return folder


@pytest.fixture(scope="session")
def exported(runs, tmp_path_factory):
    """The page of the run circles as one file, with fewer inputs and times than users get."""
    out = tmp_path_factory.mktemp("export") / "lesson.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ditlab.lab.export.INPUTS", ("data:0", "data:1"))
        patch.setattr("ditlab.lab.export.TIMES", (0.3, 0.5))
        assert main(["lab", str(runs / "circles"), "--export", str(out)]) == 0
    return out
