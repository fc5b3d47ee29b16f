"""A folder of runs: what cannot be read is told of with its reason, the rest is served, and little is read twice."""

import asyncio
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from ditlab.cli.main import main
from ditlab.core.errors import InputError, Missing
from ditlab.lab.lens.recordings import BINS, losses, outline
from ditlab.lab.server import live
from ditlab.lab.server.api import create_app
from ditlab.lab.server.library import Library
from ditlab.lab.server.worker import Worker
from ditlab.runs import metrics
from ditlab.runs.folder import RunFolder
from tests.lab.shell import PATIENCE, ask, eventually, serving
from tests.lab.test_page import opened, serve
from tests.lab.test_worker import Gate, here
from tests.training.test_fit import tiny


def begun(path):
    """A run folder that has a configuration and a line of metrics, and no network."""
    folder = RunFolder(path)
    folder.write_config(tiny("points"))
    folder.append_metrics({"step": 0, "seconds": 0.0})
    return folder


def pipe(folder):
    folder.config_file.unlink()
    os.mkfifo(folder.config_file)


def folder_instead(folder):
    folder.config_file.unlink()
    folder.config_file.mkdir()


def deep(folder):
    folder.config_file.write_text("[" * 100_000)


def unknown_kind(folder):
    folder.config_file.write_text('{"data": {"kind": "clouds"}}')


def no_text(folder):
    folder.config_file.write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize("damage", [pipe, folder_instead, deep, unknown_kind, no_text])
def test_one_damaged_run_keeps_no_others_from_being_served(tmp_path, damage):
    begun(tmp_path / "b")
    damage(begun(tmp_path / "a"))
    library = Library(tmp_path)
    found = library.catalogue()
    assert [run["name"] for run in found["runs"]] == ["b"]
    assert library.first == found["runs"][0]["id"]
    ((name, why),) = library.damaged()
    assert found["damaged"] == [{"name": name, "why": why}]
    assert name == "a"
    assert "config.json" in why
    assert "\n" not in why


def test_the_terminal_and_the_page_say_which_runs_are_damaged(tmp_path, monkeypatch, capfd):
    """Once the lab is up: nobody waits for it."""
    unknown_kind(begun(tmp_path / "a"))
    begun(tmp_path / "b")

    def served(app, sock, on_ready):
        sock.close()
        on_ready("http://here/")
        return 0

    monkeypatch.setattr("ditlab.lab.server.serve.serve", served)
    assert main(["lab", str(tmp_path), "--port", "0"]) == 0
    said = []
    eventually(lambda: said.append(capfd.readouterr().err) or "left out" in "".join(said))
    lines = "".join(said).splitlines()
    assert lines[1] == f"The lab looks at the runs in {tmp_path}."
    assert lines[3].startswith(f"{tmp_path}/a is left out: {tmp_path}/a/config.json: ")


@pytest.mark.slow
def test_a_damaged_run_is_offered_and_cannot_be_chosen(chromium, runs, tmp_path):
    (tmp_path / "good").symlink_to(runs / "points")
    unknown_kind(begun(tmp_path / "bad"))
    with serve(tmp_path) as url, opened(chromium, url, viewport={"width": 375, "height": 800}) as page:
        option = page.get_by_role("combobox", name="Run").locator("option:disabled")
        option.wait_for(state="attached")
        assert option.inner_text().startswith("bad (damaged: ")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_a_run_that_may_not_be_read_is_listed_as_damaged(tmp_path, monkeypatch):
    """Also one in which the program is wrong about what it finds."""
    folders = [begun(tmp_path / name) for name in ("a", "b", "c")]

    def refuse(folder):
        if folder.path == folders[0].path:
            raise PermissionError(13, "Permission denied", str(folder.config_file))
        if folder.path == folders[1].path:
            raise ZeroDivisionError("what was not thought of")
        return tiny("points")

    monkeypatch.setattr(RunFolder, "read_config", refuse)
    library = Library(tmp_path)
    assert [run["name"] for run in library.catalogue()["runs"]] == ["c"]
    reasons = dict(library.damaged())
    assert "Permission denied" in reasons["a"]
    assert "what was not thought of" in reasons["b"]


def test_a_folder_of_nothing_but_damage_says_what_is_wrong(tmp_path):
    unknown_kind(begun(tmp_path / "a"))
    with pytest.raises(InputError, match=r"no run in .*; a cannot be opened: .*kind"):
        Library(tmp_path)


