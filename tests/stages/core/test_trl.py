"""Fine-tuning, the preference losses and LoRA merging held to TRL and PEFT, which others wrote.

Losses of every optimiser step, gradients of the first batch and the weights after the last have
to be those of TRL's trainers (``beside_trl.py``).  Everything is made here, nothing is fetched.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from beside_trl import (
    PAIRS,
    VOCABULARY,
    Ids,
    agree,
    batches,
    estimated_kl,
    gradients_of,
    llama,
    our_run,
    pair_loss,
    pair_records,
    pairs,
    reference_scores,
    scores,
    sft_loss,
    sides,
    text,
    trl_run,
)
from conftest import load_step, write_job

from pipeline.engines.automodel.preference_losses import (
    PreferenceBatch,
    bradley_terry,
    kto_answers,
    preference_loss,
)
from pipeline.engines.automodel.publish import publish_adapter
from pipeline.schema import Lora, Train
from pipeline.stages.models import merge_adapter, read_weights


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process, no network, no hub; what an earlier test left in the environment does not count."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def refuse(*_: Any) -> None:
        raise AssertionError("something reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For tensors this small a second thread mostly waits, on a busy machine for seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Token ``i`` is written ``wi``, so that texts say token ids exactly."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["</s>", "<pad>", *(f"w{i}" for i in range(2, VOCABULARY))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w2"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="<pad>")


def test_fine_tuning_is_trls(tokenizer: Any, tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    data = [(prompt, chosen) for prompt, chosen, _ in pairs()]
    ours, theirs = llama(1), llama(1)
    our = our_run(ours, sft_loss, [[batch] for batch in batches(data, 1, tmp_path)])
    records = [{"prompt": text(p), "completion": " " + text(a)} for p, a in data]
    their = trl_run(SFTTrainer, SFTConfig, theirs, records, tokenizer, tmp_path)
    agree(ours, theirs, our, their)


@pytest.mark.parametrize(
    ("name", "trl_name", "own"),
    [("dpo", "sigmoid", {}), ("dpo", "sigmoid_norm", {"average": True}), ("ipo", "ipo", {})],
)
def test_dpo_and_ipo_are_trls(
    name: str, trl_name: str, own: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    """Without label smoothing, which TRL 1.16 leaves out of these."""
    from trl import DPOConfig, DPOTrainer

    data = pairs()
    ours, theirs, reference = llama(1), llama(1), llama(2)
    loss = pair_loss(name, reference, beta=0.2, **own)
    our = our_run(ours, loss, [[batch] for batch in batches(sides(data), 2, tmp_path)])
    options = {"beta": 0.2, "loss_type": [trl_name], "ref_model": reference}
    their = trl_run(DPOTrainer, DPOConfig, theirs, pair_records(data), tokenizer, tmp_path, **options)
    agree(ours, theirs, our, their)


def test_conservative_dpo_is_trls_cpo(tokenizer: Any, tmp_path: Path) -> None:
    """CPO's preference term is DPO's with an indifferent reference, and heeds label smoothing."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    data = pairs()
    ours, theirs = llama(1), llama(1)

    def loss(model: Any, batch: list[dict[str, Any]]) -> Any:
        policy = scores(model, batch[0])[0]
        indifferent = torch.zeros(len(policy) // 2)
        given = PreferenceBatch(policy[0::2], policy[1::2], indifferent, indifferent)
        return preference_loss("dpo", given, beta=0.2, label_smoothing=0.15).losses.mean()

    our = our_run(ours, loss, [[batch] for batch in batches(sides(data), 2, tmp_path)])
    options = {"loss_type": "sigmoid", "beta": 0.2, "label_smoothing": 0.15, "cpo_alpha": 0.0}
    their = trl_run(CPOTrainer, CPOConfig, theirs, pair_records(data), tokenizer, tmp_path, **options)
    agree(ours, theirs, our, their)


def test_simpo_is_trls(tokenizer: Any, tmp_path: Path) -> None:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    data = pairs()
    ours, theirs = llama(1), llama(1)
    loss = pair_loss("simpo", beta=2.0, gamma=0.8)
    our = our_run(ours, loss, [[batch] for batch in batches(sides(data), 2, tmp_path)])
    # cpo_alpha is 1 unless told otherwise and would add CPO's likelihood term.
    options = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.8, "cpo_alpha": 0.0}
    their = trl_run(CPOTrainer, CPOConfig, theirs, pair_records(data), tokenizer, tmp_path, **options)
    agree(ours, theirs, our, their)


def test_orpo_is_trls(tokenizer: Any, tmp_path: Path) -> None:
    """TRL's likelihood term is over prompt and answer and a mean over tokens, ours a mean over answers.

    They are the same where a prompt is one token, which nothing predicts, and chosen answers have one length.
    """
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    data = pairs(prompts=(1, 1), chosen=(5, 5))
    ours, theirs = llama(1), llama(1)
    loss = pair_loss("orpo", beta=0.4)
    our = our_run(ours, loss, [[batch] for batch in batches(sides(data), 2, tmp_path)])
    their = trl_run(ORPOTrainer, ORPOConfig, theirs, pair_records(data), tokenizer, tmp_path, beta=0.4)
    agree(ours, theirs, our, their)


def kto_steps(sequences: list[tuple[Ids, Ids]], group: int, folder: Path) -> list[list[Any]]:
    """Batches of the sequences, and of each prompt with the answer before it in its batch."""
    mismatched = []
    for start in range(0, len(sequences), PAIRS * group):
        part = sequences[start : start + PAIRS * group]
        mismatched += [(prompt, part[i - 1][1]) for i, (prompt, _) in enumerate(part)]
    together = zip(batches(sequences, group, folder), batches(mismatched, group, folder), strict=True)
    return [list(both) for both in together]


