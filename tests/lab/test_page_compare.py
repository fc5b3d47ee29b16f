"""The section Compare in a real browser, beside torch: columns of any kinds, and what they say they cannot show."""

import re
from contextlib import contextmanager

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe

import ditlab
from ditlab.evaluation.evaluate import evaluate
from ditlab.lab import Lens
from ditlab.lab.server.library import Library
from ditlab.runs.folder import RunFolder
from tests.lab.test_page import FROM_DISK, chosen, copied, opened, run_snippet, section, serve

N = 100
KEEP_WORDS = """() => {
    window.written = [];
    const plain = CanvasRenderingContext2D.prototype.fillText;
    CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
        written.push(text);
        return plain.call(this, text, ...rest);
    };
}"""


@pytest.fixture(scope="module")
def lab(runs):
    with serve(runs) as url:
        yield url, {entry["name"]: entry["id"] for entry in Library(runs).catalogue()["runs"]}


@contextmanager
def compared(chromium, lab, columns, rest="", **options):
    """The section with these columns: "circles" or "circles_20__2_mean" (run, step, t, layer, head, seed, label)."""
    url, names = lab
    wanted = []
    for column in columns:
        run, *parts = column.split("_")
        wanted.append("_".join([names[run], *parts, *[""] * (6 - len(parts))]))
    with opened(chromium, f"{url}?run={names[columns[0].split('_')[0]]}&c={'*'.join(wanted)}{rest}", **options) as page:
        yield page, complete(page)


def complete(page):
    """The section, once the last of its rows is there."""
    panel = section(page, "Compare")
    page.wait_for_function("""() => {
        document.getElementById("compare")?.scrollIntoView({ behavior: "instant" });  // sections above it still grow
        const rows = [...document.querySelectorAll("#compare .runs-cells")];
        const busy = document.querySelector("#compare .panel-body")?.getAttribute("aria-busy");
        return busy === "false" && rows.length === 3 && rows.every((row) => row.children.length);
    }""")
    return panel


def table_of(panel):
    """Row's name → its cells, of the table of all numbers."""
    panel.get_by_role("button", name="Show as table").click()
    rows = panel.get_by_role("region", name="Compare as a table").locator("tbody tr").all()
    cells = {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in rows}
    panel.get_by_role("button", name="Hide table").click()
    return cells


