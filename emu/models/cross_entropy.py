"""Cross-entropy straight from hidden states, in chunks of rows: the logits of all rows never exist at once.

Full logits of 4 x 1,024 positions over 32,004 rows of the vocabulary take 0.5 GB, and autograd keeps them three times.
Here only the positions that predict a target count, and their logits are computed for a chunk of rows at a time. The
gradients of a chunk are taken at once, while its logits are at hand, so nothing is computed twice: three matrix
products, as with full logits.

The loss and the gradient of the weight are summed in float32, whatever the precision of the products. (torch's
`linear_cross_entropy` works in chunks too, but gives the sum in the precision of its inputs: in bfloat16 with three
digits.)

Shapes: T positions that predict a target, D language width, W rows of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 2**23, "cuda": 2**28}
"""Memory of the logits of a chunk, by type of device. On a CPU it should fit into the last cache."""
MIN_ROWS = 16


def chunked_cross_entropy(
    hidden_TD: Tensor, weight_WD: Tensor, labels_T: Tensor, chunk_rows: int | None = None
) -> Tensor:
    """The sum of the cross-entropies of `labels_T` under the logits `hidden_TD @ weight_WD.T`, a float32 scalar.

    Under autocast the products are in its precision. `chunk_rows` is the number of rows of a chunk; None chooses it
    by memory. The graph can be differentiated once: `backward` takes the gradients that the forward computed.
    """
    device = hidden_TD.device.type
    is_mixed = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if is_mixed else hidden_TD.dtype
    if chunk_rows is None:
        chunk_rows = default_rows(len(weight_WD), device)
    needed = (
        torch.is_grad_enabled() and hidden_TD.requires_grad,
        torch.is_grad_enabled() and weight_WD.requires_grad,
    )
    with torch.autocast(device, enabled=False):
        total: Tensor = _ChunkedCrossEntropy.apply(
            hidden_TD.to(dtype), weight_WD, labels_T, chunk_rows, needed
        )
    return total


def default_rows(num_classes: int, device: str) -> int:
    """Rows of a chunk whose float32 logits over `num_classes` take `CHUNK_BYTES`."""
    limit = CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"])
    return max(MIN_ROWS, limit // (4 * num_classes))


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Gradients are computed in the forward pass and scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_WD: Tensor,
        labels_T: Tensor,
        chunk_rows: int,
        needed: tuple[bool, bool],
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden_TD.device)
        compute_WD = weight_WD.to(hidden_TD.dtype)
        ctx.hidden = torch.empty_like(hidden_TD) if needed[0] else None
        ctx.weight = torch.zeros_like(weight_WD, dtype=torch.float32) if needed[1] else None
        ctx.dtype = weight_WD.dtype
        for start in range(0, len(labels_T), chunk_rows):
            rows = slice(start, start + chunk_rows)
            logits_CW = torch.mm(hidden_TD[rows], compute_WD.t()).float()
            total += _to_gradient(logits_CW, labels_T[rows])
            gradient_CW = logits_CW.to(hidden_TD.dtype)
            if ctx.hidden is not None:
                torch.mm(gradient_CW, compute_WD, out=ctx.hidden[rows])
            if ctx.weight is not None:
                _add_product(ctx.weight, gradient_CW, hidden_TD[rows])
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (scale,) = gradients
        hidden, weight, ctx.hidden, ctx.weight = ctx.hidden, ctx.weight, None, None
        if hidden is None and weight is None:
            raise RuntimeError("the gradients of chunked_cross_entropy have been taken before")
        if hidden is not None:
            hidden.mul_(scale)
        if weight is not None:
            weight = weight.mul_(scale).to(ctx.dtype)
        return hidden, weight, None, None, None


def _to_gradient(logits_CW: Tensor, labels_C: Tensor) -> Tensor:
    """The summed cross-entropy of a chunk; turns its logits in place into their gradient, softmax - one-hot."""
    labels_C1 = labels_C[:, None]
    logits_CW.sub_(logits_CW.amax(dim=1, keepdim=True))
    chosen_C1 = logits_CW.gather(1, labels_C1)
    sums_C1 = logits_CW.exp_().sum(dim=1, keepdim=True)
    logits_CW.div_(sums_C1)
    logits_CW.scatter_add_(1, labels_C1, logits_CW.new_full(labels_C1.shape, -1.0))
    return (sums_C1.log() - chosen_C1).sum()


def _add_product(sum_WD: Tensor, gradient_CW: Tensor, hidden_CD: Tensor) -> None:
    """Adds `gradient_CW.T @ hidden_CD` to a float32 matrix."""
    if hidden_CD.dtype == torch.float32:
        torch.addmm(sum_WD, gradient_CW.t(), hidden_CD, out=sum_WD)
    else:
        sum_WD += torch.mm(gradient_CW.t(), hidden_CD)
