"""The page on kinds of conditioning without gates: what it draws and says is what the network does."""

import re

import pytest

from ditlab.lab import Lens
from ditlab.lab.server.library import Library
from tests.lab.test_page import attention, number_near, opened, section, serve

WHERE = "&t=0.4&layer=1&patch=5&input=data:2"


@pytest.fixture(scope="module")
def address(kinds):
    names = {entry["name"]: entry["id"] for entry in Library(kinds).catalogue()["runs"]}
    with serve(kinds) as url:
        yield {name: f"{url}?run={number}{WHERE}" for name, number in names.items()}


def edges(flow):
    return set(flow.locator("path[data-edge]").evaluate_all("all => all.map(one => one.dataset.edge)"))


def told(flow, name):
    """What the card says of a part."""
    flow.locator(f"g[data-node='{name}']").dispatch_event("pointerenter")
    return flow.locator(".flow-card").inner_text()


def labels_fit(flow):
    """No title of a box is wider than its box."""
    return flow.locator("g[data-node]").evaluate_all("""all => all.flatMap((group) => {
        const [body, word] = [group.querySelector("rect.flow-body"), group.querySelector("text:not(.flow-caption)")];
        if (!body || !word || group.classList.contains("flow-image")) return [];
        const [inner, outer] = [word.getBoundingClientRect(), body.getBoundingClientRect()];
        return inner.width <= outer.width && inner.height <= outer.height ? [] : [word.textContent];
    })""")


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("kind", ["film", "in-context", "cross-attention"])
def test_the_diagram_draws_what_the_kind_does(chromium, address, kind, width):
    with opened(chromium, address[kind], viewport={"width": width, "height": 900}) as page:
        flow = section(page, "Shape flow")
        flow.locator("g[data-node='final']").wait_for()
        assert labels_fit(flow) == []
        found = edges(flow)
        assert "b1.a.open" not in found
        assert ("b1.c" in found, "rail" in found, "joins" in found, "b1.x.read" in found) == {
            "film": (True, True, False, False),
            "in-context": (False, False, True, False),
            "cross-attention": (False, True, False, True),
        }[kind]
        assert "gate" not in told(flow, "blocks.1.attn")
        final = told(flow, "final")
        assert ("which no condition reaches" in final) == (kind != "film")
        if kind == "film":
            assert "2×32" in told(flow, "blocks.1.modulation")
        if kind == "in-context":
            assert "18×32" in told(flow, "join")


def test_what_condition_tokens_get_is_torchs_own(chromium, address, kinds):
    lens = Lens(kinds / "in-context")
    answer = lens.attention(input="data:2", t=0.4, layer=1)
    with opened(chromium, address["in-context"]) as page:
        given = answer["to_tokens"]
        number_near(page, "To the condition tokens", 0, given[5].sum())
        number_near(page, "To the condition tokens", 1, given.sum(1).mean())
        number_near(page, "To the token time", 0, given[5, 0])
        number_near(page, "To the token label", 0, given[5, 1])
        number_near(page, "On the object", 0, answer["inside"][5])
        number_near(page, "Entropy", 0, answer["entropy"][5])
        assert "add up to 100" not in page.locator("main").inner_text()
        matrix = section(page, "The full N × N matrix")
        share = matrix.get_by_text(re.compile("The condition tokens get")).inner_text()
        got = float(re.search(r"tokens get ([\d.]+)", share)[1])
        assert got == pytest.approx(100 * given.sum(1).mean(), rel=6e-3)
        assert "K/(N + K) = 11.1" in share.replace("\u202f", " ")


def test_cross_attention_is_shown_layer_by_layer(chromium, address, kinds):
    lens = Lens(kinds / "cross-attention")
    shares = lens.cross_attention(input="data:2", t=0.4)["share"]
    with opened(chromium, address["cross-attention"]) as page:
        number_near(page, "Entropy", 0, lens.attention(input="data:2", t=0.4, layer=1)["entropy"][5])
        table = attention(page).get_by_role("table").filter(has_text="Share of the cross-attention")
        rows = table.locator("tbody tr")
        rows.nth(2).wait_for()
        for row, share in zip(rows.all(), shares, strict=True):
            found = [float(re.search(r"[\d.]+", text)[0]) for text in row.locator("td").all_inner_texts()]
            assert found == pytest.approx(list(100 * share), rel=6e-3)
        text = attention(page).inner_text()
        assert "record.cross[layer]" in text
        assert "add up to 100" in text
