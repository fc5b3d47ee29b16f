"""The guided tour: it leads through the page, remembers where one was, and works in a file."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.lab.test_page import opened, serve

TITLES = [
    "From noise to a result",
    "A picture becomes a list",
    "The path through the blocks",
    "Patches listen to each other",
    "Many heads, many ways to listen",
    "One network for every noise level",
    "Gates that open in training",
    "Is it needed? Switch it off",
]


@pytest.fixture(scope="module")
def address(runs):
    with serve(runs) as url:
        yield url


def card(page):
    return page.get_by_role("complementary")


def title(page):
    return card(page).get_by_role("heading").inner_text().split("\n")[-1].split(" of ")[-1].split(" ", 1)[1]


def press(page, name):
    card(page).get_by_role("button", name=name, exact=True).click()


def walked(page):
    """Go through the whole tour; the titles, and the sections in which something was framed."""
    seen, framed = [], []
    while True:
        seen.append(title(page))
        framed.append(page.locator(".tour-spot").evaluate("node => node.closest('section').id"))
        if card(page).get_by_role("button", name="Done").count():
            return seen, framed
        press(page, "Next")


def test_it_leads_through_the_page(chromium, address):
    with opened(chromium, address) as page:
        page.get_by_role("button", name="Take the tour").click()
        seen, framed = walked(page)
        assert seen == TITLES
        assert framed == ["denoise", "patches", "flow", "attention", "attention", "attention", "gates", "change"]
        assert not Axe().run(page).response["violations"]
        press(page, "Done")
        assert card(page).count() == 0
        assert page.get_by_role("button", name="Take the tour").evaluate("node => node === document.activeElement")


def test_it_shows_what_it_speaks_of(chromium, address):
    with opened(chromium, address) as page:
        page.get_by_role("button", name="Take the tour").click()
        for _ in range(6):
            press(page, "Next")
        assert title(page) == "Gates that open in training"
        page.wait_for_url("**train=0*")
        assert page.locator("#gates .slider-value").inner_text() == "0"
        press(page, "Do it for me")
        page.wait_for_url("**train=40*")
        card(page).get_by_role("button", name="To the section, by keyboard").press("Enter")
        assert page.evaluate("document.activeElement.id") == "gates-title"


def test_it_remembers_where_one_was(chromium, address):
    with opened(chromium, address) as page:
        page.get_by_role("button", name="Take the tour").click()
        press(page, "Next")
        press(page, "Next")
        page.keyboard.press("Escape")
        assert card(page).count() == 0
        page.reload()
        page.get_by_role("button", name="Continue the tour (3 of 8)").click()
        assert title(page) == TITLES[2]
        press(page, "Back")
        assert title(page) == TITLES[1]


def test_of_other_networks_it_tells_what_they_have(chromium, address):
    with opened(chromium, address) as page:
        page.get_by_role("button", name="Take the tour").click()
        page.get_by_label("Run", exact=True).select_option(label="points")
        page.get_by_role("heading", name="Inside an MLP").wait_for()
        assert "a cloud of points that nobody drew" in card(page).inner_text()
        seen, _ = walked(page)
        assert "Patches listen to each other" not in seen


def test_in_a_file(chromium, exported):
    with opened(chromium, exported.as_uri(), ("data:", "blob:", "file:")) as page:
        page.get_by_role("button", name="Take the tour").click()
        while title(page) != "One network for every noise level":
            press(page, "Next")
        press(page, "Do it for me")  # 0.9 is not in this file: the nearest time is chosen
        page.get_by_text("0.50").first.wait_for()
        page.reload()
        page.get_by_role("button", name="Continue the tour").click()
        assert title(page) == "One network for every noise level"


def test_on_a_small_screen_nothing_overflows(chromium, address):
    with opened(chromium, address, viewport={"width": 320, "height": 640}) as page:
        page.get_by_role("button", name="Take the tour").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        assert not Axe().run(page).response["violations"]
