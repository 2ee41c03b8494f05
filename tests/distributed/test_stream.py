"""A stream that is kept as tokens: shared out without repeats, and gone on with in the middle."""

import json
from pathlib import Path

import torch

from bipe.data import train_tokenizer
from bipe.data.store import TokenStore
from bipe.training.order import SeededOrder

from .launching import together

SCRIPT = Path(__file__).with_name("seen.py")
STEPS, BATCH, PROCESSES = 8, 3, 2


def launch(folder: Path, out: str, stop: int, status: int | None) -> None:
    command = ("train", folder / "recipe.yaml", "--out", folder / out)
    together(PROCESSES, SCRIPT, folder / "seen", str(stop), *command, status=status)


def test_each_block_is_seen_once_by_one_process_also_after_a_stop(tmp_path: Path) -> None:
    # Every document is another text, so that blocks can be told apart.
    lines = [json.dumps({"text": f"Number {n} of {n * n * 7919 % 10007}. It ends."}) for n in range(200)]
    (tmp_path / "stream").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "stream" / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tokenizer = train_tokenizer(["Number 12345 of 67890. It ends."], 270)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    source = f"hf:{tmp_path / 'stream'}"
    (tmp_path / "recipe.yaml").write_text(
        "scheme: bipe-rope\n"
        f"data: {{train: ['{source}:train'], validation: ['{source}:validation'], store: '{tmp_path / 'store'}',\n"
        f"  tokenizer: '{tmp_path / 'tokenizer'}', train_length: 16, max_documents: 150}}\n"
        "model: {hidden_size: 16, num_attention_heads: 2, intermediate_size: 16, num_hidden_layers: 1}\n"
        f"training: {{steps: {STEPS}, batch_size: {BATCH}, checkpoint_every: 2}}\n",
        encoding="utf-8",
    )
    (tmp_path / "seen").mkdir()
    launch(tmp_path, "run", stop=5, status=None)
    assert (tmp_path / "run" / "checkpoints" / "step-4").is_dir()
    launch(tmp_path, "run", stop=-1, status=0)
    store = TokenStore(tmp_path / "store", [f"{source}:train"], tokenizer, limit=150)
    assert store.is_finished
    blocks = store.blocks(16)
    draws = STEPS * BATCH * PROCESSES
    assert len(blocks) > draws
    order = list(SeededOrder(len(blocks), draws, seed=0))
    number = {tuple(blocks[index]["input_ids"].tolist()): index for index in range(len(blocks))}
    assert len(number) == len(blocks)
    for rank in range(PROCESSES):
        seen: dict[int, list[int]] = {}
        for line in (tmp_path / "seen" / str(rank)).read_text(encoding="utf-8").splitlines():
            step, _, ids = line.partition("\t")
            seen.setdefault(int(step), []).append(number[tuple(map(int, ids.split()))])
        assert set(seen) == set(range(STEPS))
        for step, found in seen.items():
            begin = (step * PROCESSES + rank) * BATCH
            expected = order[begin : begin + BATCH]
            # Step 4 was done before the stop and again behind the checkpoint.
            assert found == (expected * 2 if step == 4 else expected), (rank, step)
    assert len(set(order)) == draws
    assert torch.equal(
        torch.tensor(sorted(set(order))), torch.tensor(SeededOrder(len(blocks), draws, 0).drawn(draws))
    )