def test_runs_of_four_kinds_stand_side_by_side(chromium, lab, runs):
    four = ["circles", "unet", "points", "digits___1_2__3"]
    with compared(chromium, lab, four, "&t=0.4&layer=2&head=1&input=data:2") as (page, panel):
        found = table_of(panel)
        assert [text.split(" ")[0] for text in found["Network"]] == ["DiT", "U-Net", "MLP", "DiT"]
        lenses = [Lens(runs / name.split("_")[0]) for name in four]
        for lens, text in zip(lenses, found["Parameters"], strict=True):
            assert int(text.replace(",", "")) == sum(p.numel() for p in lens.network.parameters())
        for lens, text in zip(lenses, found["Last loss"], strict=True):
            losses = [line["loss"] for line in lens.run.folder.read_metrics() if "loss" in line]
            assert text == (f"{losses[-1]:.4f}" if losses else "–")
        gates = lenses[0].gates()["gate"][-1]
        assert float(found["mean |gate|"][0]) == pytest.approx(gates.mean(), abs=1e-4)
        # The U-Net was trained with another batch size: its own third example would be another image.
        x0 = lenses[0].input(input="data:2", t=0.4)["x0"].astype(float)
        pixels = np.floor(np.clip((x0 + 1) * 127.5, 0, 255) + 0.5).astype(np.uint8)
        expected = [
            lenses[0].attention(input=lenses[0].own(pixels), t=0.4, layer=2, head=1)["entropy"].mean(),
            lenses[1].attention(input=lenses[1].own(pixels), t=0.4, layer=0, head=1)["entropy"].mean(),
            None,
            lenses[3].attention(input="data:2", t=0.4, layer=1, head=2, label=3)["entropy"].mean(),
        ]
        for value, text in zip(expected, found["Entropy of attention, bits"], strict=True):
            assert text == "–" if value is None else float(text) == pytest.approx(value, abs=2e-3)
        said = panel.inner_text()
        for words in (
            "A U-Net has no adaLN-Zero gates.",
            "An MLP has no attention.",
            "The same image for A and B: that of A, with 256 levels",
            "D takes images of another shape",
            "A and B start from the same noise; samples of another shape need different noise.",
            "A and B; C; D: trained on different data, so their figures do not share an axis.",
            "label 3",
        ):
            assert words in said, words
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_what_is_copied_and_downloaded_is_what_is_shown(chromium, lab, runs):
    with compared(chromium, lab, ["circles", "unet"], "&t=0.4&layer=1&input=data:1&cs=tsh_5_100_step") as (page, panel):
        with page.expect_download() as download:
            panel.get_by_role("button", name="Download .npz").click()
        arrays = np.load(download.value.path())
        run = ditlab.load(runs / "circles")
        np.testing.assert_array_equal(arrays["a_samples"], run.sample(10, steps=25, solver="heun", seed=5))
        lines = [line for line in RunFolder(runs / "circles").read_metrics() if "loss" in line]
        np.testing.assert_allclose(arrays["a_loss"], [line["loss"] for line in lines], rtol=1e-6)
        panel.get_by_role("button", name="Copy Python").click()
        code = copied(page)
        assert code.count("quality(") == 2
        given = run_snippet("\n".join(line for line in code.splitlines() if not line.startswith("quality(")))
        for name in ("a_samples", "b_samples", "a_map", "b_map", "a_loss"):
            assert any(one.size == arrays[name].size and np.allclose(one, arrays[name], atol=1e-5) for one in given), (
                name
            )
        page.evaluate(KEEP_WORDS)
        with page.expect_download() as download:
            panel.get_by_role("button", name="Download .png").click()
        assert download.value.path().read_bytes().startswith(b"\x89PNG")
        title, caption = page.evaluate("written")[:2]
        assert title == "Compare"
        assert caption.startswith(
            "A circles, step 40, seed 5, layer 1, average of heads, t = 0.40; B unet, step 2, seed 5"
        )
        assert caption.endswith("; attention to example 1")


def test_figures_are_measured_when_asked_for(chromium, lab, runs):
    with compared(chromium, lab, ["points", "points__0.9"]) as (_, panel):
        assert table_of(panel)[f"Quality, of {N} samples"] == ["not measured"] * 2
        panel.get_by_role("button", name="Measure", exact=True).click()
        panel.get_by_text(f"Each figure is measured on {N} samples").wait_for()
        run = ditlab.load(runs / "points")
        figures = evaluate(run, N, features="none", **run.config.sampling.model_dump())
        for text in table_of(panel)[f"Quality, of {N} samples"]:
            assert float(text) == pytest.approx(figures["energy_distance"], rel=6e-3)
        drawn = panel.locator(".runs-quality svg desc").text_content()
        assert float(re.search(r"fresh data: from ([\d.]+)", drawn)[1]) == pytest.approx(
            figures["energy_distance_floor"], rel=6e-3
        )


def test_measuring_can_be_stopped(chromium, lab):
    with compared(chromium, lab, ["circles", "circles__0.9"], "&cs=sh_0_1000_step") as (_, panel):
        panel.get_by_role("button", name="Measure", exact=True).click()
        panel.get_by_role("button", name="Stop", exact=True).click()
        panel.get_by_text("Stopped: 0 of 2 checkpoints are measured.").wait_for()
        assert panel.get_by_role("button", name="Measure", exact=True).is_enabled()


