"""Whether two commits train to the same bytes: python tools/same_bytes.py BEFORE [AFTER].

Trains circles, points, digits, a folder of images, a DDPM and a MeanFlow for 30 steps in fp32 on one thread with each
commit (AFTER is the working tree unless given), and compares the sha256 of the tensors of ``model`` and ``ema``. Then
AFTER draws from the runs that BEFORE trained, and takes them ten steps further, to the bytes that BEFORE comes to.
About four minutes; ends with 1 if anything differs.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
PLAIN = ["--precision", "fp32", "--threads", "1", "--no-compile", "--device", "cpu", "--batch-size", "16"]
SMALL = ["--network.dim", "32", "--network.depth", "2", "--network.heads", "2"]
CASES = {
    "circles": ["circles", *SMALL],
    "points": ["points", "--data.name", "moons"],
    "digits": ["digits", *SMALL],
    "images": ["images", "--data.path", "pictures", "--data.image-size", "16", *SMALL],
    "ddpm": ["digits", "--process", "ddpm", "--network.learned-variance", *SMALL],
    "meanflow": ["digits", "--process", "meanflow", *SMALL],
}


def pictures(folder: Path) -> None:
    """Two classes of noisy squares."""
    draws = np.random.default_rng(0)
    for number in range(32):
        place = folder / ("light" if number % 2 else "dark")
        place.mkdir(parents=True, exist_ok=True)
        pixels = draws.integers(0, 128, (16, 16, 3), dtype=np.uint8) + np.uint8(127 * (number % 2))
        Image.fromarray(pixels).save(place / f"{number:02}.png")


def ditlab(source: Path, folder: Path, *words: str) -> None:
    """Run a verb of the ditlab in ``source``."""
    environment = os.environ | {"PYTHONPATH": str(source / "src"), "OMP_NUM_THREADS": "1"}
    environment |= {"DITLAB_CACHE": str(folder.parent / "cache")}  # with what this machine does best
    command = [sys.executable, "-m", "ditlab", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed with {source}:\n{done.stderr[-2000:]}")


def digests(run: Path, step: int) -> dict[str, str]:
    """The sha256 of the tensors of a checkpoint, by part."""
    found = {}
    for part in ("model", "ema"):
        digest = hashlib.sha256()
        tensors = load_file(run / "checkpoints" / f"step-{step:08}" / f"{part}.safetensors")
        for name in sorted(tensors):
            digest.update(name.encode() + tensors[name].tobytes())
        found[f"{part} at {step}"] = digest.hexdigest()
    return found


def figures(source: Path, folder: Path, name: str) -> dict[str, str]:
    """The digests of one case, trained in ``folder``; of a run that is there already, those of going on with it."""
    run = folder / "runs" / name
    if not run.exists():
        ditlab(source, folder, "train", *CASES[name], *PLAIN, "--steps", "30", "--name", name)
        return digests(run, 30)
    ditlab(source, folder, "sample", f"runs/{name}", "--n", "4", "--out", f"{name}.npz")
    samples = np.load(folder / f"{name}.npz")["samples"].tobytes()
    ditlab(source, folder, "train", "--resume", f"runs/{name}", "--steps", "40")
    return {"samples": hashlib.sha256(samples).hexdigest()} | digests(run, 40)


def main() -> None:
    """Train with both, and say what differs."""
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as place:
        sources: list[Path] = []
        for commit in sys.argv[1:]:
            sources.append(Path(place) / f"source{len(sources)}")
            sources[-1].mkdir()
            archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True)
            subprocess.run(["tar", "-x", "-C", str(sources[-1])], input=archive.stdout, check=True)
        before, after = (*sources, ROOT)[:2]
        folders = [Path(place) / name for name in ("before", "after", "on")]
        for folder in folders:
            pictures(folder / "pictures")
        same = True
        for name in CASES:
            told = [figures(source, folder, name) for source, folder in ((before, folders[0]), (after, folders[1]))]
            subprocess.run(["cp", "-r", str(folders[0] / "runs"), str(folders[2])], check=True)
            if name == "images":  # a run knows its data by their full path
                config = folders[2] / "runs" / name / "config.json"
                config.write_text(config.read_text().replace(str(folders[0]), str(folders[2])))
            further = [figures(before, folders[0], name), figures(after, folders[2], name)]
            for one, other in (told, further):
                for what, digest in one.items():
                    same &= digest == other[what]
                    print(f"{name:9} {what:12} {digest[:16]} {'same' if digest == other[what] else other[what][:16]}")
            subprocess.run(["rm", "-rf", str(folders[2] / "runs")], check=True)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
