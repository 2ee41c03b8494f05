"""The paper's experiments as commands, at a size for a CPU; `paper_size` has the paper's."""

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

from .paper_size import NORMAL, TASKS
from .steps import Experiment, Setup, Step

BIG = "One machine with eight accelerators of 40 GB or more."
STARTED = "It starts from the models of `bipe reproduce extrapolation --paper-size`."


def _arithmetic(setup: Setup) -> list[list[Step]]:
    recipe = "arithmetic/cpu.yaml"
    widths = [
        setup.compare(
            recipe,
            f"width-{width}",
            *("--seeds", "1", "--model.hidden_size", str(width)),
            *("--model.intermediate_size", str(4 * width)),
            text=False,
        )
        for width in (32, 64, 128)
    ]
    return [[setup.compare(recipe, "width-48", text=False), *widths]]


def _extension(setup: Setup) -> list[list[Step]]:
    """For each scheme and seed: as trained, extended by 4, and each of these after a tenth more steps."""
    lengths = ("--lengths", "128,256,512,1024,2048,4096")

    def lane(scheme: str, seed: int) -> list[Step]:
        folder = setup.out / f"{scheme}-{seed}"
        plain, number = folder / "plain", ("--seed", str(seed))
        text = ("--data.train", json.dumps(list(setup.data)))
        longer = ("--steps", "60", "--batch-size", "4", "--train-length", "512")
        longer += ("--warmup-steps", "6", "--learning-rate", "1.0e-3", *number)
        train = (str(setup.recipes / "retrofit/scratch.yaml"), "--scheme", scheme, *number, *text)
        steps = [Step("train", *train, "--out", str(plain), *setup.settings)]
        for method in ("linear", "yarn", "rerope", "selfextend", "sliding_rope"):
            extend = ("extend", "--model", str(plain), "--method", method, "--factor", "4")
            steps.append(Step(*extend, "--out", str(folder / method), makes=folder / method))
            if method in ("linear", "yarn"):
                trained = folder / f"{method}-trained"
                data = tuple(part for name in setup.data for part in ("--data", name))
                steps.append(Step(*extend, "--out", str(trained), *data, *longer))
        further = (str(setup.recipes / "extension/longer.yaml"), "--start", str(plain), *number, *text)
        steps.append(Step("train", *further, "--out", str(folder / "plain-trained")))
        arms = ("plain", "linear", "yarn", "rerope", "selfextend", "sliding_rope")
        for arm in (*arms, "plain-trained", "linear-trained", "yarn-trained"):
            evaluate = ("evaluate", "length-curve", "--model", str(folder / arm), *setup.tested, *lengths)
            steps.append(Step(*evaluate, rows=folder / f"{arm}.jsonl", arm=f"{scheme} {arm}", seed=seed))
        return steps

    return [lane(scheme, seed) for seed, scheme in product(range(setup.seeds), ("rope", "bipe-rope"))]


def _segments(setup: Setup) -> list[list[Step]]:
    """Of every rule, on each text by itself."""
    return [
        [
            Step(
                *("segment", source, "--rule", rule, "--statistics"),
                rows=setup.out / f"{re.sub('[^A-Za-z0-9.]+', '_', source).strip('_')}-{rule}.jsonl",
                arm=f"{source}, {rule}",
            )
            for rule in ("paper", "sentence", "line")
        ]
        for source in (*setup.data, *setup.test)
    ]


def _small_models(setup: Setup, *schemes: str) -> dict[str, Step]:
    """A small language model of each scheme, by folder."""
    recipe = str(setup.recipes / "language_modelling/bipe-rope-3m.yaml")
    text = ("--data.train", json.dumps(list(setup.data)))
    return {
        f"{scheme}-{seed}": Step(
            *("train", recipe, "--scheme", scheme, "--seed", str(seed), *text, *setup.settings),
            *("--out", str(setup.out / f"{scheme}-{seed}")),
        )
        for seed, scheme in product(range(setup.seeds), schemes)
    }


def _scrolls(setup: Setup) -> list[list[Step]]:
    from bipe.registry import choose

    tasks = setup.tasks or ("qasper", "contract_nli")
    known = dict.fromkeys(map(str, TASKS))
    for task in tasks:
        choose("task of SCROLLS", known, Path(task).name.removesuffix(".zip"))
        if Path(task).name != task and not Path(task).exists():
            raise ValueError(f"There is no file or folder {task!r}.")

    def lane(name: str, model: Step) -> list[Step]:
        steps = [model]
        for task in tasks:
            tuned = setup.out / f"{name}-{Path(task).stem}"
            recipe = (str(setup.recipes / "scrolls/cpu.yaml"), "--start", str(setup.out / name))
            chosen = ("--data.scrolls.task", task, "--seed", name.rpartition("-")[2])
            steps.append(Step("train", *recipe, *chosen, "--out", str(tuned)))
            evaluate = ("evaluate", "scrolls", "--model", str(tuned), "--data", task, "--lengths", "1024")
            rows = setup.out / f"{tuned.name}.jsonl"
            steps.append(Step(*evaluate, "--max-windows", "100", rows=rows, arm=name.rpartition("-")[0]))
        return steps

    return [lane(name, model) for name, model in _small_models(setup, "rope", "bipe-rope").items()]


