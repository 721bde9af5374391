"""NeMo-Aligner 0.7.0 as an engine: ``align.engine: aligner``.

NeMo-Aligner needs another nemo-toolkit than the one here, and its training scripts are only in its
container.  This engine writes what the container reads (data, configuration, checkpoint) and the line that
starts it, checked against the code of NeMo-Aligner's own package; the training itself was not executed here.
"""
