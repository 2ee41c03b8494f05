"""A text read by several processes together is the text read by one."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bipe.models import BipeConfig, BipeForCausalLM
from bipe.models.sequence_parallel import hidden_states_of_stretch
from bipe_cli.main import app, run

from .launching import together

SCRIPT = Path(__file__).with_name("together.py")
SCHEMES = (
    *(
        "rope",
        "bipe-rope",
        "alibi",
        "bipe-alibi",
        "bipe-alibi2",
        "sinusoidal",
        "nope",
        "bipe-xpos",
        "bipe-t5",
    ),
    *("bipe-kerple", "fire", "cope", "bipe-cope", "hirope", "sliding-rope", "rerope", "bipe3-rope"),
    *("bipe3-alibi", "bipe-alibi/eager", "bipe-alibi/segment_local", "bipe-rope/eager"),
)


@pytest.mark.parametrize("processes", [2, 3])
def test_every_scheme_reads_together_what_it_reads_alone(processes: int, tmp_path: Path) -> None:
    together(processes, SCRIPT, tmp_path, ",".join(SCHEMES))
    for rank in range(processes):
        found = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
        assert set(found) == set(SCHEMES)
        assert {scheme: error for scheme, error in found.items() if not error < 1e-5} == {}


def tiny(**more) -> BipeForCausalLM:
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    return BipeForCausalLM(BipeConfig.from_scheme("rope", **sizes, num_attention_heads=2, **more)).eval()


def test_one_process_reads_all() -> None:
    model, ids = tiny(), torch.arange(10)[None]
    part, start = hidden_states_of_stretch(model, ids)
    with torch.no_grad():
        whole = model.model(ids, use_cache=False).last_hidden_state
    assert start == 0 and torch.allclose(part, whole, atol=1e-6)


def test_what_cannot_be_shared_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=16, hidden_size=32, num_hidden_layers=1))
    with pytest.raises(ValueError, match="Only this package's models"):
        hidden_states_of_stretch(llama, torch.arange(10)[None])
    dynamic = {"type": "rope", "scaling": {"rope_type": "dynamic", "factor": 2.0}}
    model = tiny(inter=dynamic)
    with pytest.raises(ValueError, match="cached keys would be wrong"):
        hidden_states_of_stretch(model, torch.arange(10)[None])
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="5 tokens cannot be shared by 4 processes"):
        hidden_states_of_stretch(tiny(), torch.arange(5)[None])
    assert run(app, ["evaluate", "passkey", "--model", str(tmp_path), "--sequence-parallel"]) == 2
    assert "--sequence-parallel is an option of length-curve" in capsys.readouterr().err
