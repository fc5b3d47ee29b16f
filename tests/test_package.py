"""What holds for the package as a whole: what importing it imports, and what it names in public."""

import subprocess
import sys
from pathlib import Path

import pytest

import ditlab

ROOT = Path(__file__).parents[1]


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
