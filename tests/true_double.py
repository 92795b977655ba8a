"""Real double precision, for comparisons to 1e-10.

Model code of transformers casts to fp32 in places whatever the model's precision is: norms, softmax, rotary angles. Inside
`TrueDouble()` each request for fp32 is read as one for fp64, so that a difference can only come from different arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class TrueDouble(TorchFunctionMode):
    """Replace fp32 by fp64 in every call of torch inside."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` with fp64 wherever fp32 is asked for."""
        if func is torch.Tensor.float:
            return args[0].double()
        args = tuple(_wider(value) for value in args)
        return func(*args, **{name: _wider(value) for name, value in (kwargs or {}).items()})


def _wider(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
