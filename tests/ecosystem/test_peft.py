"""peft's own way of adapting a model."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import bipe

peft = pytest.importorskip("peft")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks so
@pytest.mark.parametrize("scheme", ["bipe-rope", "bipe-t5", "bipe-alibi-learned"])
def test_what_a_retrofit_draws_anew_is_trained_in_full(folder: Path, tmp_path: Path, scheme: str) -> None:
    config = AutoModelForCausalLM.from_pretrained(folder).config
    sizes = {name: getattr(config, name) for name in ("vocab_size", "hidden_size", "intermediate_size")}
    more = {"num_hidden_layers": 1, "num_attention_heads": config.num_attention_heads}
    made = bipe.BipeConfig.from_scheme(scheme, end_token_ids=[5], tokens_per_segment=8.0, **sizes, **more)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["intra", "inter"])
    adapted = peft.get_peft_model(bipe.BipeForCausalLM(made), lora)
    own = {
        name: part.detach().clone()
        for name, part in adapted.named_parameters()
        if part.requires_grad and "modules_to_save" in name
    }
    assert own
    torch.manual_seed(0)
    ids = torch.randint(0, 300, (2, 40))
    optimizer = torch.optim.AdamW([part for part in adapted.parameters() if part.requires_grad], lr=0.05)
    adapted(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    moved = dict(adapted.named_parameters())
    assert all(not torch.equal(part, moved[name]) for name, part in own.items())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks so
def test_adapters_train_save_load_and_merge(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    torch.manual_seed(0)
    ids = torch.randint(0, 300, (2, 40))
    before = adapted(ids, labels=ids).loss.item()
    optimizer = torch.optim.AdamW([part for part in adapted.parameters() if part.requires_grad], lr=0.05)
    for _ in range(5):
        adapted(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.eval()
    logits = adapted(ids).logits
    assert adapted(ids, labels=ids).loss.item() < before
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter"
    )
    torch.testing.assert_close(loaded.eval()(ids).logits, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loaded.merge_and_unload()(ids).logits, logits, rtol=1e-3, atol=1e-4)
    written = adapted.generate(input_ids=ids[:1, :10], max_new_tokens=5, do_sample=False)
    whole = adapted.generate(input_ids=ids[:1, :10], max_new_tokens=5, do_sample=False, use_cache=False)
    assert written.equal(whole)
