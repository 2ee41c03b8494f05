"""transformers' Trainer on blocks of tokens, with the four things it lacks.

An order that depends on the seed alone, token-weighted validation, a stop at the first loss or gradient that
is not finite, and checkpoints that are either whole or not there.
"""

import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, default_data_collator
from transformers.trainer_callback import PrinterCallback

from bipe.models.modes import evaluating
from bipe.processes import gather, processes, share

from . import checkpoints
from .history import Measure
from .order import Blocks, SeededOrder, batches
from .recipe import TrainingSettings
from .sharding import shards, whole


class TrainingDiverged(RuntimeError):
    """The loss, its gradient or the validation loss stopped being finite."""


def training_arguments(
    settings: TrainingSettings, run: Path, seed: int, validates: bool
) -> TrainingArguments:
    """The settings in transformers' words; what they leave open is set for small models on a CPU."""
    fields: dict[str, Any] = TrainingArguments.__dataclass_fields__
    on_accelerator = torch.cuda.is_available()
    # transformers renamed the argument on the way to 5.23, which warns about the old name.
    old, new = "gradient_checkpointing", "activation_checkpointing"
    checkpointing: dict[str, Any] = {new if new in fields else old: settings.gradient_checkpointing}
    # Else every process would hold whole gradients from the first pass of a step to the last.
    accumulation = {"gradient_accumulation_kwargs": {"sync_each_batch": True}} if shards() else None
    arguments = TrainingArguments(
        output_dir=str(checkpoints.staging_folder(run)),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_betas[0],
        adam_beta2=settings.adam_betas[1],
        adam_epsilon=settings.adam_epsilon,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=settings.bf16,
        torch_compile=settings.compile,
        full_determinism=settings.deterministic,
        tf32=True if settings.tf32 and on_accelerator else None,
        use_cpu=not on_accelerator,
        seed=seed,
        data_seed=seed,
        logging_steps=settings.log_every or min(100, max(1, settings.steps // 100)),
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validates else "no",
        eval_steps=settings.evaluate_every or settings.steps,
        save_strategy="steps" if settings.checkpoint_every else "no",
        save_steps=settings.checkpoint_every or settings.steps,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=on_accelerator,
        dataloader_num_workers=settings.loader_workers,
        ddp_find_unused_parameters=False,
        accelerator_config=accumulation,
        **checkpointing,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # else a single process would split each batch over all of them (DataParallel)
    if arguments.device.type == "cpu":
        # Each of several processes has "cpu:0", onto which Trainer before 5.18 would load, and torch cannot.
        arguments.__dict__["_setup_devices"] = torch.device("cpu")
    return arguments


class BlockTrainer(Trainer):
    """Trains on packed blocks.

    Args:
        model: a causal language model.
        args: made by `training_arguments`.
        run: the run's folder.
        settings: what `args` was made from.
        blocks: the training blocks.
        validation_blocks: the validation blocks, None for no validation.
        callbacks: what to tell of the run's progress.
        measure: what to measure at each validation beside the loss.
    """

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The weights of linear layers and embeddings.

        What an encoding learns beside these, such as logarithms of slopes, is no less at zero.
        """
        # Both names of a tied weight: transformers lists the second one too.
        parameters = dict(model.named_parameters(remove_duplicate=False))
        names = super().get_decay_parameter_names(cast(Any, model))
        return [name for name in names if name.endswith("weight") and parameters[name].dim() > 1]

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        run: Path,
        settings: TrainingSettings,
        blocks: Blocks,
        validation_blocks: Blocks | None,
        callbacks: list[TrainerCallback],
        measure: Measure | None = None,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=cast(Any, blocks),
            eval_dataset=cast(Any, validation_blocks),
            data_collator=default_data_collator,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        self.run = run
        self.settings = settings
        self.measure = measure
        self._bad_step = torch.tensor(-1, device=args.device)

    def _get_train_sampler(self, train_dataset: Any = None) -> SeededOrder:
        return run_order(cast(Any, self.train_dataset), self.settings, self.args)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        return super().create_scheduler(self.settings.schedule_steps or num_training_steps, optimizer)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        # Nothing here reads the count, and making it walks all modules in every step.
        return 0

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._watch(loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._watch(whole(torch.as_tensor(norm, device=self.args.device)))
        return norm

    def _watch(self, value: Tensor) -> None:
        """Remember the first step with a value that is not finite; on a CPU stop before it is used.

        An accelerator would have to be waited for, so there the check comes before reports and before saving.
        """
        bad = ~torch.isfinite(value) & (self._bad_step < 0)
        self._bad_step = torch.where(bad, self.state.global_step + 1, self._bad_step)
        if value.device.type == "cpu":
            self._stop_if_diverged()

    def _stop_if_diverged(self) -> None:
        if (step := int(self._bad_step)) >= 0:
            raise self._diverged(f"the loss or its gradient is not finite at step {step}")

    def _diverged(self, what: str) -> TrainingDiverged:
        kept = checkpoints.newest_whole(self.run)
        return TrainingDiverged(
            f"Training diverged: {what}, learning rate {self._get_learning_rate():.3g}. Lower the learning "
            "rate or lengthen the warm-up; "
            + (f"the last good checkpoint is kept in {kept}." if kept else "no checkpoint was due before.")
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._stop_if_diverged()
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean loss over all target tokens of the validation blocks, its exponential, and the `measure`."""
        self._stop_if_diverged()
        blocks = self.eval_dataset if eval_dataset is None else eval_dataset
        model = cast(nn.Module, self.model)
        loss = validation_loss(model, cast(Any, blocks), self.settings.batch_size)
        if not math.isfinite(loss):
            raise self._diverged(f"the validation loss is not finite after step {self.state.global_step}")
        metrics = {"validation_loss": loss, "validation_perplexity": math.exp(min(loss, 700.0))}
        if self.measure is not None:
            metrics |= self.measure(cast(PreTrainedModel, model))
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._stop_if_diverged()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            assert self.args.output_dir is not None
            written = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            checkpoints.publish(written, self.run, self.state.global_step, self.settings.keep_checkpoints)
        self.accelerator.wait_for_everyone()


def run_order(blocks: Blocks, settings: TrainingSettings, args: TrainingArguments) -> SeededOrder:
    """The blocks of a whole run in their order."""
    draws = settings.steps * settings.batch_size * settings.gradient_accumulation * args.world_size
    return SeededOrder(len(blocks), draws, args.seed)


@torch.no_grad()
def validation_loss(model: nn.Module, blocks: Blocks, batch_size: int) -> float:
    """Mean cross-entropy in nats over the target tokens of all blocks, which the processes share.

    All processes make the same number of passes, since those of a sharded model wait for each other.

    Args:
        model: a causal language model that takes what the blocks hold.
        blocks: what to predict.
        batch_size: blocks in a forward pass.
    """
    starts = range(0, len(blocks), batch_size)
    mine = share(starts)
    idle = -(-len(starts) // processes()) - len(mine)
    with evaluating(model):
        found = [
            _summed_loss(model, blocks, range(start, min(start + batch_size, len(blocks))))
            for start in (*mine, *starts[:idle])
        ]
    sums = gather(found[: len(mine)])
    targets = sum(count for _, count in sums)
    if not targets:
        raise ValueError("The validation blocks hold no token to predict. Give more validation text.")
    return sum(loss for loss, _ in sums) / targets


def _summed_loss(model: nn.Module, blocks: Blocks, indices: range) -> tuple[float, int]:
    """The loss of some blocks' target tokens in sum, and how many these are."""
    device = next(model.parameters()).device
    (batch,) = batches(blocks, indices, len(indices))
    count = int((batch["labels"][:, 1:] != -100).sum())
    loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
    return float(loss) * count if count else 0.0, count
