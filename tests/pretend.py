"""An accelerator that is not there: it shows, on any build of torch, what a program would do wrong on a real one.

Inside `with PretendDevice() as waits:` the device `DEVICE` can be named wherever torch takes one. Its tensors report
it, are computed on the CPU, and behave as a GPU's do towards the program that holds them:

- a computation that mixes them with CPU tensors raises; 0-dim numbers on the CPU are let through, as torch does it;
- whatever makes the program wait for the device is counted in `waits`, by the line of the package or engine it is on:
  reading a value (.item(), .tolist(), float, int, bool, range, format, an index that is a tensor of one number), shapes
  that depend on values (nonzero, masked_select, indexing with a mask, unique, bincount, repeat_interleave), answers
  that do (equal, allclose, the check in eigh), and every copy between it and the CPU, in both directions: torch waits
  for a copy to a GPU too, also for that of one number;
- a torch.Generator belongs to one device, and a draw on the other raises.

How: the device is called "meta", the one device besides the CPU that every build knows, its autograd engine included.
So nothing has to be registered with torch, and on the way out everything is as it was. Random numbers come from the
CPU's generator: one seed gives the same numbers here and there.

What it cannot show: kernels, speed, memory, streams; rounding other than the CPU's; the state of a GPU's generator
(torch.cuda.get_rng_state and its like are never called); code that asks for "cuda" by name. What it refuses: a change
of shape in place (NotImplementedError), .numpy() (TypeError, as on a GPU), tensors of this device made outside
(RuntimeError: they hold no values), and CPU indices, which torch would copy in silence. Its tensors cannot be pickled
or deep-copied. Of linalg only eigh, and what reports errors by an operation of its own, is known to wait.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
ATEN = torch.ops.aten
COPIES = (ATEN._to_copy.default, ATEN.copy_.default)
DEPENDS_ON_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
INDEXED = (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default)
CHECKED = (ATEN._linalg_eigh.default, ATEN._linalg_check_errors.default)
WATCHED = ("sdegen", "torchdiffeq", "torchsde")
Arguments = tuple[object, ...]
Options = dict[str, object]


class PretendTensor(torch.Tensor):
    """A tensor that reports `DEVICE`; its values are in `held`, on the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, device=DEVICE, **layout)

    def __init__(self, held: Tensor):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args: Arguments = (), kwargs: Options | None = None) -> object:
        """Outside a PretendDevice: computed all the same, nothing counted."""
        return dispatch(func, args, kwargs or {}, Counter())

    def tolist(self) -> object:
        """One copy to the CPU; torch itself refuses it for subclasses."""
        return self.cpu().tolist()

    def new_tensor(self, data: object, *, dtype: torch.dtype | None = None, device: object = None) -> Tensor:
        """One copy from the CPU, where torch itself would make a tensor without values."""
        return torch.tensor(data, dtype=dtype or self.dtype).to(device or DEVICE)

    def numpy(self, *, force: bool = False) -> object:
        """Refused, in torch's words for a GPU."""
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy; use Tensor.cpu() first.")

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 else repr(self)

    def __repr__(self) -> str:
        return f"pretend({self.held!r})"


def dispatch(func, args: Arguments, kwargs: Options, waits: Counter[str]) -> object:
    """Run one operation on the CPU as a device would: look at where its tensors live, count, compute, wrap."""
    ours: list[PretendTensor] = []
    plain: list[Tensor] = []
    over(lambda x: (ours if isinstance(x, PretendTensor) else plain).append(x), (*args, *kwargs.values()))
    target = kwargs.get("device")
    here = bool(ours) if target is None else torch.device(target).type == DEVICE.type
    if any(x.device.type == DEVICE.type for x in plain):
        raise RuntimeError(f"A tensor without values came to {func} at {place()}: make it inside PretendDevice().")
    if not (here or ours):
        return func(*args, **kwargs)
    if plain:
        _refuse_mixtures(func, ours, plain, args)
    if _waits(func, args, ours, here):
        waits[place()] += 1
    inner_args = over(lambda x: x.held if isinstance(x, PretendTensor) else x, args)
    inner_kwargs = {
        name: over(lambda x: x.held if isinstance(x, PretendTensor) else x, v) for name, v in kwargs.items()
    }
    if target is not None:
        inner_kwargs["device"] = torch.device("cpu")
    out = func(*inner_args, **inner_kwargs)
    if any(x.held.shape != x.shape for x in ours):
        raise NotImplementedError(f"{func} changes a shape in place, which the pretend device cannot show.")
    if func is ATEN.copy_.default:
        return args[0]
    if not here:
        return out
    outer = {id(x.held): x for x in ours}  # what an in-place operation returns is the tensor it was given
    return over(lambda x: outer[id(x)] if id(x) in outer else PretendTensor(x), out)


