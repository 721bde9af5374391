"""nemo-lifecycle: one recipe from raw documents to a model answering on NVIDIA Triton."""

__version__ = "0.1.0"
