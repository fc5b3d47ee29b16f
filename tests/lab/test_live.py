"""A run that is still training, looked at: what its files say arrives, and training does not notice."""

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import pytest
from axe_playwright_python.sync_playwright import Axe

from ditlab.core.errors import InputError
from ditlab.lab import Lens
from ditlab.lab.server.api import create_app
from ditlab.lab.server.library import Library
from ditlab.lab.server.live import Watch
from ditlab.lab.server.timeouts import Limits
from ditlab.lab.server.worker import Worker
from ditlab.runs.folder import RunFolder
from tests.lab.shell import PATIENCE, ask, eventually, serving
from tests.lab.test_page import opened, section

TRAIN = ["--steps", "90", "--batch-size", "16", "--precision", "fp32", "--log-every", "5", "--record-every", "10"]
TRAIN += ["--preview-every", "30", "--checkpoint-every", "40", "--sampling.steps", "3"]


def train(folder, *words):
    """``ditlab train`` in a process of its own, working in that folder."""
    command = [sys.executable, "-m", "ditlab", "train", "circles", *TRAIN, "--name", "run", *words]
    folder.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)


@contextmanager
def serve(path, **options):
    """(port, id of the first run)"""
    worker, library = Worker(), Library(path)
    with serving(create_app(library, worker), **options) as port:
        yield port, next(iter(library.folders()))
    worker.close()


