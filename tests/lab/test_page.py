"""The page in a real browser, beside torch: what it shows is what the weights say. And the same page as a file."""

import ast
import base64
import re
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe

from ditlab.lab import Lens
from ditlab.lab.lens.answer import Answer
from ditlab.lab.server.api import create_app
from ditlab.lab.server.library import Library
from ditlab.lab.server.worker import Worker
from tests.lab.shell import serving

PATIENCE = 30_000  # milliseconds
FROM_DISK = ("data:", "blob:", "file:")
KEEP_COPIES = """
    window.copied = [];
    if (navigator.clipboard) navigator.clipboard.writeText = async (text) => { copied.push(text); };
"""
PANELS = (
    "From image to tokens",
    "What does each patch look at?",
    "The full N × N matrix",
    "Switch parts off",
    "Watch the gates open",
    "Denoise",
)


@contextmanager
def serve(path):
    worker = Worker()
    with serving(create_app(Library(path), worker)) as port:
        yield f"http://127.0.0.1:{port}/"
    worker.close()


@pytest.fixture(scope="module")
def address(runs):
    with serve(runs) as url:
        yield url


@pytest.fixture(scope="module")
def lens(runs):
    return Lens(runs / "circles")


@contextmanager
def opened(chromium, url, allowed=("data:", "blob:"), expected=None, **options):
    """A page at that address. No request may leave it for elsewhere, and only what is expected may go wrong in it."""
    settings = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"} | options
    context = chromium.new_context(**settings)
    context.set_default_timeout(PATIENCE)
    context.add_init_script(KEEP_COPIES)
    page = context.new_page()
    strangers, troubles = [], []
    origin = "{0.scheme}://{0.netloc}/".format(urlsplit(url))
    page.on("request", lambda r: strangers.append(r.url) if not r.url.startswith((origin, *allowed)) else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("dialog", lambda dialog: troubles.append(f"a dialog: {dialog.message}"))
    page.goto(url)
    try:
        yield page
        assert not strangers, "the page asked somebody else"
        assert not [trouble for trouble in troubles if not expected or expected not in trouble]
    finally:
        context.close()


def section(page, name):
    return page.get_by_role("region", name=name, exact=True)


def settled(page):
    """Wait until the page has all it asked for."""
    page.wait_for_function("""() => {
        const bodies = [...document.querySelectorAll(".panel:not(#compare) .panel-body")];
        return bodies.length > 3 && bodies.every((body) => body.getAttribute("aria-busy") === "false");
    }""")


def copied(page):
    """What was copied last, once it is there."""
    page.wait_for_function("copied.length")
    return page.evaluate("copied.splice(0).at(-1)")


def attention(page):
    return section(page, "What does each patch look at?")


def chosen(page):
    """What the address says is chosen."""
    parts = urlsplit(page.url)
    return {key: values[0] for key, values in parse_qs(parts.query or parts.fragment).items()}


def shown(page, row, column):
    """A figure of the table of numbers; per cent as a share."""
    cell = attention(page).get_by_role("row", name=re.compile(f"^{row}")).get_by_role("cell").nth(column)
    text = cell.inner_text()
    number = float(re.search(r"[\d.]+", text)[0])
    return number / 100 if "%" in text else number


def number_near(page, row, column, expected):
    """Wait until the figure is that of torch, to three decimals (as many as are shown)."""
    deadline = 100
    for left in range(deadline, -1, -1):
        try:
            assert shown(page, row, column) == pytest.approx(expected, rel=6e-3, abs=1e-3)
            return
        except (AssertionError, TypeError):
            if left == 0:
                raise
            page.wait_for_timeout(100)


def click_patch(page, patch, columns=4):
    attention(page).get_by_text(re.compile("of its attention to itself")).wait_for()  # all is in its place
    grid = attention(page).get_by_role("application", name="The image: choose a patch")
    grid.scroll_into_view_if_needed()
    grid.locator("canvas").or_(grid).first.wait_for()
    box = grid.bounding_box()
    side = box["width"] / columns
    grid.click(position={"x": (patch % columns + 0.5) * side, "y": (patch // columns + 0.5) * side})


def test_a_clicked_patch_shows_torchs_own_numbers(chromium, address, lens):
    with opened(chromium, address) as page:
        click_patch(page, 6)
        page.wait_for_url(re.compile("patch=6"))
        where = chosen(page)
        answer = lens.attention(input=where["input"], t=float(where["t"]), layer=int(where["layer"]))
        number_near(page, "Entropy", 0, answer["entropy"][6])
        number_near(page, "Mean distance", 0, answer["distance"][6])
        number_near(page, "Rank of itself", 0, answer["diagonal_rank"][6])
        number_near(page, "On the object", 0, answer["inside"][6])
        table = lens.attention_statistics(input=where["input"], t=float(where["t"]))
        number_near(page, "Entropy", 1, table["entropy"][int(where["layer"]), -1])
        number_near(page, "On the object", 1, table["inside"][int(where["layer"]), -1])
        said = attention(page).get_by_text(re.compile("of its attention to itself")).inner_text()
        share = float(re.search(r"([\d.]+)\s*%", said)[1]) / 100
        assert share == pytest.approx(answer["map"][6, 6], abs=1e-3)


def test_the_address_brings_everything_back(chromium, address, lens, runs):
    names = {entry["name"]: entry["id"] for entry in Library(runs).catalogue()["runs"]}
    query = f"?run={names['circles']}&step=20&weights=raw&input=data:2&t=0.7&layer=3&head=1&patch=5&direction=to"
    early = Lens(runs / "circles", step=20, weights="raw")
    answer = early.attention(input="data:2", t=0.7, layer=3, head=1)
    with opened(chromium, address + query) as page:
        for _ in range(2):
            number_near(page, "Entropy", 0, answer["entropy"][5])
            assert {"step": "20", "t": "0.7", "layer": "3", "head": "1"}.items() <= chosen(page).items()
            page.reload()
        assert page.get_by_role("radio", name="who looks at this patch").is_checked()


def test_the_table_of_the_matrix_is_the_map(chromium, address, lens):
    with opened(chromium, address + "?t=0.5&layer=1&head=2&patch=3") as page:
        matrix = section(page, "The full N × N matrix")
        matrix.scroll_into_view_if_needed()
        matrix.get_by_role("button", name="Show as table").click()
        rows = matrix.get_by_role("table").locator("tbody tr")
        rows.nth(15).wait_for()
        cells = [[float(text.rstrip("%\u00a0 ")) for text in row.locator("td").all_inner_texts()] for row in rows.all()]
        shown_map = np.array(cells)
        expected = lens.attention(t=0.5, layer=1, head=2)["map"]
        scale = 100 if shown_map.sum() > 20 else 1
        np.testing.assert_allclose(shown_map / scale, expected, atol=1e-3)
        np.testing.assert_allclose(shown_map.sum(1) / scale, 1, atol=1e-2)


def test_image_and_matrix_light_each_other_up(chromium, address):
    with opened(chromium, address + "?patch=3") as page:
        panel = section(page, "The full N × N matrix")
        matrix = panel.get_by_role("application", name=re.compile("matrix|N × N", re.IGNORECASE)).first
        attention(page).get_by_text(re.compile("of its attention to itself")).wait_for()
        panel.get_by_text(re.compile("A patch gives itself")).wait_for()
        matrix.scroll_into_view_if_needed()
        settled(page)
        box = matrix.bounding_box()
        matrix.click(position={"x": (9 + 0.5) * box["width"] / 16, "y": (12 + 0.5) * box["height"] / 16})
        page.wait_for_url(re.compile("patch=12"))
        assert chosen(page)["key"] == "9"
        page.get_by_text(re.compile(r"patch 12 .* looks at patch 9")).first.wait_for()


def test_sliders_choose_the_time(chromium, address, lens):
    with opened(chromium, address + "?patch=5&layer=2") as page:
        slider = page.get_by_role("region", name="What is shown").get_by_role("slider", name="Time t")
        slider.focus()
        for _ in range(30):
            slider.press("ArrowRight")
        page.wait_for_url(re.compile(r"t=0\.6"))
        number_near(page, "Entropy", 0, lens.attention(t=0.6, layer=2)["entropy"][5])


def test_everything_works_by_keyboard_alone(chromium, address, lens):
    with opened(chromium, address + "?patch=5&layer=2&t=0.3") as page:
        number_near(page, "Entropy", 0, lens.attention(layer=2)["entropy"][5])
        name = "The image: choose a patch"
        for _ in range(200):
            page.keyboard.press("Tab")
            focused = page.evaluate("document.activeElement.getAttribute('aria-label') ?? ''")
            if focused == name:
                break
        assert focused == name, "the grid of patches cannot be reached with Tab"
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.wait_for_url(re.compile("patch=10"))
        number_near(page, "Entropy", 0, lens.attention(layer=2)["entropy"][10])


def test_a_drawn_circle_is_looked_at_and_survives_a_reload(chromium, address, lens):
    with opened(chromium, address + "?patch=5&layer=2&t=0.3") as page:
        patches = section(page, "From image to tokens")
        patches.get_by_text("Draw", exact=True).click()
        pad = patches.get_by_role("application", name=re.compile("draw", re.I)).first
        pad.scroll_into_view_if_needed()
        patches.get_by_role("button", name=re.compile("clear", re.I)).click()
        box = pad.bounding_box()
        center = np.array([box["x"] + box["width"] / 2, box["y"] + box["height"] / 2])
        page.mouse.move(center[0] + box["width"] / 4, center[1])
        page.mouse.down()
        for angle in np.linspace(0, 2 * np.pi, 40):
            page.mouse.move(*(center + box["width"] / 4 * np.array([np.cos(angle), np.sin(angle)])))
        page.mouse.up()
        page.wait_for_url(re.compile("input=draw:(?!A+(&|$))"))  # no longer the cleared canvas
        text = chosen(page)["input"].removeprefix("draw:")
        pixels = (
            np.frombuffer(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), np.uint8).reshape(1, 16, 16).copy()
        )
        assert 10 < (pixels > 128).sum() < 200
        own = lens.own(pixels)
        answer = lens.attention(input=own, layer=2)
        number_near(page, "Entropy", 0, answer["entropy"][5])
        page.reload()
        number_near(page, "On the object", 0, answer["inside"][5])


def test_the_gates_play(chromium, address, lens):
    gates = lens.gates()
    with opened(chromium, address, reduced_motion="no-preference") as page:
        panel = section(page, "Watch the gates open")
        panel.scroll_into_view_if_needed()
        slider = panel.get_by_role("slider", name="Training step")
        slider.focus()
        slider.press("Home")
        panel.get_by_text(re.compile(r"^0(\.0+)?$")).first.wait_for()
        panel.get_by_role("button", name=re.compile("^Play")).click()
        page.wait_for_url(re.compile("train=40"))
        panel.get_by_text(f"{gates['gate'][-1].mean():.3f}", exact=True).first.wait_for()
        picture = panel.get_by_role("img", name=re.compile("sample|noise", re.I)).last
        assert picture.count() == 1


def test_what_is_copied_and_downloaded_is_what_is_shown(chromium, address, lens, tmp_path):
    with opened(chromium, address + "?patch=3&layer=1&head=2&t=0.5") as page:
        settled(page)
        for name in PANELS:
            panel = section(page, name)
            with page.expect_download() as download:
                panel.get_by_role("button", name="Download .npz").click()
            arrays = np.load(download.value.path())
            panel.get_by_role("button", name="Copy Python").click()
            code = copied(page)
            given = [array.ravel() for array in run_snippet(code)]
            matched = [
                key
                for key, array in arrays.items()
                if any(array.size == g.size and np.allclose(array.ravel(), g, atol=1e-3) for g in given)
            ]
            assert matched, f"{name}: nothing in the download ({arrays.files}) is what this gives:\n{code}"
            with page.expect_download() as download:
                panel.get_by_role("button", name="Download .png").click()
            assert download.value.path().read_bytes().startswith(b"\x89PNG")


def run_snippet(code):
    """All arrays that a snippet makes; its last line may be an expression."""
    tree = ast.parse(code)
    space = {}
    if isinstance(tree.body[-1], ast.Expr):
        tree.body[-1] = ast.Assign([ast.Name("result_", ast.Store())], tree.body[-1].value)
    exec(compile(ast.fix_missing_locations(tree), "snippet", "exec"), space)
    found = []
    for value in space.values():
        found += list(value.values()) if isinstance(value, Answer) else [value]
    return [value for value in found if isinstance(value, np.ndarray)]


def axe_finds_nothing(page):
    """Once the last section is there."""
    last = section(page, "Denoise")
    last.scroll_into_view_if_needed()
    last.get_by_text(re.compile("asked the network")).wait_for()
    section(page, "Compare").scroll_into_view_if_needed()
    page.locator("#compare .runs-cells").last.get_by_text(re.compile("has no|recorded")).first.wait_for()
    page.wait_for_timeout(1500)
    result = Axe().run(page)
    assert result.violations_count == 0, result.generate_report()


@pytest.mark.parametrize(
    ("run", "theme"),
    [
        ("circles", "light"),
        ("digits", "dark"),
        ("points", "light"),
        *[
            pytest.param(*way, marks=pytest.mark.slow)
            for way in (("circles", "dark"), ("digits", "light"), ("points", "dark"))
        ],
    ],
)
def test_axe_finds_nothing(chromium, address, runs, theme, run):
    names = {entry["name"]: entry["id"] for entry in Library(runs).catalogue()["runs"]}
    with opened(chromium, f"{address}?run={names[run]}", color_scheme=theme, bypass_csp=True) as page:
        axe_finds_nothing(page)


@pytest.mark.parametrize("width", [375, 768, 2560])
def test_no_width_makes_the_page_scroll_sideways(chromium, address, width):
    with opened(chromium, address, viewport={"width": width, "height": 800}) as page:
        section(page, "Denoise").get_by_role("button", name="Copy Python").wait_for()
        settled(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("run", ["digits", "points", "unet"])
def test_other_runs_open_and_say_what_does_not_apply(chromium, address, runs, run):
    names = {entry["name"]: entry["id"] for entry in Library(runs).catalogue()["runs"]}
    with opened(chromium, f"{address}?run={names[run]}") as page:
        section(page, "Denoise").get_by_role("button", name="Copy Python").wait_for()
        body = page.locator("main").inner_text()
        assert ("has no adaLN-Zero gates" in body) == (run != "digits")
        assert ("An MLP has no attention" in body) == (run == "points")


def test_names_that_are_markup_stay_names(chromium, runs, tmp_path):
    name = "<img src=x onerror=alert(1)>"
    (tmp_path / name).symlink_to(runs / "circles")
    with serve(tmp_path) as url, opened(chromium, url) as page:
        page.get_by_role("combobox", name="Run").wait_for()
        page.get_by_text(re.compile("is a diffusion transformer")).wait_for()
        assert name in page.locator("header, main, body").first.inner_text()
        assert page.locator("img[src='x']").count() == 0


def test_the_exported_file_says_the_same_offline(chromium, exported, lens):
    url = exported.as_uri() + "#t=0.5&layer=1&head=2&patch=6&input=data:1"
    with opened(chromium, url, FROM_DISK, offline=True) as page:
        answer = lens.attention(input="data:1", t=0.5, layer=1, head=2)
        number_near(page, "Entropy", 0, answer["entropy"][6])
        click_patch(page, 9)
        number_near(page, "Entropy", 0, answer["entropy"][9])
        number_near(page, "On the object", 0, answer["inside"][9])
        page.wait_for_url(re.compile("patch=9"))
        page.reload()
        number_near(page, "Entropy", 0, answer["entropy"][9])
        gates = section(page, "Watch the gates open")
        gates.scroll_into_view_if_needed()
        gates.get_by_text(f"{lens.gates()['gate'][-1].mean():.3f}", exact=True).first.wait_for()
        last = section(page, "Denoise")
        last.scroll_into_view_if_needed()
        last.get_by_text(re.compile("network evaluations")).first.wait_for()
        assert "not in this file" not in page.locator("main").inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_in_the_exported_file(chromium, exported, theme):
    with opened(chromium, exported.as_uri(), FROM_DISK, color_scheme=theme, bypass_csp=True) as page:
        axe_finds_nothing(page)
