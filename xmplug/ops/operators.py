"""Operators that PyTorch knows, so that autograd, torch.compile and opcheck work with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Operator:
    """A function made an operator of PyTorch, and called as the function is.

    schema: name, arguments and results, for example "double(Tensor a) -> Tensor". torch.library.custom_op does so too,
    but its operators import torch._dynamo when they are first called, which takes more than a second.
    """

    def __init__(self, schema: str, function: Callable[..., Any]):
        name = schema.partition("(")[0]
        self.name = f"xmplug::{name}"
        torch.library.define(self.name, schema[len(name) :], tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(self.name, "default", function)
        self.overload = getattr(torch.ops.xmplug, name).default

    def __call__(self, *arguments: Any) -> Any:
        return self.overload(*arguments)

    def register_fake(self, function: Callable[..., Any]) -> None:
        """What the results look like, for torch.compile: a function of the same arguments."""
        torch.library.register_fake(self.name, function)

    def register_autograd(self, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
        """How gradients go back, as torch.library.register_autograd takes it."""
        torch.library.register_autograd(self.name, backward, setup_context=setup_context)


def operator(schema: str) -> Callable[[Callable[..., Any]], Operator]:
    """Decorates the function that does what `schema` names."""
    return lambda function: Operator(schema, function)
