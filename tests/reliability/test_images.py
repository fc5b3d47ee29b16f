"""The images that people's folders hold: bad ones are counted, listed, bounded in share and never silently dropped."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from tests.images import folder_of, odd_but_good, spoil

GOOD = 1000

TRAIN = """
    import resource, sys
    from ditlab.cli.main import main
    status = main(["train", "images", *sys.argv[1:], "--data.image-size", "8", "--network.dim", "16", "--network.depth",
        "1", "--steps", "3", "--batch-size", "16", "--sampling.steps", "1", "--precision", "fp32"])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    sys.exit(status)
"""


def train(root, where, *words):
    """Train on a folder in a process of its own; the process, and the most memory it had."""
    where.mkdir()
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TRAIN), "--data.path", str(root), *words],
        cwd=where,
        env=os.environ | {"DITLAB_CACHE": str(where / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return child, int(child.stdout.split()[-1])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of good images, one with bad ones among them, and the names of the bad ones with their reasons."""
    here = tmp_path_factory.mktemp("bad")
    good = folder_of(here / "good", [f"c{i}" for i in range(4)], each=GOOD // 4, size=(12, 12))
    mixed = folder_of(here / "mixed", [f"c{i}" for i in range(4)], each=GOOD // 4, size=(12, 12))
    odd = odd_but_good(mixed / "c1")
    bad = {f"c2/{name}": reason for name, reason in spoil(mixed / "c2").items()}
    (mixed / "c3" / "round").symlink_to("..")
    return good, mixed, odd, bad


def test_bad_images(folders, tmp_path):
    """Among 1,000 good images the bad ones are listed, all of them and no other; memory is what it is without them."""
    good, mixed, odd, bad = folders
    without, memory_without = train(good, tmp_path / "without")
    with_bad, memory_with = train(mixed, tmp_path / "with", "--data.bad-share", "0.05")
    assert without.returncode == 0, without.stderr
    assert with_bad.returncode == 0, with_bad.stderr
    run = tmp_path / "with" / "runs" / "images"
    listed = [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]
    assert len(listed) == len(bad)
    assert {entry["path"] for entry in listed} == set(bad)
    for entry in listed:
        assert entry["reason"].startswith(bad[entry["path"]]), entry
    assert (run / "checkpoints" / "LATEST").read_text().strip() == "step-00000003"
    assert f"{GOOD + len(odd) + sum(reason != 'no file' for reason in bad.values()):,} colour images" in with_bad.stderr
    assert abs(memory_with - memory_without) < 48 * 2**20  # one of 20,000×20,000 pixels is 1,600 MiB


def test_bad_images_past_the_share_stop_the_run(folders, tmp_path):
    _, mixed, odd, bad = folders
    child, _ = train(mixed, tmp_path / "refused")
    assert child.returncode == 2
    last = child.stderr.splitlines()[-1]
    assert f"{len(bad)} of {GOOD + len(odd) + len(bad):,} files cannot be used" in last
    assert "quarantine.jsonl" in last
    assert not (tmp_path / "refused" / "runs" / "images" / "config.json").exists()
