"""The settings of curation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.schema.declare import setting

ACTIONS = ("replace", "hash", "drop", "keep")  # what can happen to a find of personal data


@dataclass
class Source:
    """One place that raw documents come from."""

    kind: str = setting(
        "jsonl",
        "what it is",
        choices=(
            "python-docs",
            "jsonl",
            "json",
            "csv",
            "parquet",
            "text",
            "html",
            "warc",
            "wet",
            "wikipedia",
            "dataset",
        ),
    )
    path: str | None = setting(
        None,
        "a file, a folder or an fsspec address (https://, s3://); jsonl: *.jsonl, *.ndjson; json: *.json, an array "
        "of objects; csv: *.csv, *.tsv with a row of names; text: *.txt, *.md, *.rst; html: *.html, *.htm; warc, wet: "
        "Common Crawl archives; wikipedia: *.xml; all of these plain, .gz, .zst or .bz2; parquet: *.parquet; "
        "dataset: a Hugging Face dataset saved on disk",
    )
    encoding: str | None = setting(
        None,
        "json, csv, text, html: the character set of files that do not say theirs, e.g. cp1252 (null: UTF-8)",
    )
    packages: list[str] = setting(
        [], "python-docs: import packages to read; 'stdlib' is the standard library"
    )
    name: str | None = setting(None, "the source's name in the data card and the blend")
    licence: str | None = setting(None, "the licence of its documents, for the data card")
    weight: float | None = setting(
        None,
        "share of this source in the training tokens, relative to the others'; all sources or none",
        gt=0,
    )
    text_field: str = setting("text", "json, csv, parquet, dataset: the field that holds the text")
    title_field: str = setting(
        "title", "json, csv, parquet, dataset: the field with the document's name, if any"
    )
    id_field: str | None = setting(
        None,
        "json, csv, parquet, dataset: a field with an id of each document; it must be unique (null: file and line)",
    )
    score_field: str | None = setting(
        None, "json, csv, parquet, dataset: a numeric field for the 'best-score' policy of duplicates"
    )
    embedding_field: str | None = setting(
        None, "json, csv, parquet, dataset: a list of numbers to tell semantic duplicates by"
    )
    extractor: str = setting(
        "justext",
        "html, warc: Curator's extractor of the main text",
        choices=("justext", "resiliparse", "trafilatura"),
    )
    language: str = setting("en", "wikipedia: the dump's language code")
    max_documents: int = setting(0, "read at most this many documents of each file (0: all)", ge=0)


@dataclass
class Language:
    """Language identification, and what follows from it."""

    model: str | None = setting(None, "a fastText model file (lid.176.bin); null: CLD2, which needs none")
    keep: list[str] = setting([], "keep documents in these languages only (ISO 639-1 codes; empty: all)")
    drop: list[str] = setting([], "drop documents in these languages")
    route: list[str] = setting(
        [], "write documents in these languages to data sets of their own, pretrain-CODE"
    )
    min_confidence: float = setting(
        0.5, "a language told with less than this counts as unknown ('un')", ge=0, le=1
    )
    keep_unknown: bool = setting(True, "keep documents whose language cannot be told")


@dataclass
class ExactDuplicates:
    """Documents of equal text."""

    fold: bool = setting(True, "case and white space do not count")
    which: str = setting("first", "the one that stays", choices=("first", "longest", "best-score"))


@dataclass
class NearDuplicates:
    """Documents that are alike: MinHash signatures, banded (Leskovec et al., ch. 3)."""

    engine: str = setting(
        "rensa",
        "rensa: shingles of words, on the CPU; curator-gpu: NeMo Curator's workflow on NVIDIA GPUs, with "
        "shingles of characters, where the bands alone decide and the threshold plays no part",
        choices=("rensa", "curator-gpu"),
    )
    char_ngrams: int = setting(24, "curator-gpu: length of a shingle, in characters", ge=4)
    ngram: int = setting(5, "length of a shingle, in words", ge=1)
    permutations: int = setting(128, "length of a MinHash signature", ge=16)
    bands: int = setting(16, "bands of the signature; permutations must divide by it", ge=1)
    threshold: float = setting(0.8, "Jaccard estimate from which two documents are duplicates", gt=0, le=1)
    which: str = setting(
        "first", "the one of a cluster that stays", choices=("first", "longest", "best-score")
    )


@dataclass
class SemanticDuplicates:
    """Documents that mean the same: cosine of embeddings within k-means clusters (SemDeDup)."""

    model: str | None = setting(
        None, "a local folder of an encoder; null: the sources have an embedding_field"
    )
    threshold: float = setting(0.95, "cosine from which two documents are duplicates", gt=0, le=1)
    clusters: int = setting(0, "k-means clusters (0: one for every 1,000 documents)", ge=0)
    max_tokens: int = setting(256, "tokens of a document that are embedded", ge=8)
    which: str = setting(
        "first", "the one of a cluster that stays", choices=("first", "longest", "best-score")
    )


@dataclass
class Redact:
    """Personal data and secrets: what happens to each kind.

    ``hash`` is a pseudonym: equal finds stay equal, and who tries all numbers finds one back.
    """

    email: str = setting("replace", "e-mail addresses", choices=ACTIONS)
    phone: str = setting("replace", "telephone numbers", choices=ACTIONS)
    ip: str = setting("replace", "public IP addresses", choices=ACTIONS)
    credit_card: str = setting("replace", "card numbers with a right check digit", choices=ACTIONS)
    iban: str = setting("replace", "bank account numbers (IBAN) with right check digits", choices=ACTIONS)
    national_id: str = setting(
        "replace", "national identity numbers, as they are usually written", choices=ACTIONS
    )
    secret: str = setting("replace", "keys and tokens of services", choices=ACTIONS)
    crypto_wallet: str = setting("replace", "Bitcoin addresses", choices=ACTIONS)
    phone_regions: list[str] = setting(
        ["US", "GB", "DE", "FR"], "regions whose national telephone numbers are known without a country code"
    )


@dataclass
class Decontaminate:
    """Evaluation data out of the training data, by n-gram (NeMo Curator 0.x's rule)."""

    sets: list[str] = setting([], "JSONL files of evaluation data")
    fields: list[str] = setting(
        ["text", "question", "prompt"], "the fields of those files that must not be in the training data"
    )
    own_test: bool = setting(True, "the recipe's own held-out test documents count as a set too")
    ngram: int = setting(13, "words of a match; shorter entries match whole, from min_ngram words", ge=4)
    min_ngram: int = setting(8, "entries of fewer words are left out", ge=2)
    max_frequency: int = setting(
        10, "an n-gram found more often than this in the training data is common, no contamination", ge=1
    )
    remove_characters: int = setting(200, "characters removed on either side of a match", ge=0)
    min_characters: int = setting(200, "a piece with fewer characters is dropped", ge=0)
    max_splits: int = setting(10, "a document cut into more pieces than this is dropped", ge=0)


SYNTHETIC_TASKS = ("diverse-qa", "distil", "extract-knowledge", "knowledge-list", "pairs")


@dataclass
class Synthetic:
    """Data made from the training documents by a model at an OpenAI-compatible address.

    Off unless ``tasks`` names some: the documents' texts are sent to the address.
    """

    tasks: list[str] = setting([], f"what is made of a document: {', '.join(SYNTHETIC_TASKS)}")
    address: str | None = setting(None, "e.g. http://127.0.0.1:8000/v1", identity=False)
    model: str | None = setting(None, "the model's name at that address")
    api_key_env: str | None = setting(
        None,
        "the environment variable that holds the key; the key itself is never written down",
        identity=False,
    )
    temperature: float = setting(0.0, "of the answers", ge=0, le=2)
    max_tokens: int = setting(1024, "longest answer", ge=1)
    seed: int = setting(0, "of the answers, where the server knows seeds")
    max_documents: int = setting(0, "so many of the training documents, drawn by their ids (0: all)", ge=0)
    min_critique_score: int = setting(4, "pairs: what the critique must give the answer at least", ge=1, le=5)
    concurrency: int = setting(8, "requests under way at once", ge=1, identity=False)
    requests_per_minute: int = setting(
        0, "at most so many requests a minute (0: no limit)", ge=0, identity=False
    )
    tokens_per_minute: int = setting(0, "at most so many tokens a minute (0: no limit)", ge=0, identity=False)
    max_retries: int = setting(5, "further tries of a request that failed in passing", ge=0, identity=False)
    timeout_s: float = setting(120.0, "longest wait for an answer", gt=0, identity=False)
    max_spend: float = setting(
        0.0, "stop before more is spent, in the unit of the prices (0: no cap)", ge=0, identity=False
    )
    price_per_million_prompt_tokens: float = setting(
        0.0, "price of a million prompt tokens", ge=0, identity=False
    )
    price_per_million_completion_tokens: float = setting(
        0.0, "price of a million completion tokens", ge=0, identity=False
    )


@dataclass
class Prompts:
    """Prompts that repeat: the user's own stay before a model's, and those before a document's."""

    repeats: str = setting(
        "drop-equal",
        "which of them to drop; alike prompts stay on one side of the split in any case",
        choices=("keep", "drop-equal", "drop-alike"),
    )
    ngram: int = setting(2, "length of a shingle, in words; prompts are short", ge=1)
    permutations: int = setting(128, "length of a MinHash signature", ge=16)
    bands: int = setting(32, "bands of the signature; permutations must divide by it", ge=1)
    threshold: float = setting(0.6, "Jaccard estimate from which two prompts are alike", gt=0, le=1)


@dataclass
class Scored:
    """Preference pairs built from answers that a reward model or a judge has scored."""

    path: str | None = setting(
        None,
        "a file of {'prompt', 'response', 'score'} or {'prompt', 'responses', 'scores'}, in the same forms",
    )
    policy: str = setting(
        "best-worst",
        "which answers to a prompt make a pair",
        choices=("best-worst", "best-random", "all-adjacent"),
    )
    min_margin: float = setting(0.0, "smallest difference of the scores, in their unit", ge=0)
    pairs_per_prompt: int = setting(1, "at most so many pairs of one prompt (0: all)", ge=0)


@dataclass
class Curate:
    """Raw documents to pre-training, instruction and preference data."""

    sources: list[Source] = field(
        default_factory=list, metadata={"help": "where raw documents come from", "identity": True}
    )
    stages: list[str] = setting(
        ["UnicodeReformatter", "filters", "redact", "exact-duplicates", "near-duplicates"],
        "what documents pass, in order: stages of our own and classes of NeMo Curator",
    )
    modifiers: dict[str, Any] = setting({}, "parameters of Curator's modifiers, by class")
    filters: dict[str, Any] = setting({}, "parameters of Curator's filters, by class; null takes one out")
    classifiers: dict[str, Any] = setting(
        {}, "parameters of Curator's classifiers, by class (they need a GPU)"
    )
    language: Language = field(default_factory=Language)
    exact_duplicates: ExactDuplicates = field(default_factory=ExactDuplicates)
    near_duplicates: NearDuplicates = field(default_factory=NearDuplicates)
    semantic_duplicates: SemanticDuplicates = field(default_factory=SemanticDuplicates)
    redact: Redact = field(default_factory=Redact)
    decontaminate: Decontaminate = field(default_factory=Decontaminate)
    instructions: str | None = setting(
        None,
        "a file of ready chat examples to add (messages, ShareGPT, Alpaca, prompt and completion): JSONL, a JSON "
        "array, CSV, TSV or Parquet",
    )
    preferences: str | None = setting(
        None,
        "a file of ready pairs to add ({'prompt', 'chosen', 'rejected'}, texts or turns), in the same forms",
    )
    synthetic: Synthetic = field(default_factory=Synthetic)
    prompts: Prompts = field(default_factory=Prompts)
    scored: Scored = field(default_factory=Scored)
    chat_tokens: int = setting(
        0,
        "a chat or pair of the user's with more tokens is unusable (0: none is; train.too_long decides)",
        ge=0,
    )
    pairs: bool = setting(True, "make instruction and preference pairs from titled documents")
    max_characters: int = setting(0, "a pre-training document is cut to this length (0: never)", ge=0)
    validation_share: float = setting(0.03, "share of documents held out for validation", ge=0, le=0.5)
    test_share: float = setting(0.07, "share of documents held out for the test", ge=0, le=0.5)
    attributes: list[str] = setting(
        [],
        "attributes that are measured on the answers of instruction records without any: verbosity (by words)",
    )
    max_pairs: int = setting(0, "at most this many training pairs of each data set (0: all)", ge=0)
    content_share: float = setting(
        0.25, "content pairs as a share of the style pairs, in training", ge=0, le=1
    )
    tokens: int = setting(
        0, "training tokens of the blend (0: as many as the weights allow without repeating)", ge=0
    )
    max_epochs: float = setting(1.0, "no document is repeated more often than this to reach `tokens`", ge=1)
    tokenizer_documents: int = setting(
        500_000,
        "training documents that the tokenizer is trained on (0: all); the memory that it needs",
        ge=0,
    )
    format: str = setting(
        "jsonl",
        "of the pre-training data",
        choices=("jsonl", "parquet", "jsonl+megatron", "parquet+megatron"),
    )
    shard_mb: int = setting(256, "size of an output shard", ge=1)
    keep_dropped: bool = setting(False, "write the dropped documents with stage and reason to dropped/")
    max_bad_share: float = setting(
        0.01, "stop when more than this share of the input records cannot be read", ge=0, le=1
    )
    max_record_mb: int = setting(20, "a longer line or record is put down as unreadable", ge=1)
    workers: int = setting(0, "worker processes (0: one per core)", ge=0, identity=False)
    memory_mb: int = setting(
        1024,
        "memory for finding duplicates and for shuffling; beyond it they work from disk",
        ge=64,
        identity=False,
    )
