"""The commands of the paper's experiments at the paper's size; LLAMA stands for LLaMA's tokenizer."""

from collections.abc import Iterable, Mapping
from itertools import product

EIGHT = "torchrun --standalone --nproc-per-node 8 -m bipe_cli"
FOUR_OF_EIGHT = (
    "torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m bipe_cli"
)
ALL = "--max-windows 1000000"
SCHEMES = ("sinusoidal", "randomized-rope", "rope", "xpos", "alibi", "bipe-rope", "bipe-alibi")
BASES = ("rope", "alibi", "bipe-rope", "bipe-alibi")
TASKS = ("gov_report", "summ_screen_fd", "qmsum", "qasper", "contract_nli", "quality", "narrative_qa")
NORMAL = "hellaswag,piqa,winogrande,race,boolq,truthfulqa_mc1"
# The whole stream, as tokens on a disk that all runs share.
STREAM = "--data.max_documents null --data.store runs/pile"
PILE = f"--data.tokenizer LLAMA {STREAM}"


def _train(arms: Mapping[str, str], size: str = "151m", launch: str = EIGHT) -> Iterable[str]:
    """A run of every arm, which is its options by its name, into runs/NAME-SIZE."""
    for name, options in arms.items():
        recipe = f"recipes/language_modelling/bipe-rope-{size}.yaml"
        yield f"{launch} train {recipe} {options} {PILE} --out runs/{name}-{size}"


def _curves(
    models: Iterable[str], protocol: str, lengths: str = "1024,2048,3072,4096,5120,6144"
) -> Iterable[str]:
    for model in models:
        yield (
            f"bipe evaluate length-curve --model runs/{model} --data hf:emozilla/pg19:test "
            f"--protocol {protocol} --lengths {lengths}{f' {ALL}' if protocol == 'blocks' else ''}"
        )


def _schemes(*names: str) -> dict[str, str]:
    return {name: f"--scheme {name}" for name in names}


def _sized(names: Iterable[str], size: str = "151m") -> list[str]:
    return [f"{name}-{size}" for name in names]


def _arithmetic() -> Iterable[str]:
    heads = "--model.num_attention_heads 8"  # which scale 96 wants
    arms = {
        f"{name}-{width}": (f"--scheme {name} {heads if name == 'bipe-alibi' else ''}".strip(), width)
        for width, name in product((48, 64, 256), SCHEMES)
    }
    for name, options in {
        "bipe-alibi-1": "--scheme bipe-alibi --model.inter '{type: alibi, scale: 1.0}'",
        "bipe-alibi-auto": "--scheme bipe-alibi-auto",
        "bipe-rope-sinusoidal": "--scheme bipe-rope --model.intra '{type: sinusoidal}'",
        "bipe-rope-randomized": "--scheme bipe-rope-randomized",
    }.items():
        arms[f"{name}-48"] = (options, 48)
    for name, (options, width) in arms.items():
        yield (
            f"{EIGHT} train recipes/arithmetic/paper.yaml {options} --training.batch_size 64 "
            f"--model.hidden_size {width} --model.intermediate_size {4 * width} --out runs/arithmetic-{name}"
        )
    for name in arms:
        evaluate = f"bipe evaluate arithmetic --model runs/arithmetic-{name}"
        yield f"{evaluate} --lengths 6,7,8,10,12 --max-windows 100000"


def _extrapolation() -> Iterable[str]:
    window = "--scheme sliding-rope --model.inter '{type: sliding_rope, window: 1024}'"
    arms = {**_schemes(*SCHEMES), "rope-window": window}
    yield from _train(arms)
    for protocol in ("blocks", "same_targets"):
        yield from _curves(_sized(arms), protocol)
    large = _schemes("rope", "alibi", "bipe-rope", "bipe-alibi")
    yield from _train(large, "1.6b", FOUR_OF_EIGHT)
    yield from _curves(_sized(large, "1.6b"), "blocks")


