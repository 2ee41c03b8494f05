"""transformers' text-generation pipeline."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline


def test_a_pipeline_continues_each_text_as_generate_does(folder: Path) -> None:
    write = pipeline("text-generation", model=str(folder), device="cpu")
    prompts = ["The cat", "A red house stood there. Nobody"]
    found = write(prompts, batch_size=2, max_new_tokens=6, do_sample=False)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for prompt, rows in zip(prompts, found, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert rows[0]["generated_text"] == tokenizer.decode(alone[0], skip_special_tokens=True)
