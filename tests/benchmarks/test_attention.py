"""The benchmark of attention: that it times what it says, and that its errors are errors."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bipe import BipeForCausalLM
from bipe.benchmarks.attention import captured_layers, drawn_layers, measure
from bipe_cli.main import app, run

MakeModel = Callable[..., BipeForCausalLM]
SMALL = drawn_layers(heads=2, width=8, tokens_per_segment=5)


@pytest.mark.parametrize("name", ["eager", "sdpa", "segment_local", "materialised", "stored"])
def test_every_implementation_is_the_exact_one(name: str) -> None:
    (layer,) = SMALL(300)
    assert layer.relation.bias is not None
    mixed = layer.attend(name, mask=layer.make_mask())
    torch.testing.assert_close(mixed.double(), layer.exact(), rtol=1e-5, atol=1e-5)
    # The baseline leaves the bias out.
    assert (layer.attend("causal").double() - layer.exact()).abs().max() > 0.1


@pytest.mark.parametrize("scheme", ["bipe-alibi", "bipe-rope"])
def test_captured_layers_are_those_of_the_model(make_model: MakeModel, scheme: str) -> None:
    model = make_model(scheme, attn_implementation="eager")
    torch.manual_seed(0)
    ids = torch.randint(0, 12, (40,))
    layers = captured_layers(model, ids)(30)
    hidden = model(ids[None, :30], output_hidden_states=True, use_cache=False).hidden_states
    assert len(layers) == 2 and layers[0].groups == 2
    for index, (layer, decoder) in enumerate(zip(layers, model.model.layers, strict=True)):
        mixed = layer.attend("sdpa").transpose(1, 2).reshape(1, 30, -1)
        after = hidden[index] + decoder.self_attn.o_proj(mixed)
        after = after + decoder.mlp(decoder.post_attention_layernorm(after))
        if index == 1:
            after = model.model.norm(after)
        torch.testing.assert_close(after, hidden[index + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", ["cope", "bipe-selfextend"])
def test_a_bias_that_reads_content_is_checked_too(make_model: MakeModel, scheme: str) -> None:
    layers = captured_layers(make_model(scheme), torch.arange(12).repeat(3))
    (row,) = (row for row in measure(layers, [30], ["sdpa"], rounds=1) if row["implementation"] == "sdpa")
    assert row["error"] < 1e-4
    with pytest.raises(ValueError, match="leave out materialised and stored"):
        measure(layers, [30], ["materialised"], rounds=1)


def test_what_fades_by_channel_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="xPos"):
        captured_layers(make_model("xpos"), torch.arange(12))(10)


@pytest.mark.parametrize("backward", [False, True])
def test_rows_tell_cost_and_growth(backward: bool) -> None:
    rows = measure(SMALL, [400, 200], ["segment_local", "stored"], backward=backward, rounds=2)
    costs = [(row["implementation"], row["length"]) for row in rows if row["row"] == "cost"]
    names = ["causal", "segment_local", "stored"]
    assert costs == [(name, length) for length in (200, 400) for name in names]
    for row in rows:
        assert row["low"] <= row["median"] <= row["high"] and row["rounds"] == 2
        assert row["mode"] == ("forward and backward" if backward else "forward")
    causal, local, stored = rows[3:6]
    assert (causal["median"], causal["error"]) == (1.0, None)
    assert local["error"] < 1e-5 and stored["error"] < 1e-5
    mask = 2 * 400 * 400 * 4
    assert mask < stored["extra_peak_bytes"] < 1.5 * mask and local["extra_peak_bytes"] < mask
    growth = [row for row in rows if row["row"] == "growth"]
    assert [(row["implementation"], row["shorter"], row["length"]) for row in growth] == [
        (name, 200, 400) for name in names
    ]
    assert growth[2]["peak_ratio"] > 3


@pytest.mark.parametrize(
    ("lengths", "names", "reason"),
    [
        ([], ["sdpa"], "at least 1; got"),
        ([0, 8], ["sdpa"], "at least 1; got"),
        ([8], ["sdpaa"], "'sdpaa'.*causal.*materialised"),
        ([2_000_000], ["materialised"], "A bias of 2000000 by 2000000"),
    ],
)
def test_what_cannot_be_measured_is_refused(lengths: list[int], names: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        measure(drawn_layers(heads=1, width=1), lengths, names, rounds=1)


def test_layers_share_a_mask(make_model: MakeModel) -> None:
    model = make_model("bipe-alibi", num_hidden_layers=4)
    layers = captured_layers(model, torch.randint(0, 12, (500,)))
    rows = measure(layers, [500], ["materialised", "stored"], rounds=1)
    mask = 4 * 500 * 500 * 4
    for row in rows[1:]:
        assert mask < row["extra_peak_bytes"] < 2.6 * mask


@pytest.fixture
def folder(make_model: MakeModel, tmp_path: Path) -> Path:
    from bipe.data.tokens import train_tokenizer

    tokenizer = train_tokenizer(["one two. three four five. " * 9], 280)
    make_model("bipe-alibi", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "text.txt").write_text("one two three. two one. " * 40)
    return tmp_path


def test_the_command_tells_the_reach_of_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "attention", "--model", str(folder), "--data", str(folder / "text.txt")]
    assert run(app, [*command, "--lengths", "64", "--rounds", "1", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    reach = [row for row in rows if row["row"] == "reach"]
    assert [(row["layer"], row["head"]) for row in reach] == [
        (layer, head) for layer in (0, 1) for head in range(4)
    ]
    for row in reach:
        assert row["mass_segments"] <= row["needed_segments"] <= row["bound_segments"]
        assert 0 <= row["mass_tokens"] <= row["needed_tokens"] < row["tokens"] == 64
    assert {row["implementation"] for row in rows if row["row"] == "cost"} == {
        "causal",
        "segment_local",
        "sdpa",
    }
    assert all(row["threads"] >= 1 and row["device"] for row in rows)

    assert run(app, [*command, "--lengths", "32,64", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 + 6 + 3
    assert lines[0].startswith("layer 0 head 0: bound ") and "99% of attention within" in lines[0]
    assert "segment_local, forward, 64 tokens: " in lines[-2]

    for more, reason in (
        (["--lengths", "64,99999"], "tokens; 99999 were asked for"),
        (["--lengths", "-5"], "at least 1; got"),
        (["--heads", "4"], "are those of the model"),
        (["--implementations", "fast", "--lengths", "8"], "Unknown attention implementation 'fast'"),
    ):
        assert run(app, [*command, *more]) == 2
        found = capsys.readouterr()
        assert found.out == "" and found.err.count("\n") == 1 and reason in found.err


def test_a_model_without_decay_is_measured_without_segment_local(
    folder: Path, make_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = BipeForCausalLM.from_pretrained(folder).config.vocab_size
    make_model("bipe-rope", vocab_size=vocabulary).save_pretrained(folder)
    command = [
        "bench",
        "attention",
        "--model",
        str(folder),
        "--data",
        str(folder / "text.txt"),
        "--lengths",
        "32",
    ]
    assert run(app, [*command, "--rounds", "1", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["bound_segments"] is None and rows[0]["mass_tokens"] >= 1
    assert [row["implementation"] for row in rows if row["row"] == "cost"] == ["causal", "sdpa"]
    assert run(app, [*command, "--implementations", "segment_local"]) == 2
    assert "needs a bias that decays" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["attention", "--lengths", "8,x"], "--lengths takes whole numbers"),
        (["attention", "--model", "nowhere"], "--data"),
        (["attention", "--rounds", "0"], "--rounds"),
        (["attention", "--implementations", "fast"], "fast"),
        (["model", "--schemes", "bipe-rop"], "bipe-rop"),
        (["model", "--lengths", "1"], "2 or more tokens"),
        (["model", "--heads", "5"], "num_attention_heads"),
        (["attention", "--scale", "inf"], "finite number"),
        (["positions", "--rows", "0"], "--rows"),
        (["nothing"], "nothing"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["bench", *arguments]) == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.count("\n") == 1 and reason in found.err
