"""TRL's supervised fine-tuning."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from .conftest import SENTENCES

trl = pytest.importorskip("trl")


@pytest.mark.filterwarnings("ignore")  # those of trl's own
@pytest.mark.parametrize("packing", [False, True])
def test_a_step_of_supervised_fine_tuning(folder: Path, tmp_path: Path, packing: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    seen: list[dict[str, Any]] = []
    model.register_forward_pre_hook(lambda _, args, named: seen.append(named), with_kwargs=True)
    settings = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        max_length=64,
        packing=packing,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        bf16=False,
        gradient_checkpointing=False,
    )
    trainer = trl.SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_dict({"text": SENTENCES * 8}),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    before = model.model.layers[0].self_attn.q_proj.weight.clone()
    loss = trainer.train().training_loss
    assert 0 < loss < 20
    assert not model.model.layers[0].self_attn.q_proj.weight.equal(before)
    if packing:
        # Texts are packed with resets in position_ids and no mask: none may see another.
        given = seen[0]
        resets = given["position_ids"][0] == 0
        assert resets.sum() > 1
        model.eval()
        ids = given["input_ids"][:1]
        packed = model(ids, position_ids=given["position_ids"][:1]).logits[0]
        starts = [*resets.nonzero().flatten().tolist(), ids.shape[1]]
        for start, stop in pairwise(starts):
            alone = model(ids[:, start:stop]).logits[0]
            torch.testing.assert_close(packed[start:stop], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # those of trl's own
def test_a_model_may_be_given_by_its_folder(folder: Path, tmp_path: Path) -> None:
    settings = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=1, report_to=[], use_cpu=True, save_strategy="no", bf16=False
    )
    trainer = trl.SFTTrainer(
        model=str(folder), args=settings, train_dataset=Dataset.from_dict({"text": SENTENCES * 4})
    )
    assert 0 < trainer.train().training_loss < 20
