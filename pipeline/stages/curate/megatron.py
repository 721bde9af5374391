"""Pre-training data as tokenised Megatron files, shard by shard, through Curator's writer.

Documents are text to the tokenizer, whatever they spell, and end with the token that ends documents in pre-training here
(:func:`pipeline.engines.automodel.tokenise.document_examples`), which need not be the one that ends a turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_curator.backends.base import WorkerMetadata

from pipeline.conversations.documents import document_ends
from pipeline.conversations.tokenizer import chat_tokenizer
from pipeline.stages.curate.shards import FolderWork


@dataclass
class _Encoded:
    input_ids: list[list[int]]


class _TextTokenizer:
    """What Curator's writer asks of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = len(tokenizer)  # with the added tokens, so that every id fits into what is written
        self.eos_token_id = document_ends(tokenizer)[1]

    def batch_encode_plus(self, texts: Iterable[str], **_: Any) -> _Encoded:
        """The tokens of texts, nothing added, whatever the writer says of padding and attention."""
        return _Encoded(chat_tokenizer(self._tokenizer).texts(list(texts)))


class WriteMegatron(FolderWork):
    """Tokenise output shards: ``records.bin`` and ``records.idx`` in a folder for each."""

    def __init__(self, tokenizer: Path) -> None:
        self.name = "megatron"
        self.tokenizer = str(tokenizer)

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        """Load the tokenizer."""
        from transformers import PreTrainedTokenizerFast

        self._tokenizer = _TextTokenizer(PreTrainedTokenizerFast.from_pretrained(self.tokenizer))

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
