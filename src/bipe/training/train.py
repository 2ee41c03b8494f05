"""Training a model: on blocks of tokens, or from a recipe."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from transformers import TrainerCallback

from bipe.models.checkpoint import load_model, quiet_transformers
from bipe.models.configuration import BipeConfig
from bipe.models.modeling import BipeForCausalLM
from bipe.models.standalone import without_auto_map
from bipe.processes import in_turn, is_first
from bipe.storage import write_whole

from . import checkpoints
from .adapters import add_adapters, merge_adapters
from .environment import describe_environment
from .gradual import GradualRotation
from .history import FILE as HISTORY
from .history import HistoryRecorder, Measure, Progress, Row, keep_history_until, read_history
from .initial_model import check_recipe, configure, initial_model, refuse_another_config
from .interruption import Interruption
from .material import read_material
from .order import Blocks
from .progress import progress_line
from .reading import dump_recipe
from .recipe import Recipe, TrainingSettings
from .run_folder import (
    RECIPE,
    Identity,
    check_start,
    claim,
    claim_recipe,
    held,
    identify,
    is_finished,
    is_there,
    open_folder,
    write_marker,
)
from .sharding import check_sharding, shards, whole_weights
from .trainer import BlockTrainer, run_order, training_arguments

ENVIRONMENT = "environment.json"


@dataclass(frozen=True)
class TrainedModel:
    """What a finished run leaves.

    Attributes:
        model: with its final weights, in evaluation mode.
        history: rows of the run's `history.jsonl`.
        directory: the run's folder; `from_pretrained` reads the model from it.
    """

    model: BipeForCausalLM
    history: list[Row]
    directory: Path


@quiet_transformers()
def train_model(
    config: BipeConfig,
    blocks: Blocks,
    validation_blocks: Blocks | None,
    settings: TrainingSettings,
    out_dir: str | Path,
    *,
    seed: int,
    start: str | Path | None = None,
    resume: bool = True,
    on_progress: Progress | None = None,
    measure: Measure | None = None,
) -> TrainedModel:
    """Train a model on blocks and leave it, with its history, in a folder.

    The seed decides initial values (by parameter name), data order and dropout; the encodings change neither
    of the first two. With a start, its weights are the initial values. A finished folder is loaded, an
    unfinished one resumed from its newest whole checkpoint, on a CPU to the same weights as without a break,
    and one where nothing was saved yet is begun anew. Ctrl-C finishes the step, saves a checkpoint and raises
    KeyboardInterrupt.

    Args:
        config: of the model; the longest offset of the blocks is recorded in the model's copy of it.
        blocks: the training blocks, as `bipe.data.pack` makes them.
        validation_blocks: blocks to validate on, None for no validation.
        settings: the optimisation.
        out_dir: the run's folder.
        seed: decides all that is random.
        start: folder of a model with this config, to go on from.
        resume: whether the folder may already hold this run.
        on_progress: gets each row of the history as it is written; None shows a line on a terminal.
        measure: what to measure at each validation beside the loss, for the history.

    Raises:
        ValueError: the folder holds another run or a foreign model, another process trains there, ids are
            outside the vocabulary, or the settings ask for what the model has not.
        RuntimeError: the loss, its gradient or the validation loss stopped being finite; the last good
            checkpoint is kept.
        KeyboardInterrupt: after Ctrl-C; the folder can be resumed.
    """
    check_sharding()
    run = Path(out_dir)
    start = None if start is None else Path(start)
    if start is not None:
        refuse_another_config(start, config)
    identity = identify(config, blocks, settings, seed, start)
    with in_turn():
        finished = is_there(run, identity, resume)
    if finished:
        if is_first():
            checkpoints.discard(run)  # of a run that was killed while it did so itself
        return load_run(run)
    with held(run):
        with in_turn():
            finished = claim(run, identity, resume)
        if finished:  # by another command, meanwhile
            return load_run(run)
        args = training_arguments(settings, run, seed, validates=validation_blocks is not None)
        order = run_order(blocks, settings, args)
        model = initial_model(config, blocks, order, start)
        if settings.attention is not None:
            model.set_attn_implementation(settings.attention)
        gradual = [] if settings.gradual_steps is None else [GradualRotation(model, settings.gradual_steps)]
        adapters = None if settings.lora is None else add_adapters(model, settings.lora, seed)
        if args.should_save:
            shutil.rmtree(checkpoints.staging_folder(run), ignore_errors=True)
            write_whole(run / ENVIRONMENT, json.dumps(describe_environment(), indent=1))

        interruption = Interruption()
        tokens_per_step = order.draws // settings.steps * len(blocks[0]["input_ids"])
        progress = nullcontext(on_progress) if on_progress else progress_line(settings.steps)
        with _algorithms_restored(), progress as on_row:
            history = HistoryRecorder(run, tokens_per_step, on_row, interruption.request)
            trainer = BlockTrainer(
                model,
                args,
                run=run,
                settings=settings,
                blocks=blocks,
                validation_blocks=validation_blocks,
                callbacks=[history, interruption, *gradual, *_tensorboard(settings, run)],
                measure=measure,
            )
            _run(trainer, interruption)
        if trainer.state.global_step == settings.steps:
            if adapters is not None:
                merge_adapters(adapters)
            _finish(trainer, model, identity, use_cache=config.use_cache)
        if interruption.requested:
            raise KeyboardInterrupt(f"Stopped at step {trainer.state.global_step}; {run} can be resumed.")
        return load_run(run)


def train_recipe(
    recipe: Recipe, out_dir: str | Path, *, resume: bool = True, on_progress: Progress | None = None
) -> TrainedModel:
    """Read what a recipe trains on, make tokenizer and blocks of it, and train its model.

    Beside what `train_model` leaves in the folder stand the tokenizer and `recipe.yaml`, the resolved recipe.

    Args:
        recipe: everything that decides the run.
        out_dir: the run's folder.
        resume: whether the folder may already hold this run.
        on_progress: gets each row of the history as it is written; None shows a line on a terminal.

    Raises:
        ValueError: a name in the recipe is unknown, the text cannot be used, the folder holds another run, or
            another process trains there.
        RuntimeError: the loss, its gradient or the validation loss stopped being finite; the last good
            checkpoint is kept.
        KeyboardInterrupt: after Ctrl-C; the folder can be resumed.
    """
    check_sharding()
    run = Path(out_dir)
    with in_turn():
        claim_recipe(run, recipe, resume)
    if is_finished(run):
        if recipe.start is not None:
            check_start(run, Path(recipe.start))
        return load_run(run)
    check_recipe(recipe)
    material = read_material(recipe.data, recipe.start)
    config = configure(recipe, material)
    length, vocabulary = recipe.data.block_length, config.vocab_size
    blocks, validation_blocks = (
        make(length, vocabulary) for make in (material.blocks, material.validation_blocks)
    )
    with held(run):
        with in_turn():
            claim_recipe(run, recipe, resume)  # another command may have been there meanwhile
        if is_first() and not is_finished(run):
            open_folder(run)
            write_whole(run / RECIPE, dump_recipe(recipe))
            material.tokenizer.save_pretrained(run)
        return train_model(
            config,
            blocks,
            validation_blocks,
            recipe.training,
            run,
            seed=recipe.seed,
            start=recipe.start,
            resume=resume,
            on_progress=on_progress,
        )


def load_run(run: Path) -> TrainedModel:
    """The model and the history of a finished run; of a sharded one, the model without its weights.

    Raises:
        ValueError: a file of the run is missing or damaged.
    """
    history = read_history(run)
    if not history:
        raise ValueError(f"{run / HISTORY} is missing or empty, though the run is finished. Train it anew.")
    if shards():  # a device may not hold the whole model, and a machine not one for each device
        with torch.device("meta"):
            model = BipeForCausalLM(without_auto_map(BipeConfig.from_pretrained(run)))
        return TrainedModel(model.eval(), history, run)
    return TrainedModel(cast(BipeForCausalLM, load_model(run)), history, run)


def _tensorboard(settings: TrainingSettings, run: Path) -> list[TrainerCallback]:
    if not settings.tensorboard:
        return []
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "tensorboard is not installed: pip install tensorboard, or set tensorboard to false."
        ) from None
    from transformers.integrations.integration_utils import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(str(run / "tensorboard")))]


def _run(trainer: BlockTrainer, interruption: Interruption) -> None:
    checkpoint = checkpoints.newest_whole(trainer.run)
    if trainer.args.should_save:
        keep_history_until(trainer.run, checkpoints.step_of(checkpoint) if checkpoint else 0)
    with interruption.on_ctrl_c():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


@contextmanager
def _algorithms_restored() -> Iterator[None]:
    """Let a deterministic run hold this process to deterministic algorithms no longer than it lasts."""
    enabled, cudnn = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.backends.cudnn.deterministic = cudnn


def _finish(trainer: BlockTrainer, model: BipeForCausalLM, identity: Identity, use_cache: bool) -> None:
    """Leave the weights, then the record that they are the finished ones, and only then no checkpoints."""
    # Trainer has switched the cache off in the config, and models loaded from the folder would inherit that.
    model.config.use_cache = use_cache
    weights = whole_weights(model)
    if trainer.args.should_save:
        model.save_pretrained(trainer.run, state_dict=weights)
        write_marker(trainer.run, identity, steps_done=trainer.settings.steps, finished=True)
        checkpoints.discard(trainer.run)
    trainer.accelerator.wait_for_everyone()
