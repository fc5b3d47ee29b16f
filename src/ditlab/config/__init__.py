"""The configuration of a run: frozen, validated, and enough to build everything from. Imports no torch."""

from ditlab.config.config import (
    KINDS,
    SNAPSHOTS,
    Config,
    KernelsConfig,
    NetworkConfig,
    ProcessConfig,
)
from ditlab.config.data import (
    CirclesData,
    DigitsData,
    ExternalData,
    ImagesData,
    LatentsData,
    LatentSpace,
    OwnData,
    PointsData,
    ScalarConfig,
)
from ditlab.config.network import DiTConfig, MLPConfig, OwnConfig, UNetConfig
from ditlab.config.optimizer import AdamWConfig, MuonConfig
from ditlab.config.process import DDPMConfig, FlowConfig, MeanFlowConfig, OwnProcess
from ditlab.config.sampling import SamplingConfig

__all__ = [
    "KINDS",
    "SNAPSHOTS",
    "AdamWConfig",
    "CirclesData",
    "Config",
    "DDPMConfig",
    "DiTConfig",
    "DigitsData",
    "ExternalData",
    "FlowConfig",
    "ImagesData",
    "KernelsConfig",
    "LatentSpace",
    "LatentsData",
    "MLPConfig",
    "MeanFlowConfig",
    "MuonConfig",
    "NetworkConfig",
    "OwnConfig",
    "OwnData",
    "OwnProcess",
    "PointsData",
    "ProcessConfig",
    "SamplingConfig",
    "ScalarConfig",
    "UNetConfig",
]
