"""What samples are compared by: features, computed a batch at a time by something with a name and an identity."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ditlab.core.errors import InputError
from ditlab.evaluation.metrics.discs import disc_parameters

FEW_VALUES = 256  # of a sample, up to which all are features
SIDE = 8  # that larger images are averaged to
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"  # as torch-fidelity publishes them


@runtime_checkable
class Features(Protocol):
    """Turns samples (B, *shape), images in [−1, 1], into features (B, D): each by itself, whatever the batch.

    ``name`` is the word it is asked for by, ``description`` says what the features are, and ``digest`` is the same as
    long as they are computed in the same way. ``at_once`` is how many it takes together, for its memory.
    """

    name: str
    description: str
    digest: str
    at_once: int

    def __call__(self, samples: Tensor) -> Float[Tensor, "B d"]: ...


def digest_of(*parts: object) -> str:
    """Twelve hexadecimal digits that stand for all the parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


class Values:
    """The sample's own numbers; of images with more than 256, the means over an 8×8 grid."""

    name = "pixels"
    at_once = 500

    def __init__(self, shape: tuple[int, ...], latent: bool = False) -> None:
        self.averaged = len(shape) == 3 and math.prod(shape) > FEW_VALUES
        noun = "latent" if latent else "pixel"
        self.description = f"{math.prod(shape)} {noun} values"
        if len(shape) == 1:
            self.description = f"{shape[0]} coordinates"
        if self.averaged:
            cells = "×".join(map(str, (shape[0], *(min(side, SIDE) for side in shape[1:]))))
            self.description = f"{cells} averages of {noun} values"
        self.digest = digest_of("values", shape, self.averaged)

    def __call__(self, samples: Tensor) -> Float[Tensor, "B d"]:
        if self.averaged:
            size = (min(samples.shape[2], SIDE), min(samples.shape[3], SIDE))
            samples = nn.functional.adaptive_avg_pool2d(samples, size)
        return samples.flatten(1)


class Disc:
    """Centre and radius of what is bright in an image, in half widths of it, from its middle."""

    name = "disc"
    at_once = 500
    description = "centre and radius of the disc of the same area and centroid, in half image widths"
    digest = digest_of("disc", 1)

    def __call__(self, samples: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 3"]:
        half = samples.shape[-1] / 2
        return disc_parameters(samples.cpu()) / half - torch.tensor([1.0, 1.0, 0.0])


class Inception:
    """The 2,048 features of the Inception-v3 that FIDs are published with, as torch-fidelity computes them.

    Images are rounded to 8 bits, grey ones repeated in three channels, and brought to 299×299 by the bilinear rule of
    TensorFlow 1, which is part of that network. Its weights are not fetched: they have to be at hand.

    Raises:
        InputError: torchmetrics, torch-fidelity or the weights are missing; the line says how to come by them.
    """

    name = "inception"
    at_once = 50  # of 299×299 pixels
    description = "2048 features of Inception-v3 (2015-12-05), images rounded to 8 bits"

    def __init__(self, device: torch.device) -> None:
        wanting = [name for name in ("torchmetrics", "torch_fidelity") if find_spec(name) is None]
        if wanting:
            packages = " and ".join(name.replace("_", "-") for name in wanting)
            raise InputError(
                f"--features inception needs {packages}, not installed here: pip install "
                f"{packages.replace(' and ', ' ')}; or use --features classifier"
            )
        path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
        if not path.is_file():
            raise InputError(
                f"--features inception needs the network's weights at {path}: fetch {INCEPTION} from the releases of "
                f"github.com/toshas/torch-fidelity; or use --features classifier"
            )
        try:
            from torchmetrics.image.fid import NoTrainInceptionV3

            network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
        except (ImportError, RuntimeError, NameError) as error:  # torch-fidelity needs a torchvision that fits torch
            told = " ".join(str(error).split())[:120]
            raise InputError(
                f"--features inception: torch-fidelity does not work here ({told}); it needs the torchvision that was "
                f"built for torch {torch.__version__}; or use --features classifier"
            ) from None
        self.network: nn.Module = network.to(device).eval().requires_grad_(False)
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]

    def __call__(self, samples: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 2048"]:
        pixels = ((samples.clamp(-1, 1) + 1) * 127.5).round().byte()
        with torch.no_grad():
            return self.network(pixels.expand(-1, 3, -1, -1))


class Custom:
    """A function of one's own, named as ``module:function``; the digest is of the file that it is written in."""

    def __init__(self, name: str) -> None:
        self.name = self.description = name
        self.at_once = 500
        self.function = _find(name)
        try:
            source = Path(inspect.getfile(inspect.unwrap(self.function))).read_bytes()
        except (TypeError, OSError):  # an object, or built in
            source = repr(type(self.function)).encode()
        self.digest = hashlib.sha256(source).hexdigest()[:12]

    def __call__(self, samples: Tensor) -> Float[Tensor, "B d"]:
        try:
            found = self.function(samples)
        except Exception as error:
            raise InputError(f"--features {self.name} failed: {_told(error)}") from error
        if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(samples):
            told = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(f"{self.name} is to give ({len(samples)}, D) features of {len(samples)} samples: {told}")
        return found


def _told(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _find(name: str) -> Callable[[Tensor], Tensor]:
    """What ``module:function`` names, with the working folder among the places looked at.

    Raises:
        InputError: there is no such thing, or it cannot be called.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute or module.startswith("."):
        raise InputError(f"--features {name}: name a function as module:function, a file mine.py as mine:function")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        raise InputError(f"--features {name}: {_told(error)}; name a function as module:function") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise InputError(f"--features {name} is a {type(found).__name__}: name a function of a batch of samples")
    return found
