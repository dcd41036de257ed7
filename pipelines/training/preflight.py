"""Checks of a run before any rank starts, and the plan and the number of steps they need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bytelm.modalities import framing
from bytelm.pipelines.checkpoints import run_folder
from bytelm.pipelines.checkpoints.run_lock import LOCK_FILE
from bytelm.pipelines.checkpoints.train_state import TrainState
from bytelm.pipelines.config import RunConfig
from bytelm.pipelines.data.packing import PlanConfig
from bytelm.pipelines.data.plan import Plan, Source, open_plan
from bytelm.pipelines.storage.cache import cache_limit
from bytelm.pipelines.training.config_changes import check_same_model
from bytelm.pipelines.training.deepspeed_config import deepspeed_config
from bytelm.pipelines.training.initial_weights import load_initial_model
from bytelm.pipelines.training.trackers import check_trackers

TRAINING_SPLITS = ("train", "val")
"""Splits whose rows a training reads."""
CHECKED_SHARDS = 4096
"""Shards of each split whose sizes are checked before a run; those of a larger set are too many to
ask for, and are checked when they are read."""


@dataclass(frozen=True)
class ResumeOptions:
    """How a run begins."""

    resume: bool = False
    """Continue from the newest checkpoint; otherwise the run's folder has to be new."""
    allow_fresh_start: bool = False
    """With `resume`: begin at step 0 if the run has no checkpoint yet."""
    new_plan: bool = False
    """With `resume`: on changed data, begin a new plan at its first row."""

    def resumes(self, run: Path) -> bool:
        """Return whether a checkpoint has to be loaded."""
        may_start = self.allow_fresh_start and not run_folder.has_checkpoint(run)
        return self.resume and not may_start


def check(config: RunConfig, run: Path, ranks: int, options: ResumeOptions) -> None:
    """Check everything that would stop a run before its first step.

    Raises:
        ValueError: for a user's mistake.
        DamageError: if shards or every checkpoint are damaged.
    """
    deepspeed_config(config.train.deepspeed)
    config.accumulation(ranks)
    check_trackers(config.trackers)
    if any("\udc80" <= character <= "\udcff" for character in str(run)):  # bytes that are none
        raise ValueError(f"{run} is no UTF-8, which TensorBoard needs: choose another --out")
    if config.model.vocab_size != framing.VOCAB_SIZE or config.model.pad_id != framing.PAD:
        raise ValueError(
            f"the stream has {framing.VOCAB_SIZE} ids and pads with {framing.PAD}: leave "
            "vocab_size and pad_id of the model as they are"
        )
    if options.allow_fresh_start and not options.resume:
        raise ValueError(
            "--allow-fresh-start says what --resume does without a checkpoint: add --resume"
        )
    check_new(run, options)
    state = None
    if options.resumes(run):
        check_same_model(run, config)
        state = run_folder.newest_usable(run, run_folder.damage_outside_tensors).state
    else:
        load_initial_model(config)
    plan = training_plan(config)
    for source in validation_sources(config):
        open_plan([source], plan_config(config), config.data.cache_folder)
    total_steps(config, plan)
    check_cache(config, plan, ranks)
    if state:
        check_same_data(state, plan, options.new_plan)
    if config.data.damage == "raise":
        for source in plan.sources:
            source.set.check_sizes(source.set.split("train")[:CHECKED_SHARDS])


def check_new(run: Path, options: ResumeOptions) -> None:
    """Raise ValueError if the folder of a run that is not resumed holds anything."""
    if not options.resume and not _is_new(run):
        raise ValueError(f"{run} is not empty: continue with --resume, or choose another --out")


def check_cache(config: RunConfig, plan: Plan, ranks: int) -> None:
    """Check that the cache can keep all remote shards that may be in use at once.

    These are the shards of one window of each set, of two windows if one of several readers may be
    ahead of the others, and one shard of `val`. The largest ones are taken, of the first
    CHECKED_SHARDS of a split.

    Raises:
        ValueError: if `data.cache_gb` is too small.
    """
    windows = 2 if config.data.workers * ranks > 1 else 1
    needed = 0
    for source in plan.sources:
        for split, count in (("train", windows), ("val", 1)):
            shards = source.set.split(split)[:CHECKED_SHARDS] if source.set.is_remote else []
            sizes = sorted(shard.size + shard.index_size for shard in shards)
            needed += sum(sizes[-count * config.data.shuffle_window :])
    limit = cache_limit(config.data.cache_gb)
    if needed > limit:
        raise ValueError(
            f"data.cache_gb {config.data.cache_gb} is a limit of {limit:,} bytes, and the remote "
            f"shards in use together may have {needed:,}: raise it, or lower data.shuffle_window "
            f"{config.data.shuffle_window}"
        )


def check_same_data(state: TrainState, plan: Plan, new_plan: bool) -> None:
    """Check that a checkpoint's position belongs to this plan, unless a new plan is wanted.

    Raises:
        ValueError: if sets, views or other options that decide the rows have changed.
    """
    if new_plan:
        return
    for name, value in plan.identity.items():
        if state.plan.get(name) != value:
            raise ValueError(
                f"the data changed since the checkpoint: {name} was {state.plan.get(name)} and is "
                f"{value}; resume with what it was, or begin a new plan of the data at its first "
                "row with --new-plan"
            )


def total_steps(config: RunConfig, plan: Plan) -> int:
    """Return the steps of a run: those of its config, or fewer if an exhausted set stops it.

    Raises:
        ValueError: if a set would be exhausted and `data.on_exhausted` makes that an error.
    """
    if config.data.on_exhausted == "repeat":
        return config.train.steps
    rows = plan.rows_until([chosen.max_repeats for chosen in config.data.sets])
    steps = rows // config.train.global_batch
    if steps >= config.train.steps:
        return config.train.steps
    if config.data.on_exhausted == "error" or not steps:
        raise ValueError(
            f"a set is exhausted after {steps} of {config.train.steps} steps: allow more "
            "max_repeats, take fewer steps, or set data.on_exhausted to repeat or stop"
        )
    return steps


def training_plan(config: RunConfig) -> Plan:
    """Return the plan of the `train` splits, by the counts that are kept with the sets."""
    return open_plan(training_sources(config), plan_config(config), config.data.cache_folder)


def training_sources(config: RunConfig) -> list[Source]:
    """Return the `train` split of each set."""
    return [
        Source(config.open_set(i), "train", chosen.weight)
        for i, chosen in enumerate(config.data.sets)
    ]


def validation_sources(config: RunConfig) -> list[Source]:
    """Return the `val` split of each set that has documents there."""
    sets = [config.open_set(i) for i in range(len(config.data.sets))]
    return [Source(one, "val") for one in sets if one.counts("val").documents]


def plan_config(config: RunConfig) -> PlanConfig:
    """Return the part of a run's config that decides the rows."""
    return PlanConfig(
        row_length=config.model.context,
        patch=config.model.patch,
        views=vars(config.data.views),
        seed=config.train.seed,
        packing=config.data.packing,
        pair_order=config.data.pair_order,
        shuffle_window=config.data.shuffle_window,
    )


def _is_new(run: Path) -> bool:
    """Whether a run's folder is empty but for its lock."""
    return all(path.name == LOCK_FILE for path in run.iterdir())
