"""Shapes in signatures are checked while parts are tested; each worker keeps to one thread."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping
import pytest
import torch

import tests.typechecker  # noqa: F401 - the import hook below finds it by this name

jaxtyping.install_import_hook("ditlab", "tests.typechecker.check")
torch.set_num_threads(1)


HERE = Path(__file__).parent
PROGRAMS = "cli", "docs", "doctor", "lab", "reliability", "studies"  # run whole, where checks are half the time
PARTS = {HERE / "lab/test_lens.py", HERE / "lab/test_any_network.py"}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Before any fixture of the test is made: shapes are checked if it is of a part, and not if it runs a program."""
    whole = item.path.relative_to(HERE).parts[0] in PROGRAMS and item.path not in PARTS
    jaxtyping.config.update("jaxtyping_disable", whole)


@pytest.fixture
def unchecked():
    """Shape checks off until the next test, so that what users would see of a wrong argument is seen here."""
    jaxtyping.config.update("jaxtyping_disable", True)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Prepared images go elsewhere than into the cache of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DITLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
