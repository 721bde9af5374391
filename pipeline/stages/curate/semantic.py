"""Semantic duplicates on a CPU: the decisions of SemDeDup (Abbas et al. 2023).

Curator's own stages for this need a GPU (cuML, cuDF).  As there, embeddings of unit length
are clustered by k-means and documents of one cluster are compared by cosine; a pair at or
above the threshold (Curator's ``1 - eps``) is a duplicate.  Here every document belongs to
its two nearest clusters, because pairs that a border parts are lost otherwise: that costs
twice the comparisons and finds what brute force finds in all but rare cases (measured in
the tests).

All linear algebra runs on one thread: with several, sums come out differently in their
last bits, and a document on a border could change sides from run to run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.stages.models import FROM_FILES
from pipeline.stages.step import InputError

SAMPLE = 64  # documents a cluster that the centres are computed from
NEAREST = 2  # clusters that a document belongs to

Batches = Iterator[list[str]]


def embed(texts: Batches, folder: Path, *, max_tokens: int) -> Iterator[Any]:
    """Embeddings ``float32 [texts, width]`` of unit length, batch by batch.

    ``folder`` is a local sentence-transformers folder (it has ``modules.json``) or a
    Hugging Face encoder, whose token vectors are averaged.  Nothing is downloaded.  Raises
    :class:`InputError` for a folder that is neither.
    """
    if (folder / "modules.json").is_file():
        yield from _sentence_transformer(texts, folder, max_tokens)
    else:
        yield from _averaged(texts, folder, max_tokens)


def _sentence_transformer(texts: Batches, folder: Path, max_tokens: int) -> Iterator[Any]:
    from sentence_transformers import SentenceTransformer

    for pickled in folder.rglob("pytorch_model.bin"):
        if not (pickled.parent / "model.safetensors").is_file():  # its part would be read from the pickle
            raise _not_a_model(
                folder, ValueError(f"{pickled.relative_to(folder)} is a pickle and is not read")
            )
    try:
        model = SentenceTransformer(
            str(folder),
            device=_device(),
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError) as error:
        raise _not_a_model(folder, error) from None
    model.max_seq_length = min(max_tokens, model.max_seq_length or max_tokens)
    for batch in texts:
        yield normalised(model.encode(batch, convert_to_numpy=True, show_progress_bar=False))


def _averaged(texts: Batches, folder: Path, max_tokens: int) -> Iterator[Any]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModel.from_pretrained(folder, **FROM_FILES).eval()
    except (OSError, ValueError) as error:
        raise _not_a_model(folder, error) from None
    device = _device()
    model.to(device)
    for batch in texts:
        inputs = tokenizer(
            batch, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
        ).to(device)
        with torch.inference_mode():
            states = model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            ).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
        yield normalised(mean.float().cpu().numpy())


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _not_a_model(folder: Path, error: Exception) -> InputError:
    first = str(error).strip().splitlines()[0]
    return InputError(
        f"curate.semantic_duplicates.model: {folder} is no local encoder with safetensors: {first}"
    )


def from_records(rows: list[dict[str, Any]]) -> Any:
    """Embeddings that came with the records.  Raises :class:`InputError` for unequal lengths."""
    vectors = [row["embedding"] for row in rows]
    for row, vector in zip(rows, vectors, strict=True):
        if len(vector) != len(vectors[0]):
            raise InputError(
                f"curate.sources: the embedding of document {row['id']} has {len(vector)} numbers, others have "
                f"{len(vectors[0])}"
            )
    return normalised(np.array(vectors, dtype=np.float32))


def normalised(vectors: Any) -> Any:
    """The vectors at unit length; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32)


def pairs(
    embeddings: Any, *, clusters: int, threshold: float, seed: int, memory_mb: int
) -> Iterator[tuple[Any, Any, Any]]:
    """(indices, later indices, cosines) of the pairs at or above ``threshold``.

    ``embeddings`` is an array or memory map ``float32 [documents, width]`` of unit length;
    blocks of it and of the comparisons stay within ``memory_mb``.  A pair may come twice.
    """
    from threadpoolctl import threadpool_limits

    count, width = embeddings.shape
    rows = max(256, (memory_mb << 20) // (8 * max(width, 1)) // 4)
    with threadpool_limits(limits=1):
        centres = _centres(embeddings, min(clusters, max(count, 1)), seed)
        members = _members(embeddings, centres, rows)
        for own in members:
            for start in range(0, len(own), 1024):
                block = embeddings[own[start : start + 1024]]
                for later in range(start, len(own), rows):
                    other = own[later : later + rows]
                    cosines = block @ embeddings[other].T
                    one, two = np.nonzero(cosines >= threshold)
                    keep = own[start + one] < other[two]
                    if keep.any():
                        one, two = one[keep], two[keep]
                        yield own[start + one], other[two], cosines[one, two]


def _centres(embeddings: Any, clusters: int, seed: int) -> Any:
    count = len(embeddings)
    if clusters <= 1 or count <= clusters:
        return embeddings[: max(1, min(count, clusters))]
    from sklearn.cluster import KMeans

    chosen = np.sort(np.random.default_rng(seed).permutation(count)[: SAMPLE * clusters])
    found = KMeans(n_clusters=clusters, n_init=1, max_iter=25, random_state=seed, algorithm="lloyd").fit(
        embeddings[chosen]
    )
    return normalised(found.cluster_centers_)


def _members(embeddings: Any, centres: Any, rows: int) -> Iterable[Any]:
    """For each cluster the sorted indices of its documents."""
    nearest = min(NEAREST, len(centres))
    owners, documents = [], []
    for start in range(0, len(embeddings), rows):
        likeness = embeddings[start : start + rows] @ centres.T
        top = np.argsort(-likeness, axis=1, kind="stable")[:, :nearest]
        owners.append(top.ravel().astype(np.int32))
        documents.append(np.repeat(np.arange(start, start + len(top)), nearest))
    if not owners:
        return
    owner, document = np.concatenate(owners), np.concatenate(documents)
    order = np.argsort(owner, kind="stable")
    owner, document = owner[order], document[order]
    yield from np.split(document, np.flatnonzero(np.diff(owner)) + 1)
