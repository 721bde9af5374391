"""Tokenizers of every family and chat templates of every kind, small, for the tests of conversations."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TURNS = ("<|im_start|>", "<|im_end|>")
SPECIAL = ["<unk>", "<s>", "</s>", *TURNS, "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
TEXTS = [
    "What is a lantern? It is a lamp, and then the river goes on .",
    "def f(x):\n    return x + 1\n\n\nuser assistant system",
    "<|im_start|>user\nIt ends a turn<|im_end|> </s> [INST] [/INST] ### User:",
    "日本語 と 中文 。 emoji 👩‍👩‍👧‍👦 end, résumé , naïve",
] * 4


def byte_level(**options: Any) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(options.get("prefix")))
    made.decoder = decoders.ByteLevel()
    return _trained(made, trainers.BpeTrainer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def metaspace(scheme: str) -> Tokenizer:
    """SentencePiece's BPE with byte fallback, as converted today."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([] if scheme == "never" else [decoders.Strip(" ", 1, 0)]),
        ]
    )
    return _trained(made, trainers.BpeTrainer, bytes_too=True)


def legacy() -> Tokenizer:
    """Llama 2's: the prefix space is the normaliser's."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _trained(made, trainers.BpeTrainer, bytes_too=True)


def unigram() -> Tokenizer:
    """Its vocabulary holds the control tokens as pieces, the likeliest of all."""
    pieces = [(token, 0.0) for token in SPECIAL]
    words = {word for text in TEXTS for word in text.replace("\n", " ").split(" ") if "<|" not in word}
    pieces += [("▁" + word, -4.0) for word in sorted(words)]
    pieces += [(char, -9.0) for char in sorted({char for text in TEXTS for char in text} | {"▁"})]
    made = Tokenizer(models.Unigram(pieces, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return made


def word_level() -> Tokenizer:
    """Words between white space, looked up whole: a word that spells a control token is one in the vocabulary."""
    words = [*SPECIAL, *sorted({word for text in TEXTS for word in text.split()} - set(SPECIAL))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return made


def word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(cleanup=True)
    return _trained(made, trainers.WordPieceTrainer)


def spaces_added() -> Tokenizer:
    """GPT-NeoX's: runs of spaces are added tokens that are no control tokens; a marker and a word were added, too."""
    made = byte_level()
    made.add_tokens([AddedToken(" " * size, normalized=True, special=False) for size in range(8, 1, -1)])
    made.add_tokens([AddedToken("<think>", normalized=False, special=False), AddedToken("lanternfish")])
    return made


def swallowing() -> Tokenizer:
    """Phi-3's: control tokens take the white space behind them."""
    made = json.loads(metaspace("first").to_str())
    for token in made["added_tokens"]:
        token["rstrip"] = token["content"].startswith("<|")
    return Tokenizer.from_str(json.dumps(made))


def _trained(made: Tokenizer, trainer: Any, *, bytes_too: bool = False, **options: Any) -> Tokenizer:
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256) if bytes_too)]
    made.train_from_iterator(
        TEXTS, trainer(vocab_size=900, special_tokens=special, show_progress=False, **options)
    )
    definition = json.loads(made.to_str())
    definition["added_tokens"] = [t for t in definition["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(definition))


FAMILIES = {
    "byte-level": byte_level,
    "byte-level-prefix": lambda: byte_level(prefix=True),
    "metaspace-first": lambda: metaspace("first"),
    "metaspace-always": lambda: metaspace("always"),
    "metaspace-never": lambda: metaspace("never"),
    "legacy-prepend": legacy,
    "unigram": unigram,
    "word-level": word_level,
    "word-piece": word_piece,
    "spaces-added": spaces_added,
    "swallowing": swallowing,
}

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GENERATION = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\n' }}{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endif %}{% if m['role'] == 'user' and (not loop.last or add_generation_prompt) %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}{% endfor %}"
)
TRIMMED = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set first = '<<SYS>>\n' + "
    "messages[0]['content'] + '\n<</SYS>>\n\n' %}{% else %}{% set rest = messages %}{% set first = '' %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}"
    "{% endif %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + (first if loop.first else '') + m['content'].strip() "
    "+ ' [/INST]' }}{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ROLES = (  # Phi-3's: the role stands in the control token
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
PLAIN = (  # Alpaca's and Vicuna's kind: turns are marked by text
    "{% for m in messages %}{{ '### ' + m['role'] | capitalize + ':\n' + m['content'] + "
    "(eos_token if m['role'] == 'assistant' else '') + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
TEMPLATES = {  # with the token that ends an answer
    "chatml": (CHATML, "<|im_end|>"),
    "generation": (GENERATION, "<|im_end|>"),
    "trimmed": (TRIMMED, "<|im_end|>"),
    "llama2": (LLAMA2, "</s>"),
    "roles": (ROLES, "<|end|>"),
    "plain": (PLAIN, "</s>"),
}
