"""What serving will need, and what it says about how to train.

commands.py     options of the verbs ``scale serve``, ``scale sampling`` and ``scale fleet``
verbs.py        the verbs: from options to an answer
show.py         an answer as text, as derivations or as JSON; plots.py as a picture
optimum.py      the model size and tokens that make training and serving together cheapest (Sardana et al. 2024)
sampling.py     coverage of repeated samples (Brown et al. 2024) and small against large (Snell et al. 2024)
samples.py      reading pass counts from a file
coverage.py     the answer of ``scale sampling``
engine.py       one replica: memory, cache, and the time of one step by a roofline
load.py         a replica under load: time to first token, inter-token latency, the most that it can take
fleet.py        replicas, GPUs and money for given traffic
room.py         what a replica holds, as numbers with their derivations
statement.py    a serving plan as numbers with their derivations
choices.py      which configurations fit, and the nearest that does
evidence.py     how far such predictions were from rows that nothing was fitted on
published.py    the benchmark rows that the roofline is held to
fit.py          ``python -m pipeline.plan.serving.fit`` writes efficiency.json from the fit rows alone
"""
