"""EleutherAI's lm-evaluation-harness through its HFLM, on tasks that are local files."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bipe import BipeConfig, BipeForCausalLM
from bipe.data.tokens import train_tokenizer
from bipe.evaluation.ruler import NEEDS
from bipe_cli.main import app, run

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of the harness's own

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
{rest}
metadata: {{version: 1}}
"""
CHOICE = """doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]"""
GENERATION = """doc_to_text: "{{question}}"
doc_to_target: "{{target}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]"""
ROLLING = """doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]"""


def evaluate(
    folder: Path, tmp_path: Path, kind: str, rest: str, rows: list[dict[str, Any]], length: int = 128
) -> Any:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    data = tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = tmp_path / "tasks"
    tasks.mkdir(exist_ok=True)
    (tasks / "ours.yaml").write_text(TASK.format(name="ours", data=data, kind=kind, rest=rest))
    model = HFLM(pretrained=str(folder), device="cpu", batch_size=2, max_length=length)
    return lm_eval.simple_evaluate(
        model,
        tasks=["ours"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )


def log_likelihood(folder: Path, context: str, text: str) -> float:
    """Of a text after another, a token at a time."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    given, whole = tokenizer(context).input_ids, tokenizer(context + text).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(logits[place - 1, whole[place]]) for place in range(len(given), len(whole)))


def test_multiple_choice(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"question": "The cat sat", "choices": ["on the mat.", "house"], "answer": 0},
        {"question": "A red house", "choices": ["dog", "stood there. Nobody"], "answer": 1},
        {"question": "It", "choices": ["saw a dog, and ran.", "stood"], "answer": 0},
    ]
    found = evaluate(folder, tmp_path, "multiple_choice", CHOICE, rows)
    right = 0
    for row, sample in zip(rows, found["samples"]["ours"], strict=True):
        expected = [log_likelihood(folder, row["question"], f" {choice}") for choice in row["choices"]]
        scores = [float(answer[0][0]) for answer in sample["resps"]]
        assert scores == pytest.approx(expected, abs=1e-3)
        right += expected.index(max(expected)) == row["answer"]
    assert found["results"]["ours"]["acc,none"] == pytest.approx(right / 3)


def test_generation(folder: Path, tmp_path: Path) -> None:
    rows = [{"question": text, "target": "x"} for text in ("The cat", "A red house stood there. Nobody")]
    found = evaluate(folder, tmp_path, "generate_until", GENERATION, rows)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for row, sample in zip(rows, found["samples"]["ours"], strict=True):
        ids = tokenizer(row["question"], return_tensors="pt").input_ids
        mask = torch.ones_like(ids)
        written = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)[
            0, ids.shape[1] :
        ]
        text = tokenizer.decode(written, skip_special_tokens=True).split("\n")[0]
        assert sample["resps"][0][0].rstrip() == text.rstrip()


def test_rolling_log_likelihood(folder: Path, tmp_path: Path) -> None:
    text = "The cat sat on the mat. It saw a dog, and ran."
    found = evaluate(folder, tmp_path, "loglikelihood_rolling", ROLLING, [{"text": text}])
    end = AutoTokenizer.from_pretrained(folder).eos_token  # which the harness puts in front
    expected = math.exp(-log_likelihood(folder, end, text) / len(text.split()))
    assert found["results"]["ours"]["word_perplexity,none"] == pytest.approx(expected, rel=1e-3)


def test_evaluate_harness_prints_the_harness_own_numbers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question": "The cat sat", "choices": ["on the mat.", "house"], "answer": n % 2} for n in range(8)
    ]
    direct = evaluate(folder, tmp_path, "multiple_choice", CHOICE, rows)["results"]["ours"]["acc,none"]
    command = ["evaluate", "harness", "--model", str(folder), "--include", str(tmp_path / "tasks")]
    assert run(app, [*command, "--tasks", "ours", "--lengths", "64", "--json"]) == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert (row["task"], row["protocol"], row["metric"]) == ("harness", "ours", "acc")
    assert (row["value"], row["length"], row["windows"]) == (direct, 64, 8)
    assert run(app, [*command, "--tasks", "ours", "--lengths", "64"]) == 0
    assert capsys.readouterr().out.split()[:4] == ["64", "ours", "acc", f"{direct:.3f}"]
    error = (direct * (1 - direct) / 7) ** 0.5
    assert (row["low"], row["high"]) == pytest.approx((direct - 1.96 * error, direct + 1.96 * error))


def test_evaluate_harness_gives_the_model_the_context_that_it_says(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": "The cat sat on the mat. It saw a dog, and ran. A red house stood there. Nobody"}]
    direct = {
        length: evaluate(folder, tmp_path, "loglikelihood_rolling", ROLLING, rows, length)["results"]["ours"]
        for length in (12, 4)
    }
    expected = {length: found["word_perplexity,none"] for length, found in direct.items()}
    assert abs(expected[4] / expected[12] - 1) > 1e-3
    command = ["evaluate", "harness", "--model", str(folder), "--include", str(tmp_path / "tasks")]
    assert run(app, [*command, "--tasks", "ours", "--lengths", "4", "--json"]) == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert row["value"] == pytest.approx(expected[4], rel=1e-5)


def test_evaluate_harness_says_what_it_needs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "harness", "--model", str(folder)]
    for more, message in (
        (["--lengths", "64"], "needs names of its tasks: give --tasks"),
        (["--tasks", "hellaswag"], "run at one context length, such as --lengths 1024; got none"),
        (["--tasks", "helaswag", "--lengths", "64"], "has no task 'helaswag'"),
        (["--tasks", "hellaswag", "--lengths", "0"], "context length must be at least 1; got 0"),
        (["--tasks", "ours", "--lengths", "64", "--include", "nowhere"], "nowhere is none"),
        (
            ["--tasks", "ruler_vt", "--lengths", "4096"],
            "and RULER allows 470: this tokenizer's tokens are too",
        ),
    ):
        assert run(app, [*command, *more]) == 2
        assert message in capsys.readouterr().err


def test_rulers_own_texts_are_made_and_answered_offline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The harness prints while it makes them, but not between the rows."""
    pytest.importorskip("wonderwords")
    # RULER's example does not fit into its 500 tokens with a tokenizer of single letters.
    noise = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    tokenizer = train_tokenizer(
        [f"{noise} Question: Find all variables that are assigned the value"] * 20, 500
    )
    tokenizer.pad_token = tokenizer.eos_token
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BipeForCausalLM(BipeConfig.from_scheme("bipe-alibi", tokenizer, **sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    command = ["evaluate", "harness", "--model", str(tmp_path), "--max-windows", "1", "--json"]
    needed = 0
    for tasks in ("ruler_fwe", "ruler_cwe", "ruler", "longcxt", "ruler_vt"):
        assert run(app, [*command, "--tasks", tasks, "--lengths", "64"]) == 2
        told = re.search(r"has up to ([\d,]+) tokens of .* does not fit into 64", capsys.readouterr().err)
        assert told
        needed = int(told[1].replace(",", ""))
    length = needed + 40  # since what is needed is of random texts; what then is said to fit does
    assert run(app, [*command, "--tasks", "ruler_vt", "--lengths", str(length)]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    expected = ("ruler_vt", str(length), length, 1)
    assert (row["protocol"], row["metric"], row["length"], row["windows"]) == expected
    assert 0 <= row["value"] <= 1


@pytest.mark.parametrize("vocabulary", [400, 2000])
def test_rulers_texts_fit_where_they_are_said_to(vocabulary: int) -> None:
    """Its own maker, which would not come back: with short tokens, and with one for each word."""
    pytest.importorskip("wonderwords")
    from lm_eval.tasks.ruler import cwe_utils, vt_utils

    noise = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
    tokenizer = train_tokenizer([noise * 3 + vt_utils.TEMPLATE + cwe_utils.TEMPLATE] * 3, vocabulary)

    def count(text: str) -> int:
        return len(tokenizer(text).input_ids)

    length = NEEDS["ruler_vt"](count, 0)
    (example,) = vt_utils.sys_vartrack_w_noise_random(tokenizer, 1, 500, incremental=5)
    for made in vt_utils.sys_vartrack_w_noise_random(tokenizer, 5, length, icl_example=example):
        assert made["length"] <= length and made["input"].count(noise.strip()) >= 10
    length = NEEDS["ruler_cwe"](count, 1024)
    for made in cwe_utils.sys_word_pair_random(5, length, tokenizer):
        assert made["length"] <= length and len(made["outputs"]) == 10