def _tasks(setup: Setup) -> list[list[Step]]:
    both = {"ruler": ("ruler_vt,ruler_fwe", "2048"), "normal": (NORMAL, "1024")}  # the second from the hub
    groups = {"named": (",".join(setup.tasks), "2048")} if setup.tasks else both

    def lane(name: str, model: Step) -> list[Step]:
        harness = ("evaluate", "harness", "--model", str(setup.out / name), "--max-windows", "200")
        return [
            model,
            *(
                Step(
                    *(*harness, "--tasks", tasks, "--lengths", length),
                    rows=setup.out / f"{name}-{group}.jsonl",
                    arm=name.rpartition("-")[0],
                )
                for group, (tasks, length) in groups.items()
            ),
        ]

    models = _small_models(setup, "rope", "alibi", "bipe-rope", "bipe-alibi")
    return [lane(name, model) for name, model in models.items()]


def _theory(setup: Setup) -> list[list[Step]]:
    """Models of both kinds, wider and wider until one has learned the automaton, for several sizes of it."""
    widths = (8, 16, 32, 64)

    def suffices(rows: list[dict[str, Any]]) -> bool:
        from bipe.report.theory import has_learned

        return has_learned(rows)

    def step(scheme: str, states: int, width: int, seed: int) -> Step:
        name = f"{scheme}-{states}-{width}-{seed}"
        cell = ("--scheme", scheme, "--states", str(states), "--width", str(width), "--seed", str(seed))
        return Step(
            *("theory", "learn", *cell, "--out", str(setup.out / name), *setup.settings),
            rows=setup.out / f"{name}.jsonl",
            suffices=suffices,
        )

    cells = product(range(setup.seeds), (2, 3, 4), ("bipe-rope", "sinusoidal"))
    return [[step(scheme, states, width, seed) for width in widths] for seed, states, scheme in cells]


EXPERIMENTS: dict[str, Experiment] = {
    "arithmetic": Experiment(
        title="Arithmetic modulo 11, against the hidden width",
        takes=("seeds", "settings"),
        claim="At width 48 BiPE-ALiBi answers 97 %, and everything without segments stays under 70 % (as a "
        "later note reports).",
        lanes=_arithmetic,
        hardware="One accelerator or eight; of models this small what counts is how fast steps are begun.",
    ),
    "extrapolation": Experiment(
        title="Language modelling beyond the trained length",
        claim="On PG19, trained on 1,024 tokens: RoPE 158, ALiBi 28.6, BiPE-ALiBi 25.2 at the longest length "
        "(as a later note reports; another's run has 144 for RoPE).",
        lanes=lambda setup: [[setup.compare("comparisons/extrapolation.yaml", "extrapolation")]],
        hardware=f"{BIG} The 1.6B models want four such. ArXiv and Github are measured like PG19, with "
        "--data of a folder of such text.",
    ),
    "encodings": Experiment(
        title="Every encoding that people compare, at equal budget",
        claim="The paper compares sinusoidal, randomized RoPE, RoPE and ALiBi with BiPE-RoPE and BiPE-ALiBi.",
        lanes=lambda setup: [[setup.compare("comparisons/encodings.yaml", "encodings")]],
        hardware=BIG,
    ),
    "ablations": Experiment(
        title="What each part of BiPE does",
        claim="Both levels are needed, and segments should be those of the text (as the abstract suggests; "
        "the numbers are not known to this project).",
        lanes=lambda setup: [[setup.compare("comparisons/ablations.yaml", "ablations")]],
        hardware=BIG,
    ),
    "extension": Experiment(
        title="A longer context for a trained model",
        claim="BiPE-RoPE with YaRN on its segment index, after 500 steps at length 4,096, reads further than "
        "RoPE with YaRN (as a later note reports).",
        lanes=_extension,
        hardware=f"{BIG} {STARTED}",
        needs_test=True,
    ),
    "segments": Experiment(
        title="Tokens per segment (Figure 1)",
        takes=("data", "test"),
        claim="The number of tokens in a segment has bounded support and is alike at every length.",
        lanes=_segments,
        hardware="None beyond memory for the text.",
    ),
    "passkey": Experiment(
        title="Looking for a key in a long text",
        claim="None of the paper; a length curve cannot tell whether a model reads what is far away.",
        lanes=lambda setup: [[setup.compare("comparisons/passkey.yaml", "passkey")]],
        hardware=f"One accelerator. {STARTED}",
    ),
    "scrolls": Experiment(
        title="SCROLLS after fine-tuning",
        takes=("data", "tasks", "seeds", "settings"),
        claim="BiPE-RoPE is 3.98 above RoPE on average (as a later note reports).",
        lanes=_scrolls,
        hardware=f"{BIG} {STARTED}",
    ),
    "theory": Experiment(
        title="Random two-level automata, learned",
        takes=("seeds", "settings"),
        claim="Absolute positions need a width of the order of (Q1 Q2)^2 for some two-level automata, and "
        "bilevel ones one of Q1^2 + Q2^2 (as recalled; about what exists, not about what training finds).",
        lanes=_theory,
        hardware="None: the paper proves and trains nothing. These build what it says exists.",
    ),
    "tasks": Experiment(
        title="Tasks of normal length, and RULER's that need no network",
        takes=("data", "tasks", "seeds", "settings"),
        claim="On tasks of normal length BiPE loses nothing against the encoding that it is built on.",
        lanes=_tasks,
        hardware=f"One accelerator. Texts come from the hub, some of RULER's too. {STARTED}",
    ),
}
