"""The precision that hardware is given, by tables of its makers' facts."""

import pytest
import torch

from ditlab.core.device import HALVES, accelerator_precision, autocast, multiplies_bf16
from ditlab.machine.resolve import resolve_precision

CUDA = torch.device("cuda")
GPUS = [  # NVIDIA's compute capabilities; tensor cores multiply fp16 since Volta and bf16 since Ampere
    ("Tesla K80", (3, 7), "fp32"),
    ("Tesla P100-PCIE-16GB", (6, 0), "fp32"),
    ("NVIDIA GeForce GTX 1080", (6, 1), "fp32"),
    ("Tesla V100-SXM2-32GB", (7, 0), "fp16"),
    ("Xavier", (7, 2), "fp16"),
    ("Tesla T4", (7, 5), "fp16"),
    ("NVIDIA T4G", (7, 5), "fp16"),
    ("NVIDIA GeForce RTX 2080 Ti", (7, 5), "fp16"),
    ("Quadro RTX 6000", (7, 5), "fp16"),
    ("NVIDIA TITAN RTX", (7, 5), "fp16"),
    ("NVIDIA GeForce GTX 1660 Ti", (7, 5), "fp32"),  # of Turing, without tensor cores
    ("NVIDIA GeForce MX450", (7, 5), "fp32"),
    ("NVIDIA T400", (7, 5), "fp32"),
    ("NVIDIA A100-SXM4-80GB", (8, 0), "bf16"),
    ("NVIDIA GeForce RTX 3060", (8, 6), "bf16"),
    ("NVIDIA L4", (8, 9), "bf16"),
    ("NVIDIA H100 80GB HBM3", (9, 0), "bf16"),
    ("NVIDIA B200", (10, 0), "bf16"),
    ("NVIDIA GeForce RTX 5090", (12, 0), "bf16"),
]


@pytest.mark.parametrize(("name", "capability", "precision"), GPUS, ids=[gpu[0] for gpu in GPUS])
def test_auto_on_a_gpu(monkeypatch, name, capability, precision):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert accelerator_precision(CUDA) == resolve_precision("auto", CUDA) == precision
    assert multiplies_bf16(CUDA) == (precision == "bf16")
    assert resolve_precision("fp32", CUDA) == "fp32"


def test_apples_gpus_get_fp32():
    assert resolve_precision("auto", torch.device("mps")) == "fp32"
    assert not multiplies_bf16(torch.device("mps"))


@pytest.mark.parametrize("precision", ["fp32", *HALVES])
def test_products_are_in_the_precision(precision):
    with autocast(precision, torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == HALVES.get(precision, torch.float32)
