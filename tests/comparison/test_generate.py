"""The command that generates, with the models of a comparison."""

import json

import pytest
import torch

from bipe.models.checkpoint import load_checkpoint
from bipe_cli.main import app, run


def test_generate_continues_the_prompt_greedily(trained, capsys):
    assert (
        run(app, ["generate", "--model", str(trained), "--prompt", "the cat", "--max-new-tokens", "6"]) == 0
    )
    written = capsys.readouterr().out.rstrip("\n")
    checkpoint = load_checkpoint(trained)
    ids = checkpoint.tokenizer("the cat", return_tensors="pt").input_ids
    for _ in range(6):
        with torch.no_grad():
            ids = torch.cat((ids, checkpoint.model(ids).logits[:, -1:].argmax(-1)), dim=1)
    assert written == checkpoint.tokenizer.decode(ids[0], skip_special_tokens=True).rstrip("\n")


def test_generate_samples_the_same_text_for_the_same_seed(trained, capsys):
    command = ["generate", "--model", str(trained), "--prompt", "a red", "--temperature", "1.5", "--json"]
    texts = []
    for seed in ("1", "1", "2"):
        assert run(app, [*command, "--seed", seed]) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1] != texts[2]


def test_a_text_is_shown_as_it_is_written(trained):
    from bipe.models.completion import complete

    checkpoint, pieces = load_checkpoint(trained), []
    text = complete(checkpoint, "the cat", max_new_tokens=12, on_piece=pieces.append)
    assert "".join(pieces) == text and pieces[0] == "the cat" and len(pieces) > 6


def test_a_bounded_cache_writes_the_same_text(finished, capsys):
    model = finished[0] / "runs" / "bipe-alibi-auto-0"
    command = ["generate", "--model", str(model), "--prompt", "the cat saw. it ran", "--max-new-tokens", "40"]
    texts = []
    for more in ([], ["--bounded-cache"]):
        assert run(app, [*command, *more]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].startswith("the cat saw. it ran")


def test_a_prompt_starts_as_training_documents_do(trained, monkeypatch):
    from tokenizers.processors import TemplateProcessing

    from bipe.data import Document, encode
    from bipe.models.completion import complete

    checkpoint = load_checkpoint(trained)
    the = checkpoint.tokenizer.convert_tokens_to_ids("t")
    checkpoint.tokenizer.bos_token = "t"  # any token will do, the vocabulary has no spare one
    checkpoint.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="t $A <|endoftext|>", special_tokens=[("t", the), ("<|endoftext|>", 0)]
    )
    given = []
    monkeypatch.setattr(checkpoint.model, "generate", lambda ids, **_: given.append(ids) or ids)
    complete(checkpoint, "a cat")
    assert given[0][0].tolist() == encode([Document("a", "a cat")], checkpoint.tokenizer)[0].tolist()
    assert given[0][0, 0] == the and given[0][0, -1] != 0


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_broken_file_of_a_model_is_named_or_its_folder(trained, tmp_path, capsys, broken):
    for path in trained.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes()[: 40 if path.name == broken else None])
    assert run(app, ["generate", "--model", str(tmp_path), "--prompt", "a"]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_weights_of_another_config_are_refused(trained, tmp_path, capsys):
    for path in trained.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    assert run(app, ["generate", "--model", str(tmp_path), "--prompt", "a"]) == 2
    assert "not those of its config.json" in capsys.readouterr().err
