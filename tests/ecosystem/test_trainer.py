"""transformers' own Trainer, beside the Llama that the model was made from."""

from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from bipe import BipeConfig, BipeForCausalLM

SIZES = {
    "vocab_size": 30,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


def pair() -> tuple[BipeForCausalLM, LlamaForCausalLM]:
    """The same weights as a model of scheme rope and as transformers' Llama."""
    ours = BipeForCausalLM(BipeConfig.from_scheme("rope", initializer_range=0.3, **SIZES))
    theirs = LlamaForCausalLM(LlamaConfig(initializer_range=0.3, **SIZES))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def texts(lengths: list[int], padding: str) -> list[dict[str, list[int]]]:
    """Random texts, padded with 0, of which neither the padding nor anything else is hidden from the count."""
    rows = []
    for seed, length in enumerate(lengths):
        ids = torch.randint(1, 30, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
        hidden = max(lengths) - length
        before, after = (hidden, 0) if padding == "left" else (0, hidden)
        rows.append(
            {
                "input_ids": [0] * before + ids + [0] * after,
                "attention_mask": [0] * before + [1] * length + [0] * after,
                "labels": [-100] * before + ids + [-100] * after,
            }
        )
    return rows


def trainer(
    model: PreTrainedModel, rows: list[dict[str, list[int]]], out: Path, **settings: object
) -> Trainer:
    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor([row[name] for row in batch]) for name in batch[0]}

    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        remove_unused_columns=False,
        **settings,
    )
    return Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows, data_collator=collate)


def per_token(model: PreTrainedModel, rows: list[dict[str, list[int]]]) -> float:
    """Mean loss over all tokens but the first of each text, a text at a time and without padding."""
    nll, count = 0.0, 0
    for row in rows:
        ids = torch.tensor(
            [[i for i, real in zip(row["input_ids"], row["attention_mask"], strict=True) if real]]
        )
        nll += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return nll / count


@pytest.mark.parametrize("padding", ["left", "right"])
def test_the_loss_of_padded_texts_is_a_mean_over_what_is_scored(tmp_path: Path, padding: str) -> None:
    ours, _ = pair()
    rows = texts([5, 5, 9, 7], padding)
    found = trainer(ours, rows, tmp_path).evaluate()["eval_loss"]
    with torch.no_grad():
        assert found == pytest.approx(per_token(ours.eval(), rows), rel=1e-5)


def test_smoothed_labels_are_shifted_as_for_llama(tmp_path: Path) -> None:
    rows = texts([8] * 8, "right")
    losses = []
    for model in pair():
        run = trainer(model, rows, tmp_path, max_steps=4, learning_rate=1e-2, label_smoothing_factor=0.1)
        run.train()
        losses.append([row["loss"] for row in run.state.log_history if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_documents_of_a_packed_block_weigh_as_much_as_alone() -> None:
    ours, _ = pair()
    ids = torch.randint(1, 30, (1, 12))
    documents = torch.tensor([[0] * 4 + [1] * 5 + [2] * 3])
    mean = ours(ids, labels=ids, document_ids=documents).loss
    counted = (ids[:, 1:] != -100).sum()  # as Trainer does
    found = ours(ids, labels=ids, document_ids=documents, num_items_in_batch=counted).loss
    torch.testing.assert_close(found, mean)


def test_a_call_without_targets_adds_nothing() -> None:
    ours, _ = pair()
    ids = torch.randint(1, 30, (1, 6))
    hidden = torch.full_like(ids, -100)
    assert ours(ids, labels=hidden, num_items_in_batch=torch.tensor(5)).loss == 0
