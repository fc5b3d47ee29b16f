"""The rooms of the page: what a module imports, or takes a type from, lies beside it or on a lower floor."""

import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from posixpath import dirname, join, normpath

import pytest

import ditlab.lab

PAGE = Path(ditlab.lab.__file__).parent / "static"
PANELS = ("attention", "change", "denoise", "flow", "gates", "patches", "runs")
FLOORS = (("draw",), ("page",), PANELS, ("tour",), ("",))  # from the ground up; "" is main.js beside index.html
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
NAMED = re.compile(
    r"""(?:^\s*import\b[^;"']*|^\s*export\b[^;"'()=]*\bfrom\s*|\bimport\(\s*)["'](?P<path>[^"']+)["']""", re.MULTILINE
)


def imports(modules):
    """The modules that each module names, by their paths from the top of the page."""
    return {
        name: {normpath(join(dirname(name), found["path"])) for found in NAMED.finditer(text)}
        for name, text in modules.items()
    }


def complaints(modules):
    """What breaks the plan: a module nobody wrote, a room of no floor, an arrow that is not downward, a circle."""
    arrows = imports(modules)
    wrong = [f"{name}: {dirname(name)}/ has no floor" for name in arrows if dirname(name) not in LEVEL]
    for name, others in arrows.items() if not wrong else ():
        room = dirname(name)
        for other in others:
            if other not in modules:
                wrong.append(f"{name} imports {other}, which is not there")
            elif dirname(other) != room and LEVEL[dirname(other)] >= LEVEL[room]:
                wrong.append(f"{name} imports {other}, which is not below it")
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        wrong.append(f"a circle: {' → '.join(error.args[1])}")
    return wrong


@pytest.fixture(scope="module")
def page():
    return {file.relative_to(PAGE).as_posix(): file.read_text(encoding="utf-8") for file in PAGE.rglob("*.js")}


def test_each_room_keeps_to_its_floor_and_no_imports_go_round(page):
    assert not complaints(page)
    assert {dirname(name) for name in page} == set(LEVEL)
    assert sum(map(len, imports(page).values())) > len(page)  # arrows are found at all


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("draw/dom.js", 'import { select } from "../page/state.js";'),
        ("draw/dom.js", '/** @type {import("../page/api.js").Run} */'),
        ("page/panel.js", 'import { mount } from "../gates/gates.js";'),
        ("change/change.js", "import { Grid } from '../attention/maps.js';"),
        ("gates/gates.js", 'import "../main.js";'),
        ("runs/runs.js", 'const later = await import("../tour/tour.js");'),
        ("draw/dom.js", 'export { number } from "./format.js";\nimport { h } from "./chart.js";'),
        ("flow/flow.js", 'import { gone } from "./flow_layout.js";'),
        ("cellar/new.js", 'import { h } from "../draw/dom.js";'),
    ],
)
def test_an_arrow_the_wrong_way_is_found(page, name, line):
    assert complaints({**page, name: page.get(name, "") + "\n" + line})
