"""Memory of a training step of the engine ``automodel``, counted tensor by tensor.

    footprint(model, settings, processes)                          # on GPUs, every sequence as long as the context
    footprint(model, settings, 1, device="cpu", batch=Batch(8, 96, 768, 400))    # of a batch that is known

The engine runs Hugging Face's ``LlamaForCausalLM`` eagerly, so what autograd keeps can be read off
``transformers/models/llama/modeling_llama.py`` (5.18) operation by operation (``layer.py``), what the loss keeps off
``engines/automodel/linear_loss.py``, ``recipe.py`` and ``preference_losses.py`` (``loss.py``), and what FSDP2
gathers off ``torch/distributed/fsdp/_fully_shard`` (2.13, ``buffers.py``).  Nothing is fitted.
``tests/stages/core/test_memory_measured.py`` holds every item to real steps on a CPU, in one and two processes.

What is computed in what (``mode``): ``fp32``: everything in fp32.  ``autocast``: weights and the stream between layers in
fp32, matrices in bf16.  ``bf16``: everything but norms and the loss in bf16; so are ``bf16-weights``, and ``bf16``
under FSDP2, which gathers fp32 shards as bf16.

Activations are at their highest at one of four moments (``moments.py``): while the loss is computed, in the
backward pass of the last norm, of the last layer's gated product, or of its attention.

``recompute: full`` is three things in AutoModel 0.7: with one process, and under FSDP2, whole layers are computed again from
their input; under DDP with several processes attention, feed-forward and both norms are checkpoints of their own, so
that four tensors of the model's width stay in every layer instead of one.  ``selective`` keeps every second matrix
product of a layer and what attention gives, and computes the rest again.

On a GPU attention is a flash kernel (queries, keys, values, its output and one normaliser a head); on a CPU in bf16
short sequences keep their scores (``engines/automodel/packing.py``).  Otherwise the GPU's kernels keep the same
tensors; this was not held to one.  Nor were tensor parallelism (what lies between matrices, weights and logits divided),
DoRA (two more tensors an adapted matrix) and QLoRA.
"""

from pipeline.plan.training.eager.items import Footprint as Footprint
from pipeline.plan.training.eager.items import footprint as footprint
from pipeline.plan.training.eager.layer import layer as layer
from pipeline.plan.training.eager.layer import total as total
from pipeline.plan.training.eager.setting import Batch as Batch
from pipeline.plan.training.eager.setting import adapter_parameters as adapter_parameters
from pipeline.plan.training.eager.setting import parameters as parameters
from pipeline.plan.training.eager.setting import setting_of as setting_of
