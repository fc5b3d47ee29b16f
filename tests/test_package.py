"""What holds for the package as a whole: what it imports, in which direction, and what it names in public."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ditlab

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "ditlab"

# Each module may import from its own floor's room and from floors below. Rooms on the lowest inner floor do not know
# one another.
FLOORS = [
    {"errors", "chance", "devices", "disk", "locks", "section", "memory"},
    {"diffusion", "networks", "data"},
    {"choices", "config", "build", "inspection", "evaluation", "pictures"},
    {"training", "recipes"},
    {"machine"},
    {
        "run",
        "tracking",
        "fit",
        "recorder",
        "evaluator",
        "midway",
        "evaluate",
        "evaluation_record",
        "estimate",
        "interop",
        "averaging",
        "doctor",
    },
    {"lab", "bench"},
    {"cli", "__main__"},
]
STRANGERS = {"diffusion", "networks", "data"}


def room(module):
    return module.split(".")[1] if "." in module else module


def imports():
    for file in SOURCE.rglob("*.py"):
        parts = file.relative_to(SOURCE.parent).with_suffix("").parts
        here = ".".join(parts).removesuffix(".__init__")
        if here == "ditlab":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{here}: import by full name"
                names = [node.module] if node.module != "ditlab" else [f"ditlab.{a.name}" for a in node.names]
            elif isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            for name in names:
                if name.startswith("ditlab."):
                    yield here, name


def floor(name):
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def test_no_import_runs_upward():
    seen = list(imports())
    assert len(seen) > 50
    for here, there in seen:
        a, b = room(here), room(there)
        assert floor(b) <= floor(a), f"{here} imports {there}"
        assert a == b or not {a, b} <= STRANGERS, f"{here} imports {there}: they are not to know each other"


@pytest.mark.parametrize(
    "code", ["import ditlab", "from ditlab.cli.main import main; main(['--help'])", "import ditlab.recipes"]
)
def test_starting_up_imports_no_torch(code):
    script = f"{code}\nimport sys\nassert not {{'torch', 'numpy', 'sklearn', 'matplotlib'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_every_public_name_is_there_and_documented():
    for name in ditlab.__all__:
        assert getattr(ditlab, name) is not None
        assert name in dir(ditlab)
    assert set(ditlab._HOME) == set(ditlab.__all__)
    with pytest.raises(AttributeError, match="DiTT"):
        _ = ditlab.DiTT


def test_torchvision_is_not_installed_with_us():
    """There is none beside the CPU build of torch, and one that does not fit breaks the import of diffusers."""
    for file in ("constraints.txt", "pyproject.toml"):
        lines = (ROOT / file).read_text().splitlines()
        assert not [line for line in lines if "torchvision" in line.split("#")[0]]
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()


def test_readme_and_help_name_the_same_verbs():
    from ditlab.cli.main import VERBS, usage

    readme = (ROOT / "README.md").read_text()
    for verb in VERBS:
        assert f"ditlab {verb}" in readme
        assert verb in usage()