def test_what_is_chosen_lives_in_the_address(chromium, lab, runs):
    _, names = lab
    with compared(chromium, lab, ["circles", "unet"], "&t=0.3") as (page, panel):
        panel.get_by_role("button", name="Add a column").click()
        third = panel.get_by_role("group", name="Column C")
        third.get_by_label("Run").select_option(label="circles")
        third.get_by_label("Checkpoint").select_option("20")
        panel.get_by_label("time t", exact=True).uncheck()
        third.get_by_label("Time t").fill("0.8")
        third.get_by_label("Time t").press("Enter")
        third.get_by_label("Layer").select_option("3")
        third.get_by_label("Head").select_option("0")
        panel.get_by_role("spinbutton", name="Seed").fill("4")
        panel.get_by_role("spinbutton", name="Seed").press("Enter")
        panel.get_by_role("button", name="Remove B").click()
        wanted = f"{names['circles']}______*{names['circles']}_20_0.8_3_0__"
        page.wait_for_url(lambda url: wanted in url and "cs=s_4_100_step" in url)
        early = Lens(runs / "circles", step=20)
        entropy = early.attention(input="data:0", t=0.8, layer=3, head=0)["entropy"].mean()
        for _ in range(2):
            panel = complete(page)
            found = table_of(panel)
            assert found["Checkpoint"] == ["step 40 of 40", "step 20 of 40"]
            assert found["Seed of the samples"] == ["4", "4"]
            assert found["Attention at"][1] == "layer 3, head 0, t = 0.80"
            assert float(found["Entropy of attention, bits"][1]) == pytest.approx(entropy, abs=2e-3)
            page.reload()
            assert chosen(page)["cs"] == "s_4_100_step"


@pytest.mark.parametrize("width", [1280, 320])
def test_every_kind_of_conditioning_has_its_column(chromium, kinds, width):
    entries = Library(kinds).catalogue()["runs"]
    with serve(kinds) as url:
        lab = (url, {entry["name"]: entry["id"] for entry in entries})
        size = {"viewport": {"width": width, "height": 900}, "color_scheme": "dark", "bypass_csp": True}
        with compared(chromium, lab, ["film", "in-context", "cross-attention"], "&t=0.4", **size) as (page, panel):
            assert table_of(panel)["Conditioning"] == ["film", "in-context", "cross-attention"]
            for kind in ("film", "in-context", "cross-attention"):
                panel.get_by_text(f"A DiT with {kind} has no gates.").wait_for()
            assert panel.get_by_role("application", name=re.compile("Attention map of")).count() == 3
            assert "The same image for A, B and C." in panel.inner_text()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            found = Axe().run(page)
            assert found.violations_count == 0, found.generate_report()


def test_nonsense_in_the_address_shows_what_is_usual(chromium, lab):
    url, names = lab
    with opened(chromium, f"{url}?run={names['digits']}&c=no_1*x*{names['digits']}_7_9_99_x_-1&cs=q_x_7_y") as page:
        panel = complete(page)
        assert panel.get_by_role("group", name=re.compile("Column")).count() == 2
        assert panel.get_by_role("img", name=re.compile("Samples of A, digits, from the noise of seed 0")).count() == 1


def test_a_column_that_fails_takes_no_other_with_it(chromium, lab):
    lost = "&input=own:lost"  # which only the page's own run is asked for
    with compared(chromium, lab, ["circles", "unet"], lost, expected="404") as (_, panel):
        cells = panel.locator(".runs-row", has_text="Attention").locator(".runs-cell")
        cells.nth(0).get_by_text("lost").wait_for()
        cells.nth(1).locator(".runs-attention canvas").first.wait_for()
        assert float(table_of(panel)["Entropy of attention, bits"][1]) > 0


def test_points_that_are_alone_are_drawn_from_two_noises(chromium, runs):
    with serve(runs / "points") as url, opened(chromium, url) as page:
        assert table_of(complete(page))["Seed of the samples"] == ["0", "1"]


def test_an_exported_file_compares_a_run_with_itself(chromium, exported, runs):
    lens = Lens(runs / "circles")
    with opened(chromium, exported.as_uri() + "#t=0.3&layer=1", FROM_DISK, offline=True) as page:
        panel = complete(page)
        said = panel.inner_text()
        assert "This file holds one run" in said
        assert "For several runs, start ditlab lab runs." in said
        assert "not in this file" not in said
        found = table_of(panel)["Entropy of attention, bits"]
        for t, text in zip((0.3, 0.5), found, strict=True):
            assert float(text) == pytest.approx(lens.attention(t=t, layer=1)["entropy"].mean(), abs=2e-3)
        assert panel.get_by_role("button", name="Measure").count() == 0
