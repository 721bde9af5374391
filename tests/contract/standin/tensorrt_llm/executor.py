"""Where the LLM API has its LoRA requests."""

from __future__ import annotations

from pathlib import Path


class LoRARequest:
    def __init__(
        self, lora_name: str, lora_int_id: int, lora_path: str = "", lora_ckpt_source: str = "hf"
    ) -> None:
        if lora_int_id < 1:
            raise ValueError("id must be > 0")
        if lora_ckpt_source not in ("hf", "nemo"):
            raise ValueError("lora_ckpt_source")
        if lora_path and not Path(lora_path).exists():
            raise ValueError(f"lora_path: {lora_path} does not exist")
        self.name, self.adapter_id, self.path = lora_name, lora_int_id, lora_path
