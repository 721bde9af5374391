"""Logits, the loss, and the gradients of the output layer and of the embeddings on their way."""

from __future__ import annotations

from pipeline.plan.training.eager.setting import Setting

BLOCK = 512  # positions of a loss's block on a CPU (engines/automodel/linear_loss.py)
BLOCK_BYTES = 1 << 30  # of its fp32 logits on a GPU


def logits_bytes(setting: Setting, live: bool = False) -> float:
    """Logits, the loss, and gradients of the output layer and of the embeddings on their way."""
    if setting.reward:
        return 0.0  # its head has one output
    model, b = setting.model, setting.element
    vocabulary, labels = model.vocab_size, setting.batch.labels
    weight = 0 if setting.adapted else vocabulary * model.hidden_size
    # At the end of the backward pass the embeddings' gradient joins that of the output layer, where they are one.
    ends = (4 if setting.mode == "autocast" else b) * weight * (2 if model.tie_embeddings else 1)
    if not setting.whole:
        return max(_blocked(setting, weight), 2 * 4 * weight, ends)
    everything = 0 if setting.gathers_labels else setting.batch.tokens
    forward = b * everything + b * labels  # all logits, and those of the labels
    loss = (2 * 4 + (b if b < 4 else 0)) * labels  # fp32 logits, log-softmax, and the narrower logits
    backward = 3 * 4 * labels  # log-softmax, its gradient, and that of the logits
    spread = 2 * b * everything + b * labels  # the gradient of the labels' logits, put among zeros
    found = [forward, loss, backward, spread]
    if live:  # the reference's loss beside the policy's log-softmax
        found += [4 * labels + loss, 4 * labels + forward]
    widened = b + (4 if setting.mode == "autocast" else 0)
    through = b * (everything or labels) * vocabulary + widened * weight  # the output layer's backward pass
    return max(*(vocabulary * each for each in found), through, ends)


def _blocked(setting: Setting, weight: int) -> float:
    """The loss a block of positions at a time, ``engines/automodel/linear_loss.py``."""
    model, b, labels = setting.model, setting.element, setting.batch.labels
    size = BLOCK if setting.device == "cpu" else max(BLOCK, BLOCK_BYTES // (4 * model.vocab_size))
    # fp32 logits that become the error, and in bf16 both the product and the narrowed error besides.
    each = 4 if b == 4 else 6
    first = min(labels, size)
    second = min(labels - first, size)  # a block's tensors live until the next one's take their names
    return each * (first + second) * model.vocab_size + 4 * weight + (0 if second else b * weight)


def pending(setting: Setting) -> float:
    """The output layer's gradient, which waits for that of the embeddings where they are one."""
    if setting.adapted or not setting.model.tie_embeddings:
        return 0.0
    each = 2 if setting.mode == "bf16" else 4
    return each * setting.model.vocab_size * setting.model.hidden_size