@contextmanager
def following(port, run, after=-1, headers=()):
    """The events of a run, one by one, and the socket they come through."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", f"/api/runs/{run}/live?after={after}", headers=dict(headers))
    response = connection.getresponse()
    assert (response.status, response.getheader("content-type")) == (200, "text/event-stream; charset=utf-8")

    def events():
        with suppress(ConnectionError, http.client.HTTPException):
            while line := response.readline():
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

    try:
        yield events()
    finally:
        connection.close()


def copied(run, folder):
    """A run that may be written into."""
    return RunFolder(shutil.copytree(run, folder / "run"))


def test_a_look_says_what_is_new_and_no_more(runs, tmp_path):
    folder = copied(runs / "circles", tmp_path)
    watch = Watch(folder, after=20)
    first = watch.look()
    logged = {line["step"]: line["loss"] for line in folder.read_metrics() if "loss" in line}
    assert first["losses"] == [(step, loss) for step, loss in logged.items() if step > 20]
    assert (first["step"], first["steps"], first["training"], first["seconds_left"]) == (40, 40, False, None)
    assert (first["checkpoints"], first["previews"], first["recorded"]) == ([20, 40], [0, 20, 40], 40)
    assert watch.look() == {}
    shutil.copytree(folder.checkpoints / "step-00000040", folder.checkpoints / "step-00000060")
    with folder.metrics_file.open("a") as stream:
        stream.write('{"step": 50, "loss": 0.5, "images_per_s": 32, "seconds": 9}\nnonsense\n{"step": 60, "lo')
    assert watch.look() == {"checkpoints": [20, 40, 60], "losses": [(50, 0.5)], "step": 50, "loss": 0.5}
    with folder.metrics_file.open("a") as stream:
        stream.write('ss": 0.25, "seconds": 9}\n')
    assert watch.look() == {"losses": [(60, 0.25)], "step": 60, "loss": 0.25}
    config = folder.read_config()
    with folder.locked():
        folder.write_config(config.model_copy(update={"steps": 100}))
        news = watch.look()
        assert news == {"training": True, "steps": 100, "seconds_left": round(40 * config.batch_size / 32)}
    assert watch.look() == {"training": False, "seconds_left": None}


def test_steps_that_are_cut_off_are_told(runs, tmp_path):
    folder = copied(runs / "circles", tmp_path)
    watch = Watch(folder, after=40)
    assert "cut" not in watch.look()
    with folder.locked():
        folder.cut(20)
    news = watch.look()
    assert news["cut"]
    assert [step for step, _ in news["losses"]] == [10, 20]
    assert (news["checkpoints"], news["recorded"], news["previews"]) == ([20], 20, [0, 20])
    assert Watch(folder, after=40).look()["cut"], "one who comes back after the cut is told, too"


def written(file, steps, speed):
    """Metrics of a run that took so many seconds a step."""
    file.write_text("".join(f'{{"step": {i}, "loss": {speed / i}, "seconds": {speed * i}}}\n' for i in steps))


@pytest.mark.parametrize("in_place", [True, False])
def test_other_metrics_are_told_from_their_beginning_however_far_they_have_gone(runs, tmp_path, in_place):
    folder = copied(runs / "circles", tmp_path)
    file = folder.metrics_file
    written(file, range(10, 50, 10), 1.5)
    watch = Watch(folder)
    assert len(watch.look()["losses"]) == 4
    if not in_place:  # in place: a new file may take the inode of one that is gone
        file.unlink()
        assert watch.look()["cut"]
    written(file, range(10, 70, 10), 2.5)
    news = watch.look()
    assert "cut" in news or not in_place
    assert [step for step, _ in news["losses"]] == [10, 20, 30, 40, 50, 60]
    assert "losses" not in watch.look()


def test_the_limit_of_streams_counts_those_that_have_not_begun(runs, monkeypatch):
    monkeypatch.setattr("ditlab.lab.server.api.MAX_STREAMS", 1)
    worker, library = Worker(), Library(runs / "circles")
    app, (run,) = create_app(library, worker), library.folders()
    sent = []

    async def both():
        while len(sent) < 2:
            await asyncio.sleep(0.001)

    async def gone():
        await both()
        return {"type": "http.disconnect"}

    async def send(message):
        if message["type"] == "http.response.start":
            sent.append((message["status"], app.state.streams))
            await both()  # before its first event, let the other one ask
        raise OSError("the client is gone")

    async def ask_twice():
        path = f"/api/runs/{run}/live"
        scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [], "app": app}
        asking = (app(dict(scope), gone, send) for _ in range(2))
        await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), PATIENCE)

    asyncio.run(ask_twice())
    assert sorted(sent) == [(200, 1), (503, 1)]
    assert app.state.streams == 0
    worker.close()


def test_asking_whether_a_run_is_trained_leaves_nothing_behind(tmp_path):
    folder = RunFolder(tmp_path)
    assert not folder.is_locked
    assert not list(tmp_path.iterdir())
    with folder.locked():
        assert folder.is_locked
    assert not folder.is_locked
    stop = threading.Event()

    def ask_on():
        while not stop.is_set():
            _ = folder.is_locked

    askers = [threading.Thread(target=ask_on) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        for _ in range(50):
            with folder.locked():
                pass
    finally:
        stop.set()
        for asker in askers:
            asker.join()


def test_a_stream_goes_on_from_where_it_broke(runs):
    with serve(runs / "circles") as (port, run):
        with following(port, run, headers={"Last-Event-ID": "30"}) as events:
            assert [step for step, _ in next(events)["losses"]] == [40]
        assert ask(port, f"/api/runs/{run}/live?after=x").status == 400
        assert ask(port, "/api/runs/000000000000/live").status == 404


def test_streams_outlive_the_clocks_and_give_way_to_questions(runs, tmp_path):
    folder = copied(runs / "circles", tmp_path)
    limits = Limits(request_seconds=0.2, write_seconds=0.2, connections=3)
    with serve(folder.path, limits=limits) as (port, run), following(port, run) as first:
        next(first)
        time.sleep(1)
        folder.append_metrics({"step": 50, "loss": 0.5, "seconds": 9})
        assert next(first)["step"] == 50
        with following(port, run) as second, following(port, run) as third:
            next(second), next(third)
            for _ in range(5):
                assert ask(port, f"/api/runs/{run}").status == 200
            assert list(first) == [], "the oldest should have been closed to make room"


def test_too_many_are_told_so_and_those_who_leave_make_room(runs, monkeypatch):
    monkeypatch.setattr("ditlab.lab.server.api.MAX_STREAMS", 1)
    with serve(runs / "circles") as (port, run):
        with following(port, run) as events:
            next(events)
            answer = ask(port, f"/api/runs/{run}/live")
            assert (answer.status, answer.header("retry-after")) == (503, "1")
        eventually(lambda: not_full(port, run))


def not_full(port, run):
    """Whether a stream can be had."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", f"/api/runs/{run}/live")
    status = connection.getresponse().status
    connection.close()
    return status == 200


