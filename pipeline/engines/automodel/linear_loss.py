"""Output layer and cross-entropy in one pass, a block of positions at a time.

On a CPU the logits of a small model with a vocabulary of thousands are by far its largest
tensor, and writing, reading and freeing them is most of a step's memory traffic.  Here a
block's logits live only until its share of the loss and of both gradients is known, as in
the fused linear cross-entropy kernels for GPUs (Hsu et al. 2024, "Liger Kernel",
section 3.2).  In alternation on 2 shared cores (1.3M parameters, 4,096 tokens), training
steps were 1.1 to 1.5 times as quick as with ``lm_head`` followed by ``cross_entropy``,
median 1.3 of six pairs.
"""

from __future__ import annotations

from typing import Any

import torch

BLOCK = 512  # positions; 512 x 4,096 fp32 logits are 8 MB and stay in the last-level cache


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, labels: Any) -> Any:
        narrow = weight.to(hidden.dtype)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), BLOCK):
            block, wanted = hidden[start : start + BLOCK], labels[start : start + BLOCK]
            rows = torch.arange(len(wanted), device=hidden.device)
            logits = (block @ narrow.t()).float()
            normaliser = torch.logsumexp(logits, dim=1)
            total += (normaliser - logits[rows, wanted]).sum()
            error = logits.sub_(normaliser[:, None]).exp_()  # softmax, then minus the one-hot label
            error[rows, wanted] -= 1
            error = error.to(hidden.dtype)
            hidden_gradient[start : start + BLOCK] = error @ narrow
            weight_gradient += (error.t() @ block).float()
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> tuple[Any, Any, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * gradient, (weight_gradient * gradient).to(ctx.weight_dtype), None


def linear_cross_entropy(hidden: Any, weight: Any, labels: Any) -> Any:
    """Summed cross-entropy of ``hidden @ weight.T`` against ``labels``, in nats.

    ``hidden`` is ``[positions, width]`` in the precision of the product, ``weight``
    ``[vocabulary, width]``, ``labels`` ``int64 [positions]``.  The sum and the weight's
    gradient are accumulated in fp32.
    """
    return _LinearCrossEntropy.apply(hidden, weight, labels)
