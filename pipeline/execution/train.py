"""From a model and sets of examples to a trained model in its folder: workers, checkpoints, going on after a death."""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import ray.train
import ray.train.torch

from pipeline.config import JobConfig, Recipe, Training
from pipeline.errors import ConfigError, PipelineError, SnapshotConflict
from pipeline.execution.clusters.cluster import start_ray, stop_ray
from pipeline.execution.planning.model import ModelReference, local_folder, resolve_model
from pipeline.fingerprint import fingerprint
from pipeline.records import SourceFile
from pipeline.storage.filesystem import Store, open_source
from pipeline.storage.listing import list_source

RECORD = "training.json"
"""Beside the model: what it was made of, and how the loss went."""

COMMIT = "modules.json"
"""Written last: without it a folder is no model."""

PIECE_BYTES = 16 * 2**20

FAILURES = 3
"""Times that the workers start again from the last checkpoint within one command."""

SPEED_ONLY = {"uri", "sets", "mini_batch_rows", "workers", "checkpoint_steps", "compare"}
"""Keys that do not decide what the trained model is; the sets count by their content."""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """A training, pinned: the same plan gives the same model, but for rounding."""

    base: ModelReference
    base_name: str
    files: Sequence[Sequence[SourceFile]]
    """Of each set."""
    training: Training
    fingerprint: str

    @property
    def checkpoints(self) -> str:
        """Where checkpoints lie while the training runs: not in the model's folder, which every node fetches."""
        return f"{self.training.uri.rstrip('/')}-checkpoints"


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What stands in the folder."""

    uri: str
    is_new: bool
    """False = this very training was done before."""
    record: dict[str, Any]
    """The content of `training.json`."""
    seconds: float


def plan_training(config: JobConfig) -> TrainingPlan:
    """Pin the base model and the files of the sets.

    Raises:
        ConfigError: the config has no section `training`, or a model that cannot be trained.
        SourceError: a set cannot be listed.
        EncoderError: there is no such model.
    """
    if config.training is None:
        raise ConfigError("the config has no section training; it needs at least training.uri and training.sets")
    base = resolve_model(config.recipe)
    if base.kind == "hashing":
        raise ConfigError(f"recipe.model is {base.address}, which has no weights to train")
    files = [list_source(examples.uri, "parquet") for examples in config.training.sets]
    facts: dict[str, Any] = {
        "base": base.identity,
        "sets": [
            {"kind": examples.kind, "weight": examples.weight, "files": [[file.uri, file.version] for file in listed]}
            for examples, listed in zip(config.training.sets, files, strict=True)
        ],
        "training": config.training.model_dump(mode="json", exclude=SPEED_ONLY),
    }
    store = Store(config.training.uri)
    # a worker of Ray Train (2.60) starts in a folder of its own, from which a relative path leads elsewhere
    training = config.training.model_copy(update={"uri": store.root if store.is_local else store.uri})
    return TrainingPlan(base, config.recipe.model, files, training, fingerprint(facts))


def train_model(config: JobConfig) -> TrainingResult:
    """Train the model of the recipe, and put the result into `training.uri`.

    After a crash the same command goes on at the last checkpoint.

    Raises:
        SnapshotConflict: another model stands there.
        PipelineError: no Ray, or the workers died too often.
    """
    started = time.perf_counter()
    plan = plan_training(config)
    store = Store(plan.training.uri)
    if (record := _published(store, plan)) is not None:
        return TrainingResult(store.uri, False, record, time.perf_counter() - started)
    store.check_writable()
    start_ray(config.runtime)
    try:
        _run_workers(config, plan)
    finally:
        stop_ray()
    record = _published(store, plan)
    if record is None:
        raise PipelineError(f"the workers ended without a model in {store.uri}; run the same command again")
    checkpoints = Store(plan.checkpoints)
    for key in checkpoints.files(plan.fingerprint):
        checkpoints.delete(key)
    checkpoints.remove_empty_folders("")
    store.remove_empty_folders("_meta")  # of the look whether it can be written to
    return TrainingResult(store.uri, True, record, time.perf_counter() - started)


def _published(store: Store, plan: TrainingPlan) -> dict[str, Any] | None:
    """Return the record of this training, if its model stands there whole.

    Raises:
        SnapshotConflict: another model does.
    """
    content = store.read(RECORD)
    record: dict[str, Any] = json.loads(content) if content else {}
    is_whole = store.stat(COMMIT) is not None
    if record.get("fingerprint", plan.fingerprint) != plan.fingerprint or (is_whole and not record):
        raise SnapshotConflict(
            f"{store.uri} holds another model, which is never overwritten; choose another training.uri, or remove it"
        )
    return record if is_whole else None


def _run_workers(config: JobConfig, plan: TrainingPlan) -> None:
    checkpoints = Store(plan.checkpoints)
    if checkpoints.is_local:
        Path(checkpoints.root).mkdir(parents=True, exist_ok=True)
    workers, gpus = plan.training.workers, ray.cluster_resources().get("GPU", 0)
    if 0 < gpus < workers:
        raise ConfigError(f"training.workers is {workers}, and the cluster has {gpus:g} GPUs, one for each worker")
    has_gpus = gpus > 0
    cores = min(node["Resources"]["CPU"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
    threads = max(1, int(cores) // plan.training.workers)
    trainer = ray.train.torch.TorchTrainer(
        _work,
        train_loop_config={"plan": plan, "recipe": config.recipe, "threads": threads},
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.training.workers,
            use_gpu=has_gpus,
            resources_per_worker={"CPU": 0.5} | ({"GPU": 1} if has_gpus else {}),
        ),
        run_config=ray.train.RunConfig(
            name=plan.fingerprint,
            storage_path=checkpoints.root,
            storage_filesystem=_arrow_filesystem(checkpoints),
            failure_config=ray.train.FailureConfig(max_failures=FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise PipelineError(f"the training has failed: {' '.join(str(error).split())[-2000:]}") from error


def _arrow_filesystem(store: Store) -> pyarrow.fs.FileSystem:
    """Return the filesystem of a store for Ray, which streams: pieces must have the size that S3 wants of them."""
    filesystem = store.filesystem
    if not store.is_local:
        filesystem = type(filesystem)(**filesystem.storage_options | {"default_block_size": PIECE_BYTES})
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem))


def _work(loop_config: dict[str, Any]) -> None:
    """Run on every worker: read the sets, train, and on the first one publish."""
    from pipeline.encoder.loading import load_model
    from pipeline.training import loop

    plan: TrainingPlan = loop_config["plan"]
    recipe: Recipe = loop_config["recipe"]
    chosen = _hyperparameters(plan.training)
    loop.prepare(chosen.seed, loop_config["threads"])
    rights = (recipe.trust_remote_code, recipe.allow_pickled_weights)
    base = load_model(str(local_folder(plan.base)), "float32", *rights, str(ray.train.torch.get_device()))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = _last_checkpoint(Path(folder))
        trained = loop.train(base.train(), _examples(plan), chosen, Path(folder), [_checkpoint_reporter()], checkpoint)
        if ray.train.get_context().get_world_rank() == 0:
            trained.model.save_pretrained(f"{folder}/model", create_model_card=False)
            _publish(Path(folder, "model"), plan, trained.losses)


def _hyperparameters(training: Training) -> Any:
    from pipeline.training.loop import Hyperparameters

    return Hyperparameters(**training.model_dump(include=set(Hyperparameters.__dataclass_fields__)))


def _examples(plan: TrainingPlan) -> list[Any]:
    from pipeline.training.sets import COLUMNS, distinct_examples

    return [
        distinct_examples(f"{number}-{wanted.kind}", wanted.kind, wanted.weight, _table(listed, COLUMNS[wanted.kind]))
        for number, (wanted, listed) in enumerate(zip(plan.training.sets, plan.files, strict=True))
    ]


def _table(files: Sequence[SourceFile], columns: Sequence[str]) -> pa.Table:
    """Return the columns of a set that its files have, their rows one file after the other."""
    tables = []
    for file in files:
        with open_source(file) as stream:
            opened = pq.ParquetFile(stream)
            tables.append(opened.read([name for name in columns if name in opened.schema_arrow.names]))
    return pa.concat_tables(tables, promote_options="permissive")


def _last_checkpoint(folder: Path) -> Path | None:
    checkpoint = ray.train.get_checkpoint()
    return Path(checkpoint.to_directory(folder / "last")) if checkpoint else None


def _checkpoint_reporter() -> Any:
    """Return what brings every checkpoint of the trainer to the storage of the run.

    The first worker has the weights and the optimizer in it, each other one the state of its own random numbers; Ray
    puts the files of all into one folder.
    """
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    class CheckpointReporter(TrainerCallback):  # type: ignore[misc]
        def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"step": state.global_step}, checkpoint=checkpoint)

    return CheckpointReporter()


def _publish(folder: Path, plan: TrainingPlan, losses: Sequence[Any]) -> None:
    """Put a model's files into its folder, the one that makes it a model last."""
    store = Store(plan.training.uri)
    record = {
        "fingerprint": plan.fingerprint,
        "base": {"model": plan.base_name, "identity": plan.base.identity},
        "sets": [
            {"kind": wanted.kind, "weight": wanted.weight, "files": [asdict(file) for file in listed]}
            for wanted, listed in zip(plan.training.sets, plan.files, strict=True)
        ],
        "training": plan.training.model_dump(mode="json", exclude={"sets"}),
        "losses": list(losses),
        "versions": {name: version(name) for name in ("torch", "sentence-transformers", "transformers")},
    }
    claimed = store.put_new(RECORD, json.dumps(record, indent=2, ensure_ascii=False).encode())
    if claimed is not None and json.loads(claimed)["fingerprint"] != plan.fingerprint:
        raise SnapshotConflict(f"{store.uri} was given another model while this one was trained; nothing was replaced")
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / COMMIT:
            store.put(path.relative_to(folder).as_posix(), path.read_bytes())
    store.put_new(COMMIT, (folder / COMMIT).read_bytes())
