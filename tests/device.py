"""A GPU that is not there: tensors that say they are on Apple's GPU, with their numbers in a CPU's memory.

It computes what a CPU computes, bit for bit, and is as strict as a real one: no float64, no tensor of the host in an
operation beside a single number. It notes whatever makes the host and the device wait for each other: copies from one
to the other, and numbers that the host reads. "mps" is the name because torch needs no driver to say it.
"""

import re
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
import torchgen
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

DEVICE = torch.device("mps:0")
HOST = torch.device("cpu")
THERE = (DEVICE.type, "meta")
aten = torch.ops.aten

NUMBERS = {"add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_", "maximum", "minimum", "pow", "gt", "lt", "ge"}
NUMBERS |= {"_foreach_mul_", "_amp_foreach_non_finite_check_and_unscale_"}  # take a number of the host as it is
COPIED = {"where", "index", "index_put_"}  # copy a tensor of the host to the device first


class OnDevice(torch.Tensor):
    """A tensor on the device; ``held`` is the one that has its numbers."""

    @staticmethod
    def __new__(cls, real):
        layout = {"strides": real.stride(), "storage_offset": real.storage_offset(), "dtype": real.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, real.shape, device="meta", **layout)  # of no backend
        made.held = real
        return made

    @property
    def device(self):
        return DEVICE

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of the device")

    def __repr__(self):
        return f"OnDevice({self.held})"


class Device(TorchDispatchMode):
    """Within it tensors can be made on ``DEVICE`` and moved there; ``waits`` lists what was waited for, in order."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        flat, _ = tree_flatten((args, kwargs))
        tensors = [each for each in flat if isinstance(each, torch.Tensor)]
        here = any(isinstance(each, OnDevice) for each in tensors)
        if func is aten._to_copy.default or func is aten.copy_.default:
            return self._copy(func, args, kwargs)
        if func is aten.to.dtype_layout:  # torch looks for the shape that a product with zeros will have
            return func(getattr(args[0], "held", args[0]), **kwargs)
        if not here and torch.device(kwargs.get("device") or HOST).type not in THERE:
            return func(*args, **kwargs)
        if not has_kernel(func.name().removeprefix("aten::").removesuffix(".default")):
            raise RuntimeError(f"{func.name()}: torch has no kernel for the device")
        if func is aten._local_scalar_dense.default:
            self.waits.append("a number is read")
        else:
            self._check(name, tensors)
        if "device" in kwargs:
            kwargs["device"], kwargs["pin_memory"] = HOST, None
        real = [tree_map_only(OnDevice, lambda each: each.held, part) for part in (args, kwargs)]
        out = (STAND_INS.get(name) or func)(*real[0], **real[1])
        return return_and_correct_aliasing(func, args, kwargs, self._wrapped(name, out))

    def _check(self, name, tensors):
        for each in tensors:
            if isinstance(each, OnDevice) or (each.dim() == 0 and name in NUMBERS):
                continue
            if name not in COPIED:
                raise RuntimeError(f"{name}: a tensor of the host, {tuple(each.shape)}, beside one of the device")
            self.waits.append(f"{name} copies {tuple(each.shape)} to the device")

    def _wrapped(self, name, out):
        flat, spec = tree_flatten(out)
        for each in flat:
            if isinstance(each, torch.Tensor) and each.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"{name}: the device has no float64")
        return tree_unflatten([OnDevice(each) if isinstance(each, torch.Tensor) else each for each in flat], spec)

    def _copy(self, func, args, kwargs):
        """A copy, within the device, within the host, or from one to the other."""
        source = args[1] if func is aten.copy_.default else args[0]
        if func is aten.copy_.default:
            to = args[0].device
        else:
            to = torch.device(kwargs.pop("device", None) or source.device)
            to = DEVICE if to.type in THERE else to
        if to == HOST and kwargs.get("dtype") in (torch.float64, torch.complex128) and source.device == DEVICE:
            raise TypeError("a copy converts on the device, which has no float64")
        if to.type != source.device.type:
            self.waits.append(f"a copy of {tuple(source.shape)} to {to.type}")
        real = [each.held if isinstance(each, OnDevice) else each for each in args]
        out = func(*real, **kwargs)
        if func is aten.copy_.default:
            return args[0]
        return self._wrapped("to", out) if to.type == DEVICE.type else out


STAND_INS = {"_efficientzerotensor": torch.zeros}  # which has no memory


class _Numbers(TorchFunctionMode):
    """Python's numbers on their way to the device and back, which torch would take unseen."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor):
            return func(*args, **{**kwargs, "device": None}).to(kwargs.get("device") or HOST)
        if func is torch.Tensor.tolist:
            return func(args[0].to(HOST))
        return func(*args, **kwargs)


@contextmanager
def device():
    """The device, while it is there: what it waited for can be asked of it."""
    with Device() as mode, _Numbers():
        yield mode


@cache
def _kernels():
    """What torch says of its operations, by name (its native_functions.yaml)."""
    text = (Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml").read_text()
    return dict(re.findall(r"^- func: ([\w.]+)\(.*\n((?:(?!- func).*\n)+)", text, re.MULTILINE))


@cache
def has_kernel(name):
    """Whether torch has an operation for Apple's GPUs, or makes it of others."""
    about = _kernels().get(name, "")
    if delegate := re.search(r"structured_delegate: (\S+)", about):
        return has_kernel(delegate[1])
    return "dispatch:" not in about or re.search(r"\b(MPS|Composite\w+)\b", about) is not None
