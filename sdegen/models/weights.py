"""The weights of a model by the names they have when nothing is wrapped, and filling a model with them."""

from __future__ import annotations

import os

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from sdegen._container import refusal, same_bits

Weights = dict[str, object]
"""A `state_dict` by the names it has when nothing is wrapped: tensors, and what modules add."""


def _inside(module: nn.Module) -> str | None:
    """The name by which a compiled or distributed module holds the one it is made of."""
    if "_orig_mod" in module._modules:
        return "_orig_mod"
    return "module" if isinstance(module, (DistributedDataParallel, nn.DataParallel)) else None


def innermost(module: object) -> object:
    """What is inside compiled, averaged and distributed modules."""
    while isinstance(module, nn.Module):
        name = "module" if isinstance(module, AveragedModel) else _inside(module)
        if name is None:
            break
        module = getattr(module, name)
    return module


def bare_names(model: nn.Module) -> dict[str, str]:
    """The names of a model's state as they are when nothing in it is wrapped, and those that they are now."""
    modules = [(name, _inside(module)) for name, module in model.named_modules(remove_duplicate=False)]
    inner = [(f"{name}.{inside}.", f"{name}.") for name, inside in modules if inside is not None]
    names = {}
    for own in model.state_dict():
        name = own
        for wrapped, bare in reversed(inner):  # the innermost first
            name = bare + name.removeprefix(wrapped) if name.startswith(wrapped) else name
        names[name] = own
    return names


def fill(file: str | os.PathLike[str], model: nn.Module, weights: Weights) -> None:
    """Load the weights into a model, after a ValueError if they are another's; what fails later is undone."""
    names, state = bare_names(model), model.state_dict()
    for name in [*names, *weights]:
        there, here = _words(weights, name), _words(state, names.get(name, ""))
        if there != here:
            raise refusal(file, f"holds the weights of another network: {name!r} is {there} there and {here} here")
        if hasattr(state[names[name]], "full_tensor"):
            raise ValueError(f"net is in parts, {name!r} is a DTensor: load into it first, and shard it afterwards.")
    before = _copies(state)
    try:
        state.update({own: weights[name] for name, own in names.items()})
        model.load_state_dict(state)
        _check_kept(file, names, model.state_dict(), weights)
    except Exception:
        model.load_state_dict(before)
        raise


def _copies(state: Weights) -> Weights:
    """The state as it is now, on the CPU."""
    try:
        return {own: v.to("cpu", copy=True) if isinstance(v, Tensor) else v for own, v in state.items()}
    except NotImplementedError as error:  # torch's answer for the meta device
        raise ValueError(
            "net is on the meta device and has no memory: give it some, net.to_empty(device=...)."
        ) from error


def _check_kept(file: str | os.PathLike[str], names: dict[str, str], state: Weights, weights: Weights) -> None:
    """A ValueError if a tensor is not what was loaded into it, as where it shares its memory with another."""
    for name, own in names.items():
        here, there = state[own], weights[name]
        if _is_extra(name) or not (isinstance(here, Tensor) and isinstance(there, Tensor)):
            continue
        if not same_bits(here.detach().cpu(), there):
            words = f"{name!r} does not keep what is loaded here, as if it shared its memory with another tensor"
            raise refusal(file, f"holds the weights of another network: {words}")


def _is_extra(name: str) -> bool:
    """Whether it names what a module says of itself by `get_extra_state`."""
    return name.rpartition(".")[2] == "_extra_state"


def _words(state: Weights, name: str) -> str:
    """An entry of a state, a tensor by its shape and dtype."""
    if name not in state:
        return "absent"
    value = state[name]
    if _is_extra(name):
        return "the state of get_extra_state()"
    if not isinstance(value, Tensor):
        return type(value).__name__
    if is_lazy(value):
        return "a tensor without a shape yet"
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