def _encodings() -> Iterable[str]:
    arms = _schemes(*SCHEMES, "t5", "kerple", "fire", "cope")
    yield from _train(arms)
    yield from _curves(_sized(arms), "same_targets")


def _ablations() -> Iterable[str]:
    arms = _schemes(
        "rope", "alibi", "nope", "bipe-rope", "bipe-alibi", "bipe-alibi-auto", "bipe-alibi-learned"
    )
    arms |= _schemes("intra-only", "inter-only")
    arms["inter-only-alibi"] = "--scheme bipe-alibi --model.intra '{type: zero}'"
    for n in (8, 16, 32, 64):
        segmenter = f"{{type: fixed_length, n: {n}}}"
        arms[f"fixed-{n}"] = f"--scheme bipe-rope --model.segmenter '{segmenter}'"
    arms |= {rule: f"--scheme bipe-rope --rule {rule}" for rule in ("line", "sentence", "released")}
    arms |= {f"table-{rows}": f"--scheme bipe-rope --model.max_offset {rows}" for rows in (8, 32, 128, 256)}
    for scale in (1, 5, 20):
        inter = f"{{type: alibi, scale: {scale}.0}}"
        arms[f"scale-{scale}"] = f"--scheme bipe-alibi --model.inter '{inter}'"
    yield from _train(arms)
    for protocol in ("same_targets", "without_separators"):
        yield from _curves(_sized(arms), protocol)


def _extension() -> Iterable[str]:
    models = []
    for scheme, method in product(("rope", "bipe-rope"), ("yarn", "linear")):
        model, extended = f"{scheme}-151m", f"{scheme}-151m-{method}"
        yield f"bipe extend --model runs/{model} --method {method} --factor 16 --out runs/{extended}"
        further = f"train recipes/extension/paper.yaml --start runs/{extended} {STREAM}"
        yield f"{EIGHT} {further} --out runs/{extended}-500"
        models += [extended, f"{extended}-500"]
    lengths = "1024,2048,4096,8192,16384"
    yield from _curves(["rope-151m", "bipe-rope-151m", *models], "same_targets", lengths)


def _passkey() -> Iterable[str]:
    for task, scheme in product(("passkey", "multikey"), BASES):
        asked = f"bipe evaluate {task} --model runs/{scheme}-151m --data hf:emozilla/pg19:test"
        yield f"{asked} --lengths 1024,2048,4096,8192,16384"


def _scrolls() -> Iterable[str]:
    """Each model's answers in a folder of its own, which the leaderboard's file comes to."""
    for scheme, task in product(("rope", "bipe-rope"), TASKS):
        tuned = f"runs/{scheme}-{task}"
        chosen = f"--start runs/{scheme}-151m --data.scrolls.task {task}"
        yield f"{EIGHT} train recipes/scrolls/paper.yaml {chosen} --out {tuned}"
        answer = f"bipe evaluate scrolls --model {tuned} --data {task} --lengths 8192"
        for split in ("validation", "test"):
            yield f"{answer} --split {split} --out runs/answers-{scheme}"


def _tasks() -> Iterable[str]:
    for scheme, (tasks, length) in product(BASES, ((NORMAL, 1024), ("ruler", 4096))):
        yield f"bipe evaluate harness --model runs/{scheme}-151m --tasks {tasks} --lengths {length}"


PAPER_SIZE: Mapping[str, tuple[str, ...]] = {
    "arithmetic": tuple(_arithmetic()),
    "extrapolation": tuple(_extrapolation()),
    "encodings": tuple(_encodings()),
    "ablations": tuple(_ablations()),
    "extension": tuple(_extension()),
    "segments": (
        "bipe segment hf:monology/pile-uncopyrighted:validation --tokenizer LLAMA --statistics "
        "--lengths 1024,2048,4096,8192",
    ),
    "passkey": tuple(_passkey()),
    "scrolls": tuple(_scrolls()),
    "theory": ("bipe theory verify --automata 1000", "bipe theory size --states 2,3,4,5"),
    "tasks": tuple(_tasks()),
}
"""The commands of each experiment, in the order in which they need each other."""
