"""The contenders of the training benchmark, one process each, in the core toolchain.

data.py      the data and the model to start from, made once by the project's own code
ours.py      the project's recipe classes on AutoModel
trl_side.py  TRL's trainers as they come
bare.py      plain PyTorch and transformers loops
peak.py      what the machine's matrix product can do
pace.py      how a contender is told to run some steps and says how long they took
work.py      what a step did: tokens, and the arithmetic that they need
"""
