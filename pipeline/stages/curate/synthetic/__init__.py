"""Synthetic data from the training documents, through any OpenAI-compatible address.

    tasks    Curator's Nemotron-CC stages (diverse questions and answers, distillation, knowledge
             extraction, knowledge lists), and pairs with a critique pass (tasks)
    client   requests with retries, rate limits and a cap on spending (client)
    ledger   every answer is written down before it is used, so an interrupted run asks
             nothing twice and pays nothing twice (ledger)

What is made depends on the answers alone, not on their order or timing.
"""

from pipeline.stages.curate.synthetic.generated import Generated

__all__ = ["Generated"]
