"""Configurations of models: published ones in full size, and small odd ones, for tests of shapes.

The settings of a published model are those of its ``config.json`` on the Hugging Face hub that bear on sizes; its count
of parameters is that of its safetensors there.  Of DeepSeek-V3 (without its module for several tokens), Codestral,
Nemotron-H and Bamba what is published has three digits (671B, 7.29B, 8.10B, 9.78B); the rest is the meta device's.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


def llama(width: int, inner: int, layers: int, heads: int, **more: Any) -> Config:
    return {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        **more,
    }


def sizes(
    kind: str, vocab: int, width: int, inner: int, layers: int, heads: int, kv: int, **more: Any
) -> Config:
    config = llama(width, inner, layers, heads, **more)
    return {**config, "model_type": kind, "vocab_size": vocab, "num_key_value_heads": kv}


# name: configuration, parameters
PUBLISHED: dict[str, tuple[Config, int]] = {
    "Llama-3-8B": (llama(4096, 14336, 32, 32), 8_030_261_248),
    "Llama-3-70B": (llama(8192, 28672, 80, 64), 70_553_706_496),
    "Llama-3.1-405B": (llama(16384, 53248, 126, 128, max_position_embeddings=131072), 405_853_388_800),
    "Llama-3.2-1B": (llama(2048, 8192, 16, 32, head_dim=64, tie_word_embeddings=True), 1_235_814_400),
    "Llama-2-70B": (llama(8192, 28672, 80, 64, vocab_size=32000), 68_976_648_192),
    "Mistral-7B-v0.1": (sizes("mistral", 32000, 4096, 14336, 32, 32, 8, sliding_window=4096), 7_241_732_096),
    "Qwen2.5-0.5B": (
        sizes("qwen2", 151936, 896, 4864, 24, 14, 2, tie_word_embeddings=True, use_sliding_window=False),
        494_032_768,
    ),
    "Qwen2.5-7B": (sizes("qwen2", 152064, 3584, 18944, 28, 28, 4), 7_615_616_512),
    "Qwen2.5-32B": (sizes("qwen2", 152064, 5120, 27648, 64, 40, 8), 32_763_876_352),
    "Qwen3-0.6B": (
        sizes("qwen3", 151936, 1024, 3072, 28, 16, 8, head_dim=128, tie_word_embeddings=True),
        596_049_920,
    ),
    "Qwen3-8B": (sizes("qwen3", 151936, 4096, 12288, 36, 32, 8, head_dim=128), 8_190_735_360),
    "gemma-2b": (sizes("gemma", 256000, 2048, 16384, 18, 8, 1, head_dim=256), 2_506_172_416),
    "gemma-7b": (sizes("gemma", 256000, 3072, 24576, 28, 16, 16, head_dim=256), 8_537_680_896),
    "gemma-2-2b": (
        sizes("gemma2", 256000, 2304, 9216, 26, 8, 4, head_dim=256, sliding_window=4096),
        2_614_341_888,
    ),
    "gemma-2-9b": (sizes("gemma2", 256000, 3584, 14336, 42, 16, 8, head_dim=256), 9_241_705_984),
    "gemma-3-1b": (
        sizes("gemma3_text", 262144, 1152, 6912, 26, 4, 1, head_dim=256, sliding_window=512),
        999_885_952,
    ),
    "Mixtral-8x7B": (
        sizes("mixtral", 32000, 4096, 14336, 32, 32, 8, num_local_experts=8, num_experts_per_tok=2),
        46_702_792_704,
    ),
    "Qwen3-30B-A3B": (
        sizes(
            "qwen3_moe",
            151936,
            2048,
            6144,
            48,
            32,
            4,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            moe_intermediate_size=768,
        ),
        30_532_122_624,
    ),
    "DeepSeek-V3": (
        sizes(
            "deepseek_v3",
            129280,
            7168,
            18432,
            61,
            128,
            128,
            max_position_embeddings=163840,
            moe_intermediate_size=2048,
            n_shared_experts=1,
            n_routed_experts=256,
            num_experts_per_tok=8,
            first_k_dense_replace=3,
            n_group=8,
            topk_group=4,
            q_lora_rank=1536,
            kv_lora_rank=512,
            qk_rope_head_dim=64,
            qk_nope_head_dim=128,
            v_head_dim=128,
            num_nextn_predict_layers=1,
        ),
        671_026_404_352,
    ),
    "Mamba-Codestral-7B": (
        {
            "model_type": "mamba2",
            "vocab_size": 32768,
            "hidden_size": 4096,
            "num_hidden_layers": 64,
            "num_heads": 128,
            "head_dim": 64,
            "state_size": 128,
            "n_groups": 8,
            "expand": 2,
            "conv_kernel": 4,
            "chunk_size": 256,
            "tie_word_embeddings": False,
        },
        7_285_403_648,
    ),
    "Nemotron-H-8B": (
        {
            "model_type": "nemotron_h",
            "vocab_size": 131072,
            "hidden_size": 4096,
            "intermediate_size": 21504,
            "num_hidden_layers": 52,
            "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "mamba_num_heads": 128,
            "mamba_head_dim": 64,
            "ssm_state_size": 128,
            "n_groups": 8,
            "conv_kernel": 4,
            "chunk_size": 128,
            "max_position_embeddings": 8192,
        },
        8_100_852_736,
    ),
    "Bamba-9B": (
        sizes(
            "bamba",
            128256,
            4096,
            14336,
            32,
            32,
            8,
            attn_layer_indices=[9, 18, 27],
            mamba_n_heads=128,
            mamba_d_head=64,
            mamba_n_groups=1,
            mamba_d_state=128,
            mamba_d_conv=4,
            mamba_expand=2,
            mamba_chunk_size=256,
        ),
        9_780_235_392,
    ),
}

SMALL = {"vocab_size": 211, "max_position_embeddings": 96, "hidden_size": 48, "intermediate_size": 72}
DEEP = {"num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 20}
LATENT = {
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "num_key_value_heads": 6,
}
MAMBA2 = {
    "model_type": "mamba2",
    "vocab_size": 211,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_heads": 6,
    "head_dim": 16,
    "state_size": 10,
    "n_groups": 2,
    "expand": 2,
    "conv_kernel": 3,
    "chunk_size": 8,
}
NEMOTRON = {
    "model_type": "nemotron_h",
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 72,
    "max_position_embeddings": 96,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "mamba_num_heads": 6,
    "mamba_head_dim": 10,
    "ssm_state_size": 14,
    "n_groups": 3,
    "conv_kernel": 4,
    "chunk_size": 8,
    "n_routed_experts": 5,
    "moe_shared_expert_intermediate_size": 28,
    **EXPERTS,
}

# Small models with what published ones of the family leave at its default.
ODD: dict[str, Config] = {
    "llama, biases and a head size of its own": {
        "model_type": "llama", **SMALL, **DEEP, "attention_bias": True, "mlp_bias": True, "head_dim": 10,
    },
    "llama, one key-value head, tied": {
        "model_type": "llama", **SMALL, **DEEP, "num_key_value_heads": 1, "tie_word_embeddings": True,
    },
    "llama, no grouped queries": {"model_type": "llama", **SMALL, **DEEP, "num_key_value_heads": None},
    "mistral, window": {"model_type": "mistral", **SMALL, **DEEP, "sliding_window": 16, "head_dim": 4},
    "mistral, no window": {"model_type": "mistral", **SMALL, **DEEP, "sliding_window": None},
    "qwen2, late windows": {
        "model_type": "qwen2", **SMALL, **DEEP,
        "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1,
    },
    "qwen2, tied": {"model_type": "qwen2", **SMALL, **DEEP, "tie_word_embeddings": True},
    "qwen3, biases": {"model_type": "qwen3", **SMALL, **DEEP, "attention_bias": True, "head_dim": 14},
    "qwen3, head size of the class": {"model_type": "qwen3", **SMALL, **DEEP},
    "gemma, untied": {"model_type": "gemma", **SMALL, **DEEP, "tie_word_embeddings": False, "head_dim": 18},
    "gemma, biases": {"model_type": "gemma", **SMALL, **DEEP, "attention_bias": True, "head_dim": 8},
    "gemma2, windows in turn": {"model_type": "gemma2", **SMALL, **DEEP, "sliding_window": 16, "head_dim": 8},
    "gemma2, own pattern": {
        "model_type": "gemma2", **SMALL, **DEEP, "sliding_window": 16, "head_dim": 8, "attention_bias": True,
        "layer_types": ["full_attention", "full_attention", "sliding_attention"],
    },
    "gemma3_text, every other layer": {
        "model_type": "gemma3_text", **SMALL, **DEEP,
        "sliding_window": 16, "head_dim": 8, "sliding_window_pattern": 2,
    },
    "gemma3_text, heads of the class": {
        "model_type": "gemma3_text", "vocab_size": 211, "hidden_size": 48, "intermediate_size": 72,
        "num_hidden_layers": 7, "sliding_window": 16,
    },
    "mixtral, window and head size": {
        "model_type": "mixtral", **SMALL, **DEEP,
        "num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 16, "head_dim": 4,
    },
    "qwen3_moe, dense layers between": {
        "model_type": "qwen3_moe", **SMALL, **DEEP, **EXPERTS,
        "num_hidden_layers": 5, "num_experts": 6, "decoder_sparse_step": 2, "mlp_only_layers": [1],
    },
    "qwen3_moe, biases": {
        "model_type": "qwen3_moe", **SMALL, **DEEP, **EXPERTS,
        "num_experts": 6, "attention_bias": True, "head_dim": 10,
    },
    "deepseek_v3, queries without a latent": {
        "model_type": "deepseek_v3", **SMALL, **DEEP, **EXPERTS, **LATENT,
        "q_lora_rank": None, "n_routed_experts": 8, "n_shared_experts": 2, "n_group": 2, "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "deepseek_v3, biases, no dense layer": {
        "model_type": "deepseek_v3", **SMALL, **DEEP, **EXPERTS, **LATENT,
        "q_lora_rank": 9, "n_routed_experts": 8, "n_shared_experts": 1, "n_group": 2, "topk_group": 1,
        "first_k_dense_replace": 0, "attention_bias": True, "num_nextn_predict_layers": 2,
    },
    "mamba2, biases": {**MAMBA2, "use_bias": True, "use_conv_bias": False},
    "mamba2, tied": {**MAMBA2, "tie_word_embeddings": True},
    "nemotron_h, all kinds": {
        **NEMOTRON, "layers_block_type": ["mamba", "moe", "attention", "mlp", "mamba", "moe"],
    },
    "nemotron_h, latent experts and biases": {
        **NEMOTRON, "hybrid_override_pattern": "ME*-M", "moe_latent_size": 18, "mlp_bias": True,
        "use_bias": True, "use_conv_bias": False, "attention_bias": True, "tie_word_embeddings": True,
    },
    "bamba, biases": {
        "model_type": "bamba", **SMALL, **DEEP, "attn_layer_indices": [1], "mamba_n_heads": 6,
        "mamba_d_state": 10, "mamba_n_groups": 2, "mamba_d_conv": 3, "mamba_chunk_size": 8,
        "mamba_proj_bias": True, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
    },
    "bamba, no attention": {
        "model_type": "bamba", **SMALL, **DEEP, "mamba_n_heads": 3, "mamba_d_head": 32, "mamba_d_state": 10,
        "mamba_chunk_size": 8, "mamba_conv_bias": False,
    },
}  # fmt: skip
