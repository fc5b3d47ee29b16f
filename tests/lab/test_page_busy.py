"""The page while its server is busy, and from one run to the next: what it shows is what it says it shows."""

import asyncio
import re
import threading
from contextlib import contextmanager

import pytest

from ditlab.lab.server.api import create_app
from ditlab.lab.server.library import Library
from ditlab.lab.server.worker import Rank, Worker
from tests.lab.shell import PATIENCE, eventually, serving
from tests.lab.test_page import opened, section, settled

TO_TIME = """() => {
    const slider = document.querySelector(".field-time input");
    slider.value = 80;
    slider.dispatchEvent(new Event("input"));
}"""
TO_RUN = """() => {
    const list = document.getElementById("choose-run");
    list.value = [...list.options].find((option) => option.textContent === "%s").value;
    list.dispatchEvent(new Event("change"));
}"""
# Listeners of what outlives a run's sections.
COUNT = """
    window.alive = 0;
    for (const [kind, by] of [["addEventListener", 1], ["removeEventListener", -1]]) {
        const plain = EventTarget.prototype[kind];
        EventTarget.prototype[kind] = function (name, fn, options) {
            if (this === window || this === document || this instanceof MediaQueryList) {
                window.alive += by;
                options?.signal?.addEventListener("abort", () => { window.alive -= by; });
            }
            return plain.call(this, name, fn, options);
        };
    }
"""


def soon_after(page, choose):
    """300 ms after a choice: what is dimmed, and what the page says of it."""
    return page.evaluate(f"""() => new Promise((resolve) => {{
        ({choose})();
        setTimeout(() => resolve({{
            dimmed: [...document.querySelectorAll(".stale")].map((node) => node.closest("section")?.id ?? node.id),
            said: [...document.querySelectorAll(".waiting:not([hidden])")].map((node) => node.textContent),
        }}), 300);
    }})""")


@pytest.fixture
def lab(runs):
    """(address, names of the runs, how to keep the server busy with a job of some rank)."""
    worker = Worker()
    library = Library(runs)

    @contextmanager
    def busy(rank, looks=False):
        begun, end = threading.Event(), threading.Event()

        def job(look):
            begun.set()
            while not end.wait(0.01):
                if looks:
                    look()

        async def here():
            return False

        thread = threading.Thread(target=lambda: asyncio.run(worker.run(job, here, rank)))
        thread.start()
        assert begun.wait(PATIENCE)
        try:
            yield
        finally:
            end.set()
            thread.join(PATIENCE)

    with serving(create_app(library, worker)) as port:
        names = {entry["name"]: entry["id"] for entry in library.catalogue()["runs"]}
        yield f"http://127.0.0.1:{port}/", names, busy, worker
    worker.close()


def test_nothing_old_is_taken_for_what_is_chosen(chromium, lab):
    url, names, busy, worker = lab
    with opened(chromium, f"{url}?run={names['circles']}&t=0.3#attention") as page:
        settled(page)
        with busy(Rank.OPEN):
            seen = soon_after(page, TO_TIME)
            assert {"flow", "patches", "attention", "matrix", "change"} <= set(seen["dimmed"])
            assert not {"gates", "denoise"} & set(seen["dimmed"])  # they have no such t
            assert "The lab is busy. Below is still t = 0.30." in seen["said"]
            opacity = "getComputedStyle(document.querySelector('#attention canvas')).opacity"
            assert page.evaluate(opacity) == "0.25"
            assert soon_after(page, TO_RUN % "digits")["dimmed"][0] == "main"
            page.get_by_text("still shows circles").wait_for()
            eventually(lambda: worker.waiting == 2)  # what the old sections asked for is asked no more
        page.get_by_text("digits is a diffusion transformer").wait_for()
        settled(page)
        assert page.locator("section:not(#compare) :is(.stale, .waiting:visible)").count() == 0
        with busy(Rank.OPEN):
            soon_after(page, TO_TIME.replace("80", "20"))
            assert worker.waiting > 1
            with page.expect_event("requestfailed", lambda request: "/attention?" in request.url):
                page.get_by_role("link", name="Denoise").click()  # what is in sight now needs the lab
                section(page, "Denoise").get_by_role("button", name="Next noise").click()
            page.goto("about:blank")
            eventually(lambda: worker.waiting == 1)  # nobody computes for a page that was closed


