import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ditlab.machine import threads
from ditlab.machine.threads import limit, quickest, share

CGROUP_V1 = Path("/sys/fs/cgroup/cpu")


def group(root, place, **files):
    folder = root / "sys/fs/cgroup" / place
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def of_process(root, *lines):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))


def test_no_control_groups_grant_everything(tmp_path):
    assert share(tmp_path) == float("inf")


@pytest.mark.parametrize(
    ("inner", "outer", "granted"),
    [
        ("max 100000", "max 100000", float("inf")),
        ("150000 100000", "max 100000", 1.5),
        ("max 100000", "50000 100000", 0.5),
    ],
)
def test_the_least_of_a_control_group_and_those_around_it(tmp_path, inner, outer, granted):
    of_process(tmp_path, "0::/slice/job")
    group(tmp_path, "slice", cpu__max=f"{outer}\n")
    group(tmp_path, "slice/job", cpu__max=f"{inner}\n")
    assert share(tmp_path) == granted


def test_a_container_sees_its_own_group_as_the_root(tmp_path):
    of_process(tmp_path, "0::/")
    group(tmp_path, ".", cpu__max="200000 100000\n")
    assert share(tmp_path) == 2


@pytest.mark.parametrize(("quota", "granted"), [("-1", float("inf")), ("300000", 3.0)])
def test_control_groups_of_the_first_version(tmp_path, quota, granted):
    of_process(tmp_path, "7:memory:/elsewhere", "4:cpu,cpuacct:/job", "0::/")
    group(tmp_path, "cpu,cpuacct/job", cpu__cfs_quota_us=f"{quota}\n", cpu__cfs_period_us="100000\n")
    assert share(tmp_path) == granted


def test_no_more_threads_than_cores():
    assert 1 <= limit() <= (os.cpu_count() or 1)


def test_one_core_of_a_control_group_is_one_thread():
    """A real group, with a process in it."""
    script = "import os; open(f'{FOLDER}/{FILE}', 'w').write(str(os.getpid()))\n"
    script += "from ditlab.machine.threads import limit; print(limit())"
    if (os.cpu_count() or 1) < 2:
        pytest.skip("a machine of one core")
    v1 = (CGROUP_V1 / "cpu.cfs_quota_us").exists() or CGROUP_V1.is_dir()
    folder = (CGROUP_V1 if v1 else Path("/sys/fs/cgroup")) / f"ditlab-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group may be made here: {error}")
    try:
        try:
            if v1:
                (folder / "cpu.cfs_period_us").write_text("100000")
                (folder / "cpu.cfs_quota_us").write_text("100000")
            else:
                (folder / "cpu.max").write_text("100000 100000")
        except OSError as error:
            pytest.skip(f"no share of the processor may be set here: {error}")
        script = script.replace("{FOLDER}", str(folder)).replace("{FILE}", "cgroup.procs")
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        found = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
        )
        assert found.stdout.split() == ["1"]
    finally:
        folder.rmdir()


@pytest.fixture
def three_free(monkeypatch):
    """Eight threads, of which those beyond the third wait for others; ``asked`` are the numbers that were tried."""
    asked = []

    def trial(number, x, w):
        asked.append(number)
        return 1 / number if number <= 3 else 100.0

    monkeypatch.setattr(threads, "_trial", trial)
    monkeypatch.setattr(threads, "chosen_by_user", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    return asked


def test_fewer_threads_where_others_compute(three_free):
    number, gain = quickest(64, 64, 8)
    assert number == 2
    assert gain == pytest.approx(200)
    assert set(three_free) == {8, 4, 2, 1}


def test_all_threads_where_nobody_else_does(three_free):
    assert quickest(64, 64, 3) == (3, 1.0)


def test_what_the_environment_says_is_what_is_used(three_free, monkeypatch):
    monkeypatch.setattr(threads, "chosen_by_user", lambda: True)
    assert quickest(64, 64, 2) == (8, 1.0)
    assert three_free == []


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with threads.threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
