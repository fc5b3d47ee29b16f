import subprocess
import sys
from pathlib import Path

from PIL import Image

EXAMPLE = Path(__file__).parents[1] / "examples" / "minimal.py"


def test_minimal_runs_and_fits_on_a_page(tmp_path):
    result = subprocess.run(
        [sys.executable, EXAMPLE, "60", tmp_path / "circles.png"], capture_output=True, text=True, check=True
    )
    losses = [float(line.split()[-1]) for line in result.stdout.splitlines() if line.startswith("step")]
    assert losses[-1] < 0.75 * losses[0]
    assert "252,496 parameters" in result.stdout
    assert Image.open(tmp_path / "circles.png").size == (548, 548)
    source = EXAMPLE.read_text()
    assert len(source.splitlines()) <= 120
    taken = [line.split()[1] for line in source.splitlines() if line.startswith("from ditlab.training")]
    assert taken == ["ditlab.training.muon"]  # an optimizer as torch's, and no trainer
    assert "FlowMatching(" not in source