def test_a_measurement_keeps_no_page_from_opening_and_what_is_in_sight_comes_first(chromium, lab):
    url, names, busy, _ = lab
    asked = []
    with busy(Rank.MEASURE, looks=True), opened(chromium, f"{url}page/style.css", expected="404") as page:
        page.on("request", lambda request: asked.append(re.sub(r"\?.*", "", request.url.rpartition("/")[2])))
        page.goto(f"{url}?run={names['circles']}#denoise")
        settled(page)
        box = section(page, "Denoise").bounding_box()
        assert 0 <= box["y"] < 300  # where the link points, though sections above grew
        assert asked.index("trajectory") < min(asked.index(one) for one in ("flow", "attention", "input"))
        links = page.get_by_role("navigation", name="Sections")
        assert links.get_by_role("link", name="Denoise").get_attribute("aria-current") == "location"
        links.get_by_role("link", name="Gates").click()  # they stay in sight
        page.wait_for_function("Math.abs(document.getElementById('gates').getBoundingClientRect().top) < 300")
        gates = section(page, "Watch the gates open")
        said = gates.locator(".gates-story").inner_text()
        page.evaluate("document.querySelector('.tour-start').click()")
        for _ in range(6):
            page.get_by_role("complementary").get_by_role("button", name="Next", exact=True).click()
        page.get_by_role("complementary").get_by_text(said).wait_for()  # the tour says what was recorded


def test_from_run_to_run_no_listener_stays(chromium, lab):
    url, names, _, _ = lab

    def alive(page, devtools):
        devtools.send("HeapProfiler.collectGarbage")
        metrics = {one["name"]: one["value"] for one in devtools.send("Performance.getMetrics")["metrics"]}
        return page.evaluate("alive"), metrics["JSEventListeners"]

    with opened(chromium, f"{url}page/style.css", expected="404") as page:
        page.add_init_script(COUNT)
        page.goto(f"{url}?run={names['circles']}")
        settled(page)
        devtools = page.context.new_cdp_session(page)
        devtools.send("Performance.enable")
        counts = []
        for _ in range(2):
            for name, title in (("points", "Inside an MLP"), ("circles", "Inside a diffusion transformer")):
                page.get_by_label("Run", exact=True).select_option(label=name)
                page.get_by_role("heading", name=title, exact=True).wait_for()
            settled(page)
            counts.append(alive(page, devtools))
        assert counts[0][0] == counts[-1][0]
        assert counts[-1][1] <= counts[0][1] + 10


def test_an_address_that_is_wrong_says_so_and_new_runs_appear(chromium, runs, tmp_path):
    for name in ("circles", "points"):
        (tmp_path / name).symlink_to(runs / name)
    worker = Worker()
    with (
        serving(create_app(Library(tmp_path), worker)) as port,
        opened(chromium, f"http://127.0.0.1:{port}/?run=nonsense&step=7&curves=log_20") as page,
    ):
        page.get_by_text("There is no run “nonsense” here").wait_for()
        page.get_by_text("circles has no checkpoint at step 7; this page shows step 40").wait_for()
        assert page.get_by_label("Run", exact=True).locator("option").all_inner_texts() == ["circles", "points"]
        (tmp_path / "digits").symlink_to(runs / "digits")
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.get_by_label("Run", exact=True).locator("option", has_text="digits").wait_for(state="attached")
        gates = section(page, "Watch the gates open")
        gates.scroll_into_view_if_needed()
        gates.locator(".chart-faint").wait_for()
        assert "on a logarithmic axis" in gates.locator(".chart desc").first.text_content()
        gates.get_by_label("log axis").uncheck()
        page.wait_for_url(lambda url: "curves=20" in url)
        assert "logarithmic" not in gates.locator(".chart desc").first.text_content()
    worker.close()


def test_a_run_that_is_alone_begins_with_two_checkpoints_and_one_slider_for_t(chromium, runs):
    worker = Worker()
    with (
        serving(create_app(Library(runs / "circles"), worker)) as port,
        opened(chromium, f"http://127.0.0.1:{port}/#compare") as page,
    ):
        columns = section(page, "Compare").get_by_role("group", name=re.compile("Column"))
        columns.nth(1).get_by_label("Checkpoint").wait_for()
        assert [one.get_by_label("Checkpoint").input_value() for one in columns.all()] == ["20", "40"]
        assert page.get_by_role("slider", name="Time t", exact=True).count() == 1
        settled(page)
        attention = section(page, "What does each patch look at?")
        attention.scroll_into_view_if_needed()
        size = attention.locator("canvas").nth(1).evaluate("node => [node.clientWidth, node.clientHeight]")
        with page.expect_download() as download:
            attention.get_by_role("button", name="Download .png").click()
        header = download.value.path().read_bytes()[16:24]
        width, height = (int.from_bytes(header[i : i + 4]) for i in (0, 4))
        assert width >= 2 * size[0]
        assert height >= 2 * size[1] + 100  # room for the title and a legend
    worker.close()


def test_a_file_is_called_an_image_and_a_drawing_a_drawing(chromium, runs):
    worker = Worker()
    pixels = "A" * 342  # 256 bytes in base64
    with serving(create_app(Library(runs / "circles"), worker)) as port:
        for kind, name in (("file", "your image"), ("draw", "your drawing")):
            with opened(chromium, f"http://127.0.0.1:{port}/?input={kind}:{pixels}") as page:
                page.locator("#choose-input").wait_for()
                assert page.locator("#choose-input option:checked").inner_text() == name
                chosen = page.get_by_role("radio", name={"file": "Upload", "draw": "Draw"}[kind], exact=True)
                assert chosen.is_checked()
    worker.close()