def test_the_server_stops_with_streams_open(runs):
    with ExitStack() as streams:  # closed after the server has stopped
        with serve(runs / "circles") as (port, run):
            events = streams.enter_context(following(port, run))
            next(events)
            begun = time.monotonic()
        assert time.monotonic() - begun < PATIENCE / 2
        assert list(events) == []


def test_a_run_without_a_checkpoint_shows_what_it_recorded(runs, tmp_path):
    folder = copied(runs / "circles", tmp_path)
    shutil.rmtree(folder.checkpoints)
    library = Library(folder.path)
    (run,) = library.folders()
    found = library.describe(run, None, "ema")
    assert (found["checkpoints"], found["step"], found["last_loss"]) == ([], None, 40)
    assert found["parameters"] == sum(p.numel() for p in Lens(runs / "circles").network.parameters())
    assert found["sections"].pop("gates") is None
    assert all("first checkpoint" in why for why in found["sections"].values())
    with pytest.raises(InputError, match="no checkpoint yet"):
        library.lens(run)
    shutil.rmtree(folder.samples)
    folder.metrics_file.unlink()
    with pytest.raises(InputError, match="has a checkpoint yet"):
        Library(folder.path)


def files(run):
    """Everything that training made and that bears no clock."""
    made = {}
    for pattern in ("checkpoints/*/*", "samples/*", "probes/*", "averages/*"):
        made |= {str(file.relative_to(run)): file.read_bytes() for file in run.glob(pattern)}
    return made


def ask_away(port, run, stop, asked):
    """A stream that is opened and closed, and questions in between, until told to stop."""
    while not stop.is_set():
        with following(port, run) as events:
            next(events)
        for path in ("", "/gates", "/flow", "/attention", "/trajectory?steps=3"):
            asked.append(ask(port, f"/api/runs/{run}{path}").status)
        time.sleep(0.5)


def test_a_page_grows_with_the_run_and_training_does_not_notice(chromium, tmp_path):
    alone = train(tmp_path / "alone")
    watched = train(tmp_path / "watched")
    folder = RunFolder(tmp_path / "watched" / "runs" / "run")
    stop, asked = threading.Event(), []
    try:
        eventually(folder.metrics_file.exists, 60)
        watched.send_signal(signal.SIGSTOP)  # so that there is time to look: it holds its lock all the same
        with serve(folder.path) as (port, run):
            viewer = threading.Thread(target=ask_away, args=(port, run, stop, asked))
            viewer.start()
            try:
                with opened(chromium, f"http://127.0.0.1:{port}/", bypass_csp=True) as page:
                    see_it_grow(page, folder, watched)
            finally:
                stop.set()
                viewer.join()
        assert alone.wait(60) == 0
    finally:
        for process in (alone, watched):
            process.kill()
            process.wait()
    assert asked.count(200) > 5
    expected, found = files(tmp_path / "alone" / "runs" / "run"), files(folder.path)
    assert len(expected) > 20
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def see_it_grow(page, folder, process):
    """From before the first checkpoint to the end of training."""
    badge = page.locator(".live")
    page.get_by_text("This waits for the run’s first checkpoint.").first.wait_for()
    badge.get_by_text("training: just begun").wait_for()
    process.send_signal(signal.SIGCONT)
    eventually(lambda: folder.step is not None, 60)
    process.send_signal(signal.SIGSTOP)
    badge.get_by_text(re.compile(r"^training: step \d+ of 90, loss [\d.]+, \d+ s left$")).wait_for()
    result = Axe().run(page)
    assert result.violations_count == 0, result.generate_report()
    page.get_by_role("button", name="Step 40 is there: show it").click()
    section(page, "Shape flow").locator("svg").first.wait_for()
    gates = section(page, "Watch the gates open")
    gates.get_by_role("button", name="Show as table").click()
    process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 0
    badge.get_by_text("Training has ended at step 90").wait_for()
    recorded = Lens(folder.path).gates()
    gates.get_by_text("mean |gate| at training step 90").wait_for()
    rows = gates.get_by_role("table").locator("tbody tr").all()
    shown = [float(row.locator("td").first.inner_text()) for row in rows]
    means = recorded["gate"][-1].mean(0).ravel()
    assert shown == pytest.approx([*means, recorded["effective_depth"][-1].mean()], rel=6e-3)
    gates.get_by_role("img", name=re.compile("drawn after 90")).wait_for()
    losses = gates.get_by_role("application", name="Training loss over").locator("desc").text_content()
    ends = [float(text) for text in re.search(r"from ([\d.]+) to ([\d.]+)\.", losses).groups()]
    assert ends == pytest.approx([recorded["loss"][0], recorded["loss"][-1]], rel=6e-3)
    # What a person looks at stays until they want the newest.
    assert page.get_by_role("combobox", name="Checkpoint").input_value() == "40"
    page.get_by_role("button", name="Step 90 is there: show it").click()
    page.wait_for_url(re.compile("step=90"))


