"""`bipe train` that notes which blocks each process trains on, in SEEN/RANK, a line a step; may stop at a step."""

import os
import sys
from pathlib import Path
from typing import Any

from bipe.processes import rank
from bipe.training.trainer import BlockTrainer
from bipe_cli.main import app, run


def main(seen: str, stop: str, *arguments: str) -> None:
    step = BlockTrainer.training_step

    def noting(trainer: BlockTrainer, model: Any, inputs: dict[str, Any], *more: Any) -> Any:
        if trainer.state.global_step == int(stop):
            os._exit(7)
        with open(Path(seen) / str(rank()), "a", encoding="utf-8") as file:
            rows = (" ".join(map(str, row)) for row in inputs["input_ids"].tolist())
            file.writelines(f"{trainer.state.global_step}\t{row}\n" for row in rows)
        return step(trainer, model, inputs, *more)

    BlockTrainer.training_step = noting
    sys.exit(run(app, arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