KTO = {"beta": 0.2, "desirable_weight": 1.2, "undesirable_weight": 0.9}


def test_kto_of_pairs_taken_apart_is_trls(tokenizer: Any, tmp_path: Path) -> None:
    """With a reference for which the estimate of the KL is above 0 in some batches and clamped in others."""
    from trl import KTOConfig, KTOTrainer

    data = pairs()
    ours, theirs, reference = llama(1), llama(1), llama(7)
    paired, estimates = pair_loss("kto", reference, **KTO), []

    def loss(model: Any, batch: list[dict[str, Any]]) -> Any:
        estimates.append(float(estimated_kl(model, reference, batch[1])))
        return paired(model, batch)

    our = our_run(ours, loss, kto_steps(sides(data), 2, tmp_path))
    assert min(estimates) < -0.1 < 0.1 < max(estimates)
    records = [
        {"prompt": text(prompt), "completion": " " + text(answer), "label": answer is chosen}
        for prompt, chosen, rejected in data
        for answer in (chosen, rejected)
    ]
    options = {"batch": 2 * PAIRS, "ref_model": reference, **KTO}
    their = trl_run(KTOTrainer, KTOConfig, theirs, records, tokenizer, tmp_path, **options)
    agree(ours, theirs, our, their)


def test_kto_of_answers_that_were_never_pairs_is_trls(tokenizer: Any, tmp_path: Path) -> None:
    """Each batch with another share of desirable answers, from none to all."""
    from trl import KTOConfig, KTOTrainer

    data = [(prompt, chosen) for prompt, chosen, _ in pairs()]
    desirable = [i % PAIRS < i // PAIRS for i in range(len(data))]
    ours, theirs, reference = llama(1), llama(1), llama(7)

    def loss(model: Any, batch: list[dict[str, Any]]) -> Any:
        ratios = scores(model, batch[0])[0] - reference_scores(reference, batch[0])
        labels = torch.tensor([desirable[index] for index in batch[0]["index"].tolist()])
        return kto_answers(ratios, labels, estimated_kl(model, reference, batch[1]), **KTO).mean()

    our = our_run(ours, loss, kto_steps(data, 1, tmp_path))
    records = [
        {"prompt": text(prompt), "completion": " " + text(answer), "label": label}
        for (prompt, answer), label in zip(data, desirable, strict=True)
    ]
    options = {"ref_model": reference, **KTO}
    their = trl_run(KTOTrainer, KTOConfig, theirs, records, tokenizer, tmp_path, **options)
    agree(ours, theirs, our, their)


def test_an_adapter_that_automodel_trained_merges_as_peft_merges_it(tmp_path: Path) -> None:
    """AutoModel's LoRA layers, a few steps, published; every weight of the merged model is PEFT's."""
    from nemo_automodel.components._peft.lora import PeftConfig, apply_lora_to_linear_modules
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lora = Lora(rank=4, alpha=10, targets=["*_proj"])
    model = llama(1)
    model.save_pretrained(tmp_path / "base")
    options = {"use_triton": False, "use_memory_efficient_lora": False}
    wanted = PeftConfig(target_modules=lora.targets, dim=lora.rank, alpha=lora.alpha, dropout=0.0, **options)
    assert apply_lora_to_linear_modules(model, wanted) == 14  # 7 projections in 2 layers
    data = [(prompt, chosen) for prompt, chosen, _ in pairs()]
    _, gradients = our_run(model, sft_loss, [[batch] for batch in batches(data, 1, tmp_path)])
    assert all(".lora_" in name for name in gradients)
    step = load_step(write_job("train", tmp_path / "work"))
    step.output.mkdir(exist_ok=True)
    publish_adapter(step, Train(peft="lora", lora=lora), model, "pretrain")
    merge_adapter(tmp_path / "base", step.output / "adapter", tmp_path / "merged")
    ours = read_weights(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    theirs = PeftModel.from_pretrained(base, step.output / "adapter").merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    changed = set()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-6, atol=1e-7, msg=f"{name}: {{}}".format)
        if not torch.equal(tensor, before[name]):
            changed.add(name.split(".")[-2])
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    tokens = torch.arange(2, 40)[None]
    with torch.no_grad():  # and the merged model says what AutoModel's layers say
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
        torch.testing.assert_close(merged(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-4)


def test_bradley_terry_is_trls(tokenizer: Any, tmp_path: Path) -> None:
    """TRL's reward trainer, with margins, over a Llama with a score in place of the output layer."""
    from datasets import Dataset
    from transformers import LlamaForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    torch.manual_seed(4)
    config = llama(1).config
    config.num_labels = 1
    model = LlamaForSequenceClassification(config)
    data = pairs()[:PAIRS]
    given = [
        {"chosen": text(p + c), "rejected": text(p + r), "margin": i / 4} for i, (p, c, r) in enumerate(data)
    ]
    plain = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}
    arguments = RewardConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=PAIRS,
        train_sampling_strategy="sequential",
        **plain,
    )
    dataset = Dataset.from_list(given)
    made = RewardTrainer(model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer)
    model.train()
    theirs = made.compute_loss(model, next(iter(made.get_train_dataloader())))
    theirs.backward()
    wanted = gradients_of(model)
    model.zero_grad()
    score = [
        torch.cat([model(torch.tensor([p + side[which]])).logits[:, 0] for p, *side in data])
        for which in (0, 1)
    ]
    ours = bradley_terry(*score, torch.tensor([record["margin"] for record in given])).mean()
    ours.backward()
    torch.testing.assert_close(ours, theirs)
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-5, msg=f"{name}: {{}}".format)