def over(f: Callable[[Tensor], object], value: object) -> object:
    """`value` with f(x) for every tensor x in it, in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, (tuple, list)):
        inside = [over(f, x) for x in value]
        return type(value)(*inside) if hasattr(value, "_fields") else type(value)(inside)
    return {name: over(f, x) for name, x in value.items()} if isinstance(value, dict) else value


def _refuse_mixtures(func, ours: list[PretendTensor], plain: list[Tensor], args: Arguments) -> None:
    """A RuntimeError where a GPU would raise one; numbers on the CPU may enter, but not be joined or written to."""
    if not ours or func in COPIES:
        return
    joins = func in (ATEN.cat.default, ATEN.stack.default)
    written = func._schema.is_mutable and args[0] is plain[0]
    wrong = [tuple(x.shape) for x in plain if x.ndim or joins or written]
    if wrong:
        raise RuntimeError(f"Devices are mixed in {func} at {place()}: tensors of shapes {wrong} are on the CPU.")


def _waits(func, args: Arguments, ours: list[PretendTensor], here: bool) -> bool:
    """Whether the program would wait here until the device has done everything it was asked before."""
    if func is ATEN._to_copy.default:
        return bool(ours) != here
    if func is ATEN.copy_.default:
        return isinstance(args[0], PretendTensor) != isinstance(args[1], PretendTensor)
    if not ours or not _may_look(func):
        return False
    if func in INDEXED:
        masks = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        return masks and (func is ATEN.index.Tensor or args[2].numel() > 1)  # one value is filled in without looking
    return True


@cache
def _may_look(func) -> bool:
    return func in INDEXED or func in CHECKED or bool(DEPENDS_ON_VALUES.intersection(func.tags))


def place() -> str:
    """The innermost line of the package or of an engine that led here, such as "sdegen._checks:151"."""
    frame = sys._getframe()
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] in WATCHED:
            return f"{module}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


class _Python(TorchFunctionMode):
    """What torch does before its dispatcher is asked: lists of numbers become tensors, generators lose their class."""

    def __torch_function__(self, func, types, args: Arguments = (), kwargs: Options | None = None) -> object:
        kwargs = dict(kwargs or {})
        first = args[0] if args and isinstance(args[0], Tensor) else None
        asked = torch.device(kwargs.get("device") or ("cpu" if first is None else first.device))
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and first is None and asked == DEVICE:
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if func is torch.Tensor.__getitem__ and isinstance(first, PretendTensor) and isinstance(args[1], list):
            return first[torch.tensor(args[1]).to(DEVICE)]
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != asked.type:
            raise RuntimeError(f"A generator on {generator.device} came to {func.__name__} on {asked} at {place()}.")
        return func(*args, **kwargs)


class _EveryGenerator(type(torch.Generator)):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _TRUE_GENERATOR)


_TRUE_GENERATOR = torch.Generator


class PretendGenerator(torch.Generator, metaclass=_EveryGenerator):
    """Stands in for torch.Generator inside a PretendDevice: on `DEVICE` a CPU generator that reports it."""

    def __new__(cls, device: torch.device | str = "cpu") -> torch.Generator:
        there = torch.device(device).type == DEVICE.type
        return super().__new__(cls) if there else _TRUE_GENERATOR(device)

    @property
    def device(self) -> torch.device:
        """`DEVICE`."""
        return DEVICE


class PretendDevice(TorchDispatchMode):
    """A context in which `DEVICE` works; `with` gives the Counter of its waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._python = _Python()

    def __enter__(self) -> Counter[str]:
        super().__enter__()
        self._python.__enter__()
        self._outside, torch.Generator = torch.Generator, PretendGenerator
        return self.waits

    def __exit__(self, *error: object) -> None:
        torch.Generator = self._outside
        self._python.__exit__(*error)
        super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args: Arguments = (), kwargs: Options | None = None) -> object:
        """Every operation that is called here."""
        return dispatch(func, args, kwargs or {}, self.waits)


def put(value: object) -> object:
    """Tensors, and modules by their parameters and buffers, on the pretend device; nested in tuples, lists, dicts."""
    with PretendDevice():
        if isinstance(value, torch.nn.Module):
            return value.to(DEVICE)
        return over(lambda x: x.to(DEVICE), value)


def held(value: object) -> object:
    """The same values on the CPU, uncounted; a ValueError for a tensor that is not on the pretend device."""

    def one(x: Tensor) -> Tensor:
        if not isinstance(x, PretendTensor):
            raise ValueError(f"A tensor of shape {tuple(x.shape)} lives on {x.device}, not on the pretend device.")
        return x.held

    return over(one, value)


def counted(call: Callable[[], object]) -> tuple[object, Counter[str]]:
    """What `call` returns on the pretend device, and its waits."""
    with PretendDevice() as waits:
        return call(), Counter(waits)


def growth(call: Callable[[int], object], short: int = 4, long: int = 36) -> Counter[str]:
    """The waits of `call(long)` beyond those of `call(short)`, place by place."""
    counted(lambda: call(short))  # whatever is moved once and kept does not belong to a step
    (_, few), (_, many) = counted(lambda: call(short)), counted(lambda: call(long))
    return many - few
