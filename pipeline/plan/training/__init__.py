"""What training needs and how quickly it goes: memory, time and the layouts that fit.

    layout = Layout(gpus=8, sharding="zero3", micro_batch=1, global_batch=128)
    work = Work("sft", length=4096, states="automodel")
    need = memory.need(shape, layout, work)             # bytes on the fullest GPU, item by item
    pace = speed.predict(shape, layout, work, gpu)      # tokens/s, step time, with the error to expect
    found = search.nearest(shape, layout, work, gpu)    # what does fit, quickest first

layout.py       how work is spread over GPUs, and what the work is
states.py       parameters on one GPU; weights, gradients, master weights, optimiser states
activations.py  what a forward pass keeps for the backward pass, and the loss's buffers
memory.py       both and the rest, added up
flops.py        model FLOP as publications count them, and those that the hardware computes
speed.py        seconds of a step, from FLOP, bandwidths and fitted efficiencies
published.py    published throughput, and which rows are fitted and which held out
fit.py          fits the efficiencies: python -m pipeline.plan.training.fit
verdict.py      fits, tight, does not fit
search.py       the nearest layouts that fit
settings.py     from a recipe's settings, and back to SET="..."
"""
