"""A folder that carries its model's code, where bipe is not installed."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bipe import BipeForCausalLM, convert
from bipe.models.standalone import flat_module, write_standalone

ELSEWHERE = """
import sys
sys.modules["bipe"] = None  # as if it were not installed
sys.modules["bipe_cli"] = None
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
ids = AutoTokenizer.from_pretrained(folder)("The cat sat. A red", return_tensors="pt").input_ids
written = model.generate(ids, max_new_tokens=8, do_sample=False)
save_file({"logits": model(ids).logits, "written": written, "bound": model.reach().bound}, out)
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
"""


def test_it_computes_the_same_without_this_package(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "model", standalone=True)
    out = tmp_path / "found.safetensors"
    environment = {
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PATH": "",
    }
    finished = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path / "model"), str(out)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=tmp_path,
    )
    assert finished.returncode == 0, finished.stderr
    found, model = load_file(out), AutoModelForCausalLM.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)("The cat sat. A red", return_tensors="pt").input_ids
    assert found["logits"].equal(model(ids).logits)
    assert found["written"].equal(model.generate(ids, max_new_tokens=8, do_sample=False))
    assert found["bound"].equal(model.reach().bound)


def test_here_the_installed_package_is_used(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "model", standalone=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=False)
    assert type(model) is BipeForCausalLM


def test_the_module_names_nothing_of_this_package() -> None:
    found = [node for node in ast.walk(ast.parse(flat_module())) if isinstance(node, ast.ImportFrom)]
    assert len(found) > 20
    assert all(node.level == 0 and str(node.module).partition(".")[0] != "bipe" for node in found)


def test_only_models_of_this_project_get_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model of this project"):
        write_standalone(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="no model of this project"):
        write_standalone(tmp_path)