def test_a_name_that_is_no_text_is_served_like_any_other(tmp_path):
    begun(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")))
    library = Library(tmp_path)
    assert json.dumps(library.catalogue())
    assert library.folder(library.first).read_config() == tiny("points")


def test_runs_come_go_and_are_mended_while_the_lab_looks_on(tmp_path):
    begun(tmp_path / "b")
    library = Library(tmp_path)
    begun(tmp_path / "a")
    assert [run["name"] for run in library.catalogue()["runs"]] == ["a", "b"]
    gone = library.catalogue()["runs"][0]["id"]
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(Missing):
        library.folder(gone)
    good = (tmp_path / "b" / "config.json").read_text()
    unknown_kind(RunFolder(tmp_path / "b"))
    with pytest.raises(InputError, match="b cannot be opened"):
        library.folder(library.first)
    (tmp_path / "b" / "config.json").write_text(good)
    (tmp_path / "b" / "checkpoints" / "step-00000007").mkdir(parents=True)
    (run,) = library.catalogue()["runs"]
    assert (run["name"], run["step"]) == ("b", 7)


def test_a_large_folder_is_read_once_and_one_run_of_it_at_the_start(tmp_path, monkeypatch):
    for name in "abcde":
        begun(tmp_path / name)
    monkeypatch.setattr(live, "SETTLED", -1e6)  # as if they had not been changed for long
    read, really = [], RunFolder.read_config
    monkeypatch.setattr(RunFolder, "read_config", lambda folder: read.append(folder.path.name) or really(folder))
    library = Library(tmp_path)
    assert read == ["a"]
    assert len(library.catalogue()["runs"]) == 5
    names = list(library.folders())
    assert read == [*"abcde"]
    for name in names:
        library.folder(name)
    assert library.catalogue() == library.catalogue()
    assert read == [*"abcde"]


def test_recorded_losses_and_gates_wait_their_turn(runs):
    """Pages ask for them by the dozen; one after the other they take the memory of one."""
    library, worker, job, answers = Library(runs / "circles"), Worker(), Gate(), []
    with serving(create_app(library, worker)) as port:

        def asking(path):
            return threading.Thread(target=lambda: answers.append(ask(port, f"/api/runs/{library.first}{path}").status))

        busy = threading.Thread(target=lambda: asyncio.run(worker.run(job, here)))
        threads = [busy, asking("/losses"), asking("/gates")]
        try:
            for count, thread in enumerate(threads, 1):
                thread.start()
                eventually(lambda count=count: worker.waiting == count)
            assert ask(port, "/api/runs").status == 200, "a list does not wait"
            assert not answers
        finally:
            job.open.set()
            for thread in threads:
                thread.join(PATIENCE)
        assert answers == [200, 200]
    worker.close()


def long_metrics(folder, count, seed=0):
    """The losses of many lines, with a spike that is one line wide."""
    draw = np.random.default_rng(seed)
    values = draw.uniform(0.5, 1.5, count) / np.arange(1, count + 1) ** 0.3
    values[count // 3] = 50.0
    lines = (f'{{"step": {i + 1}, "loss": {value}, "seconds": {i / 8}}}\n' for i, value in enumerate(values.tolist()))
    folder.metrics_file.write_text("".join(lines))
    return values


def test_a_long_curve_looks_as_it_would_with_all_its_values(tmp_path):
    """In each column of pixels a line covers what lies between its least and its greatest value there."""
    folder, count = begun(tmp_path / "a"), 30_000
    values = long_metrics(folder, count)
    found = losses(folder)
    step, loss = found["loss_step"].numpy().astype(int), found["loss"].numpy()
    assert len(step) <= 4 * BINS
    assert (step[0], step[-1]) == (1, count)
    assert (np.diff(step) > 0).all()
    np.testing.assert_allclose(loss, values[step - 1], rtol=1e-6)
    for columns in (BINS, BINS // 3, 300):
        begin = np.searchsorted(step - 1, np.arange(0, count, count // columns))
        all_of_it = values.reshape(columns, -1)
        np.testing.assert_allclose(np.minimum.reduceat(loss, begin), all_of_it.min(1), rtol=1e-6)
        np.testing.assert_allclose(np.maximum.reduceat(loss, begin), all_of_it.max(1), rtol=1e-6)
        np.testing.assert_allclose(loss[begin], all_of_it[:, 0], rtol=1e-6)
        np.testing.assert_allclose(loss[np.append(begin[1:], len(loss)) - 1], all_of_it[:, -1], rtol=1e-6)
    assert loss.max() == 50
    assert outline(values[: 4 * BINS]) == list(range(4 * BINS))


def test_a_long_curve_is_read_once_and_grows_by_what_is_added(tmp_path, monkeypatch):
    folder = begun(tmp_path / "a")
    long_metrics(folder, 7000)
    library = Library(folder.path)
    parsed, really = [], metrics.parse
    monkeypatch.setattr(metrics, "parse", lambda text: parsed.append(text) or really(text))
    first = library.losses(library.first)
    assert len(parsed) == 7000
    folder.append_metrics({"step": 8000, "loss": 0.25, "seconds": 9e9})
    again = library.losses(library.first)
    assert len(parsed) == 7001
    assert (first["loss_step"][-1], again["loss_step"][-1]) == (7000, 8000)
    assert library.losses(library.first, 6990)["loss_step"].tolist() == [*range(6991, 7001), 8000]
    folder.metrics_file.write_text('{"step": 5, "loss": 0.5, "seconds": 1}\n')
    assert library.losses(library.first)["loss_step"].tolist() == [5]
    folder.metrics_file.unlink()
    assert losses(folder)["loss_step"].tolist() == []


def test_a_page_that_comes_to_a_long_run_is_told_a_line_and_no_list(tmp_path):
    folder = begun(tmp_path / "a")
    values = long_metrics(folder, 20_000)
    told = live.Watch(folder).look()["losses"]
    assert len(told) <= 4 * BINS
    assert told[-1] == (20_000, values[-1])
    watch = live.Watch(folder, after=19_998)
    assert watch.look()["losses"] == [(19_999, values[-2]), (20_000, values[-1])]
    assert watch.look() == {}


def test_recordings_of_other_shapes_are_left_out(runs, tmp_path):
    shutil.copytree(runs / "circles", tmp_path / "a")
    whole, cut = (tmp_path / "a" / "probes" / f"step-000000{step}.safetensors" for step in (20, 30))
    tensors = load_file(whole)
    save_file({name: tensor[:1].clone() for name, tensor in tensors.items()}, whole)
    save_file({"t": tensors["t"]}, cut)
    library = Library(tmp_path / "a")
    assert library.gates(library.first)["step"].tolist() == [0, 10, 40]
