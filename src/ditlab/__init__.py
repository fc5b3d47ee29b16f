"""ditlab trains, samples, measures and looks inside diffusion transformers.

Importing the package imports no torch: each public name is fetched from its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditlab.cli.recipe import recipe
    from ditlab.config.config import Config
    from ditlab.core.errors import ConfigError, InputError
    from ditlab.core.registry import register, register_conditioning, register_network, register_solver
    from ditlab.data.as_dataset import as_dataset
    from ditlab.data.conditions import Label, Scalar, Text
    from ditlab.data.dataset import Dataset
    from ditlab.diffusion.ddpm import DDPM
    from ditlab.diffusion.flow_matching import FlowMatching
    from ditlab.diffusion.guidance import ClassifierFree, Guidance, Interval, Rescaled
    from ditlab.diffusion.likelihood import log_likelihood
    from ditlab.diffusion.meanflow import MeanFlow
    from ditlab.diffusion.process import Process
    from ditlab.diffusion.solvers import (
        DormandPrince,
        DPMSolverPlusPlus,
        DPMSolverPlusPlus3M,
        Euler,
        EulerMaruyama,
        Heun,
        Solver,
    )
    from ditlab.diffusion.targets import Estimate
    from ditlab.evaluation.evaluate import evaluate
    from ditlab.inspection.probe import probe
    from ditlab.interop.exports import export_run
    from ditlab.interop.imports import import_checkpoint
    from ditlab.lab.notebook import show
    from ditlab.networks.conditioner import Embedded
    from ditlab.networks.conditionings import Conditioning
    from ditlab.networks.dit import DiT
    from ditlab.networks.embeddings import PatchEmbed, SinEmb
    from ditlab.networks.mlp import MLPDenoiser, MLPVelocity
    from ditlab.networks.modulation import BlockModulation, Modulation
    from ditlab.networks.unet import UNet
    from ditlab.runs.run import Run, load
    from ditlab.train import fit

_HOME = {
    "DiT": "networks.dit",
    "UNet": "networks.unet",
    "MLPDenoiser": "networks.mlp",
    "MLPVelocity": "networks.mlp",
    "Conditioning": "networks.conditionings",
    "Embedded": "networks.conditioner",
    "Modulation": "networks.modulation",
    "BlockModulation": "networks.modulation",
    "register_conditioning": "core.registry",
    "PatchEmbed": "networks.embeddings",
    "SinEmb": "networks.embeddings",
    "DDPM": "diffusion.ddpm",
    "FlowMatching": "diffusion.flow_matching",
    "MeanFlow": "diffusion.meanflow",
    "Process": "diffusion.process",
    "log_likelihood": "diffusion.likelihood",
    "Estimate": "diffusion.targets",
    "Solver": "diffusion.solvers",
    "register_solver": "core.registry",
    "register_network": "core.registry",
    "Euler": "diffusion.solvers",
    "Heun": "diffusion.solvers",
    "DPMSolverPlusPlus": "diffusion.solvers",
    "DPMSolverPlusPlus3M": "diffusion.solvers",
    "EulerMaruyama": "diffusion.solvers",
    "DormandPrince": "diffusion.solvers",
    "Guidance": "diffusion.guidance",
    "ClassifierFree": "diffusion.guidance",
    "Interval": "diffusion.guidance",
    "Rescaled": "diffusion.guidance",
    "probe": "inspection.probe",
    "Run": "runs.run",
    "load": "runs.run",
    "register": "core.registry",
    "show": "lab.notebook",
    "import_checkpoint": "interop.imports",
    "export_run": "interop.exports",
    "recipe": "cli.recipe",
    "fit": "train",
    "evaluate": "evaluation.evaluate",
    "Config": "config.config",
    "Dataset": "data.dataset",
    "Label": "data.conditions",
    "Scalar": "data.conditions",
    "Text": "data.conditions",
    "as_dataset": "data.as_dataset",
    "InputError": "core.errors",
    "ConfigError": "core.errors",
}

__all__ = [
    "DDPM",
    "BlockModulation",
    "ClassifierFree",
    "Conditioning",
    "Config",
    "ConfigError",
    "DPMSolverPlusPlus",
    "DPMSolverPlusPlus3M",
    "Dataset",
    "DiT",
    "DormandPrince",
    "Embedded",
    "Estimate",
    "Euler",
    "EulerMaruyama",
    "FlowMatching",
    "Guidance",
    "Heun",
    "InputError",
    "Interval",
    "Label",
    "MLPDenoiser",
    "MLPVelocity",
    "MeanFlow",
    "Modulation",
    "PatchEmbed",
    "Process",
    "Rescaled",
    "Run",
    "Scalar",
    "SinEmb",
    "Solver",
    "Text",
    "UNet",
    "as_dataset",
    "evaluate",
    "export_run",
    "fit",
    "import_checkpoint",
    "load",
    "log_likelihood",
    "probe",
    "recipe",
    "register",
    "register_conditioning",
    "register_network",
    "register_solver",
    "show",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ditlab' has no attribute {name!r}")
    value = getattr(import_module(f"ditlab.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
