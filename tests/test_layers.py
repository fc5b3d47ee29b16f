"""The house: seven floors, arrows downward only, rooms of one floor strangers to one another, and no circles."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "ditlab"

FLOORS = [
    {"core"},
    {"diffusion", "networks", "data", "config"},
    {"machine", "inspection", "recipes"},
    {"runs"},
    {"training", "evaluation", "interop"},
    {"train", "lab", "doctor", "bench"},
    {"cli"},
]
# Rooms within a room, from below.
WITHIN = {
    "data": ["data", "data.images", "data.latents"],
    "evaluation": ["evaluation.metrics", "evaluation"],
    "lab": ["lab.lens", "lab.server", "lab"],
}
DOORS = {"__init__", "__main__"}  # the public names, which come from everywhere, and the way in
LOOSE = {"train", "recipes"}
BY_NAME = {"evaluation.features", "core.plugins"}  # import what the user names


def modules():
    """Every module of the package but its doors, by name without ``ditlab.``, with its code."""
    for file in sorted(SOURCE.rglob("*.py")):
        name = ".".join(file.relative_to(SOURCE).with_suffix("").parts)
        if name not in DOORS:
            yield name.removesuffix(".__init__"), file.read_text()


NAMES = {name for name, _ in modules()}


def imports(here, code):
    """What a module imports of the package, wherever in it, and by literals of ``import_module`` too.

    Raises:
        AssertionError: it imports relatively, or by a name that only shows when it runs.
    """
    for node in ast.walk(ast.parse(code)):
        found = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "import by full name"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and re.search(r"\b(import_module|__import__)$", ast.unparse(node.func)):
            found = [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
            assert found or here in BY_NAME, f"{here} imports what {ast.unparse(node.args[0])} names"
        for name in found:
            if name.split(".")[0] == "ditlab" and name != "ditlab":
                inside = name.removeprefix("ditlab.")
                yield inside if inside in NAMES else inside.rpartition(".")[0]


def place(name):
    """The floor of a module's room, from 0, and the place of the room in it."""
    first = name.split(".")[0]
    floor = next(i for i, rooms in enumerate(FLOORS) if first in rooms)
    order = WITHIN.get(first, [first])
    room = name if name in order else name.rpartition(".")[0] or name
    return floor, first, order.index(room)


def wrong(here, code):
    """The imports of a module that do not run downward, nor stay in its room."""
    for there in imports(here, code):
        (floor, first, inner), (below, other, theirs) = place(here), place(there)
        if below > floor or (below == floor and (first != other or theirs > inner)):
            yield f"{here} imports {there}"


def test_every_import_runs_downward():
    assert len(NAMES) > 150
    assert [arrow for name, code in modules() for arrow in wrong(name, code)] == []


def test_no_modules_import_one_another_in_a_circle():
    graphlib.TopologicalSorter({name: {*imports(name, code)} - {name} for name, code in modules()}).prepare()


@pytest.mark.parametrize(
    ("here", "code"),
    [
        ("runs.run", "def show():\n    from ditlab.lab import notebook"),
        ("training.recorder", "import ditlab.evaluation.evaluate"),  # a stranger on its own floor
        ("data.dataset", "from ditlab.data.images.source import Progress"),  # a room within its own
        ("runs.run", "import_module('ditlab.lab.notebook')"),
    ],
)
def test_an_import_that_runs_upward_is_found(here, code):
    assert len([*wrong(here, code)]) == 1


def test_an_import_of_what_a_variable_names_is_found():
    with pytest.raises(AssertionError, match="names"):
        [*imports("runs.run", "importlib.import_module('ditlab.' + room)")]


def test_the_rooms_are_as_few_as_they_are_drawn():
    loose = {name for name in NAMES if "." not in name and not (SOURCE / name).is_dir()}
    assert loose == LOOSE
    assert {name.split(".")[0] for name in NAMES} == set().union(*FLOORS)


def test_the_drawing_of_the_house_is_the_house():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d) \| `(\w+)` \| .* \| (.*) \|$", page, re.M)
    drawn = {room: (int(floor), {*filter(None, below.split(", "))}) for floor, room, below in rows}
    arrows = {room: (number, set()) for number, rooms in enumerate(FLOORS, 1) for room in rooms}
    for name, code in modules():
        room = name.split(".")[0]
        arrows[room][1].update({there.split(".")[0] for there in imports(name, code)} - {room})
    assert drawn == arrows
    picture = re.findall(r"^(\d) {3,}(\w+(?: +\| +\w+)*) {3,}\S", page, re.M)
    assert [{*re.split(r" +\| +", rooms)} for _, rooms in reversed(picture)] == FLOORS
