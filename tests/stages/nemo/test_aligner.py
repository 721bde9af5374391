"""NeMo-Aligner's data, configuration and launch line, against its own code and Hydra's grammar."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines.aligner import data as forms
from pipeline.engines.aligner import launch, package
from pipeline.engines.aligner.config import configuration
from pipeline.schema import Align, Lora, Nemo
from pipeline.stages.step import InputError, read_jsonl, write_jsonl

SETTINGS = Align(
    engine="aligner", max_steps=40, lr=9e-7, beta=0.2, sft_weight=0.1, nemo=Nemo(gpus=4, tensor=2)
)


def tree(**changes: Any) -> dict[str, Any]:
    places = {name: Path("/shared") / name for name in ("checkpoint", "data", "results")}
    return configuration(dataclasses.replace(SETTINGS, **changes), 128, **places)


def test_settings_land_under_aligners_names() -> None:
    found = tree()
    assert found["model"]["dpo"]["ref_policy_kl_penalty"] == 0.2
    assert found["model"]["dpo"]["sft_loss_weight"] == 0.1
    assert found["model"]["optim"]["sched"]["min_lr"] == pytest.approx(9e-8)
    assert found["trainer"]["dpo"]["max_steps"] == 40
    assert found["model"]["peft"] == {"peft_scheme": "none"}
    assert found["model"]["data"]["data_prefix"]["train"] == ["/shared/data/train.jsonl"]


def test_its_code_reads_every_key() -> None:
    found = tree(peft="lora")
    assert package.check_configuration(found) == 15
    for part, name in (("dpo", "beta"), ("data", "data_prefixes"), ("peft", "scheme")):
        broken = json.loads(json.dumps(found))
        broken["model"][part][name] = 1
        with pytest.raises(InputError, match=rf"nemo-aligner 0\.7\.0 reads no {name} of model\.{part}"):
            package.check_configuration(broken)
    broken = json.loads(json.dumps(found))
    broken["trainer"]["dpo"]["steps"] = 1
    with pytest.raises(InputError, match=r"reads no steps of trainer\.dpo; it reads .*max_steps"):
        package.check_configuration(broken)


def test_keys_are_found_however_they_are_read(tmp_path: Path) -> None:
    code = "self.cfg.dpo.one; cfg.dpo.get('two', 1); dpo['three']; other.four; cfg.dpo.get(name)\n"
    (tmp_path / "code.py").write_text(code)
    assert package.keys_read(tmp_path / "code.py", ("dpo",)) == {"one", "two", "three"}


def test_pairs_are_lines_that_its_data_set_reads(data: Path, tokenizer: Any, tmp_path: Path) -> None:
    counts = forms.write_pairs(data, tokenizer, 128, 2, tmp_path)
    lines = read_jsonl(tmp_path / "train.jsonl")
    assert counts["train"] == {"pairs": len(lines), "too_long": 0, "read_otherwise": 0}
    assert package.check_data(set(lines[0])) == 5
    assert set(lines[1]) == {"prompt", "chosen_response", "rejected_response"}
    assert (lines[0]["chosen_reward"], lines[0]["rejected_reward"]) == (4.0, 1.0)
    record = read_jsonl(data / "preference" / "train.jsonl")[0]
    whole = [
        {"role": "user", "content": record["prompt"]},
        {"role": "assistant", "content": record["chosen"]},
    ]
    joined = lines[0]["prompt"] + lines[0]["chosen_response"]
    assert joined + "\n" == tokenizer.apply_chat_template(whole, tokenize=False)
    with pytest.raises(InputError, match=r"reads no chosen of a data line"):
        package.check_data({"prompt", "chosen"})


def test_pairs_are_the_tokens_that_the_automodel_engine_trains_on(
    data: Path, tokenizer: Any, tmp_path: Path
) -> None:
    from pipeline.engines.automodel import tokenise

    forms.write_pairs(data, tokenizer, 128, 2, tmp_path)
    ours, kept, _ = tokenise.preference_examples(
        tokenizer, read_jsonl(data / "preference" / "train.jsonl"), 128
    )
    lines = read_jsonl(tmp_path / "train.jsonl")
    assert len(lines) == len(kept)
    for place, line in enumerate(lines):
        for side, name in enumerate(("chosen_response", "rejected_response")):
            whole = tokenizer(line["prompt"] + line[name], add_special_tokens=False)["input_ids"]
            start, end = (int(ours.offsets[2 * place + side + more]) for more in (0, 1))
            assert whole[:-1] == ours.inputs[start:end].tolist()


def test_pairs_too_long_or_too_few_are_told(data: Path, tokenizer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "preference"
    pairs = read_jsonl(data / "preference" / "train.jsonl")[:2]
    for split in ("train", "validation"):
        write_jsonl(folder / f"{split}.jsonl", [*pairs, {**pairs[0], "chosen": "x y " * 100}])
    counts = forms.write_pairs(tmp_path / "data", tokenizer, 128, 2, tmp_path / "out")
    assert counts["train"] == {"pairs": 2, "too_long": 1, "read_otherwise": 0}
    with pytest.raises(InputError, match=r"align\.global_batch_size: 3 is more than the 2 train pairs"):
        forms.write_pairs(tmp_path / "data", tokenizer, 128, 3, tmp_path / "out")


def test_what_aligner_cannot_do_is_refused() -> None:
    with pytest.raises(InputError, match=r"holds q_proj, k_proj, v_proj in one layer, .*\(named: q_proj\)"):
        tree(peft="lora", lora=Lora(targets=["q_proj"]))
    with pytest.raises(InputError, match="query names no linear layer"):
        tree(peft="lora", lora=Lora(targets=["query"]))
    tuning = tree(peft="lora", lora=Lora(rank=8, targets=["q_proj", "k_proj", "v_proj", "o_proj"]))["model"][
        "peft"
    ]
    assert tuning["lora_tuning"]["target_modules"] == ["attention_qkv", "attention_dense"]


def test_the_launch_line_is_hydras_and_carries_every_value(tmp_path: Path) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    wanted = configuration(
        SETTINGS, 128, checkpoint=Path("/a folder/it's"), data=Path("/d{1},x"), results=Path("/r=1")
    )
    wanted["exp_manager"] |= {"wandb_logger_kwargs": None, "name": "null"}
    script = launch.write(wanted, tmp_path / "submission")
    words = shlex.split(script.read_text().partition("exec ")[2].replace("\\\n", ""))
    assert words[:3] == ["python", "-u", "/opt/NeMo-Aligner/examples/nlp/gpt/train_gpt_dpo.py"]
    config = OmegaConf.create({})
    for override in OverridesParser.create().parse_overrides(words[3:]):
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    assert OmegaConf.to_container(config) == wanted
    assert json.loads((tmp_path / "submission" / "dpo.json").read_text()) == wanted
