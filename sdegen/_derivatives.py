"""Gradients inside a model: of what a network says, or of what is made of its answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

following: ContextVar[bool] = ContextVar("following", default=False)
"""Whether a gradient is being taken through the network, so that one without a gradient must not pass in silence."""


def uncompiled() -> AbstractContextManager[None]:
    """Inside, networks made by torch.compile run as they were written.

    The backward pass of a compiled network can be taken once, for one product, and not be differentiated: a solve with
    one product a query may leave it compiled, every other one enters this. It does nothing where nothing was compiled,
    and before torch 2.6, where no such switch exists.
    """
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        return nullcontext()
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Inside, a network's answer can be differentiated twice: attention by plain products, nothing compiled.

    The kernels of fused attention have one derivative alone. Which kernel runs is decided in the forward pass, so this
    belongs around the network call; a checkpoint that recomputes the call must enter it again.
    """
    with sdpa_kernel(SDPBackend.MATH), uncompiled():
        yield


@contextmanager
def outside_inference() -> Iterator[None]:
    """Inside, tensors are normal ones, of which gradients can be taken, also where the caller is in inference mode."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def differentiated(y: Tensor, several: bool = False) -> Iterator[tuple[Tensor, bool]]:
    """Inside, gradients are on: (y, keep), a state with a gradient, and whether what is computed keeps its graph.

    Where gradients were on already, y is the state itself and its derivatives shall have derivatives; elsewhere y is a
    leaf, whose graph ends here. `several` says that more than one backward pass will be taken.
    """
    keep = torch.is_grad_enabled()
    outer = following.set(True)
    try:
        with torch.enable_grad(), twice_differentiable() if keep else uncompiled() if several else nullcontext():
            yield y if keep and y.requires_grad else y.clone().detach().requires_grad_(True), keep
    finally:
        following.reset(outer)
