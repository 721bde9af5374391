"""Pre-training data as tokenised Megatron files, shard by shard, through Curator's writer.

Documents end with the token that separates documents in pre-training here
(:func:`pipeline.engines.automodel.tokenise.document_examples`), not with the end of a turn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_curator.backends.base import WorkerMetadata

from pipeline.stages.curate.shards import FolderWork


class WriteMegatron(FolderWork):
    """Tokenise output shards: ``records.bin`` and ``records.idx`` in a folder for each."""

    def __init__(self, tokenizer: Path) -> None:
        self.name = "megatron"
        self.tokenizer = str(tokenizer)

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        """Load the tokenizer; how documents end is told to Curator's writer by its end token."""
        from transformers import PreTrainedTokenizerFast

        self._tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(self.tokenizer)
        # Curator 1.4 calls a method that transformers 5 took away; calling the tokenizer is the same.
        self._tokenizer.batch_encode_plus = self._tokenizer
        if self._tokenizer.bos_token is not None:
            self._tokenizer.eos_token = self._tokenizer.bos_token

    def needs(self, sources: list[str]) -> list[Path]:
        """The output shard."""
        return [Path(sources[0])]

    def make(self, sources: list[str], part: Path) -> None:
        """``sources`` is one output shard."""
        import pandas as pd
        from nemo_curator.stages.text.io.writer.megatron_tokenizer import MegatronTokenizerWriter
        from nemo_curator.tasks import DocumentBatch

        from pipeline.stages.data_sets import read_shard

        texts = [record["text"] for record in read_shard(Path(sources[0]))]
        if not texts:
            return
        writer = MegatronTokenizerWriter(
            path=str(part), model_identifier=self.tokenizer, append_eod=True, mode="ignore"
        )
        writer.setup()
        writer.tokenizer = self._tokenizer
        # Curator names the files by chance; "source_files" is what it derives the name from.
        batch = DocumentBatch(
            dataset_name="documents",
            data=pd.DataFrame({"text": texts}),
            _metadata={"source_files": [Path(sources[0]).name]},
        )
        for file in writer.process(batch).data:
            Path(file).rename(part / f"records{Path(file).suffix}")