def test_a_run_that_got_its_first_checkpoint_is_compared_and_its_loss_grows(chromium, runs, tmp_path):
    folder = copied(runs / "circles", tmp_path)
    hidden = tmp_path / "hidden"
    shutil.move(folder.checkpoints, hidden)
    gone = "Failed to load resource"  # what a checkpoint that vanishes while it is read is answered with
    with (
        serve(folder.path) as (port, _),
        opened(chromium, f"http://127.0.0.1:{port}/", expected=gone) as page,
    ):
        section(page, "Watch the gates open").locator("svg").first.wait_for()
        shutil.move(hidden, folder.checkpoints)
        page.get_by_role("button", name="Step 40 is there: show it").click()
        section(page, "Shape flow").locator("svg").first.wait_for()
        panel = section(page, "Compare")
        panel.scroll_into_view_if_needed()
        panel.get_by_role("button", name="Add a column").click()
        panel.get_by_role("button", name="Remove C").wait_for()
        panel.get_by_role("button", name="Show as table").click()
        last = panel.get_by_role("region", name="Compare as a table").locator("tr", has_text="Last loss")
        last.locator("td", has_text=re.compile("[0-9]")).first.wait_for()
        folder.append_metrics({"step": 50, "loss": 0.1234, "seconds": 9})
        last.get_by_text("0.1234").first.wait_for()
        page.get_by_role("combobox", name="Checkpoint").first.select_option("20")
        shutil.rmtree(next(folder.checkpoints.glob("*20")))
        page.locator("#choose-step option", has_text="step 20, gone from disk").wait_for(state="attached")
        assert page.locator("#choose-step").input_value() == "20"


def test_what_is_told_while_the_losses_are_on_their_way_is_not_lost(chromium, runs, tmp_path):
    folder = copied(runs / "unet", tmp_path)
    held = []
    with serve(folder.path) as (port, _), opened(chromium, f"http://127.0.0.1:{port}/") as page:
        page.route("**/losses?*", lambda route: held.append((route, route.fetch())))
        page.reload()
        while not held:
            page.wait_for_timeout(100)
        folder.append_metrics({"step": 50, "loss": 0.1234, "seconds": 9})
        page.wait_for_timeout(2500)  # the lab looks every second
        for route, response in held:
            route.fulfill(response=response)
        losses = section(page, "Watch the gates open")
        losses.get_by_role("button", name="Show as table").click()
        losses.get_by_role("table").get_by_text("0.123").wait_for()
