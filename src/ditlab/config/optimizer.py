"""The optimizers a run can train with: one section for each kind. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import tyro
from pydantic import Field

from ditlab.config.section import Section
from ditlab.config.values import Positive


class MuonConfig(Section):
    """Muon for the matrices of the blocks, AdamW for everything else."""

    prefix: ClassVar[str] = "optimizer."
    kind: Annotated[Literal["muon"], tyro.conf.Suppress] = "muon"
    matrix_lr_ratio: Positive = Field(7.5, description="learning rate of the blocks' matrices over lr")
    momentum: float = Field(0.95, ge=0, lt=1, description="of Muon")
    beta2: float = Field(0.95, ge=0, lt=1, description="of AdamW; beta1 is 0.9")
    weight_decay: float = Field(0.0, ge=0, le=1e9, description="decoupled, on all parameters")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of Muon's products; auto is the quicker on this machine"
    )


class AdamWConfig(Section):
    """AdamW for everything."""

    prefix: ClassVar[str] = "optimizer."
    kind: Annotated[Literal["adamw"], tyro.conf.Suppress] = "adamw"
    beta2: float = Field(0.999, ge=0, lt=1, description="beta1 is 0.9")
    weight_decay: float = Field(0.0, ge=0, le=1e9, description="decoupled, on all parameters")
