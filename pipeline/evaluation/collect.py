"""The texts of the chosen tasks, each once, as the source of an ordinary embedding run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import mteb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Evaluation, JobConfig, Output, Source
from pipeline.errors import ConfigError, SourceError
from pipeline.evaluation.card_tasks import CardTask
from pipeline.evaluation.mirror import Files, load_from_mirror, mirrored_files
from pipeline.evaluation.rehearsal import Rehearsal, text_table
from pipeline.evaluation.tasks import mteb_task
from pipeline.fingerprint import fingerprint
from pipeline.storage.filesystem import Store


@dataclass(frozen=True)
class Collected:
    """The texts of an evaluation, and where the data of its tasks comes from."""

    key: str
    """Names tasks, data and mteb; scores of two evaluations compare if it is the same."""
    texts: int
    is_new: bool
    tasks: tuple[CardTask, ...]
    mirror: Store | None
    files: dict[CardTask, Files]
    """Of the mirror; none from the hub."""

    @property
    def source_key(self) -> str:
        return f"texts/{self.key}.parquet"

    @property
    def vectors_key(self) -> str:
        """Of an output for these tasks alone: the newest Snapshot of a common one would be of the last tasks."""
        return f"vectors/{self.key[:12]}"

    def loaded(self, task: CardTask) -> Any:
        """Return a new mteb task with its data."""
        made = mteb_task(task)
        if self.mirror is None:
            _load_from_hub(made, task)
        else:
            load_from_mirror(made, task, self.mirror, self.files[task])
        return made

    def revision(self, task: CardTask) -> str:
        """Return which data a task was scored on: a commit of the hub, or what names the files of the mirror."""
        return f"mirror-{fingerprint(self.files[task])[:12]}" if self.mirror else mteb_task(task).metadata.revision


def collect(store: Store, tasks: Sequence[CardTask], mirror_uri: str | None) -> Collected:
    """Write the texts of these tasks, unless they are there: each once, with its hash as id.

    Args:
        store: the folder of the evaluation.
        mirror_uri: where the data lies; None = on the hub.

    Raises:
        SourceError: the mirror lacks a task.
    """
    mirror = Store(mirror_uri) if mirror_uri else None
    files = {task: mirrored_files(mirror, task, mteb_task(task).metadata.dataset["path"]) for task in tasks if mirror}
    names = [[task.mteb_name, task.split, task.subset, *([task.kind] if task.is_own else [])] for task in tasks]
    versions = [sorted(files[task].items()) if mirror else mteb_task(task).metadata.revision for task in tasks]
    key = fingerprint({"tasks": names, "data": versions, "mteb": version("mteb")})
    collected = Collected(key, 0, False, tuple(tasks), mirror, files)
    content = store.read(collected.source_key)
    if is_new := content is None:
        sink = pa.BufferOutputStream()
        pq.write_table(text_table(_texts(collected)), sink, compression="zstd")
        content = sink.getvalue().to_pybytes()
        store.put_new(collected.source_key, content)
    rows = pq.read_metadata(pa.BufferReader(content)).num_rows
    return Collected(key, rows, is_new, tuple(tasks), mirror, files)


def embedding_config(config: JobConfig, evaluation: Evaluation, collected: Collected) -> JobConfig:
    """Return the ordinary job that embeds the texts: the recipe and the runtime are those of the config.

    Raises:
        ConfigError: the recipe gives a text several vectors.
    """
    if config.recipe.long_text == "chunk":
        raise ConfigError("evaluate needs one vector per text: recipe.long_text=truncate")
    store = Store(evaluation.uri)
    source = Source(uri=(store.uri_of(collected.source_key),), empty_text="embed")
    runtime = config.runtime.model_copy(update={"max_quarantined_fraction": 0.0, "look_for_repeats": False})
    output = Output(uri=store.uri_of(collected.vectors_key))
    return JobConfig(source=source, recipe=config.recipe, output=output, runtime=runtime, gate=config.gate)


def _load_from_hub(made: Any, task: CardTask) -> None:
    try:
        made.load_data()
    except (OSError, ValueError) as error:
        where = f"{made.metadata.dataset['path']} at revision {made.metadata.revision}"
        raise SourceError(
            f"the data of {task.name} could not be had from the hub ({where}): {type(error).__name__}. Without the hub "
            "let evaluation.mirror name a folder with it."
        ) from error


def _texts(collected: Collected) -> Iterable[str]:
    rehearsal = Rehearsal()
    for task in collected.tasks:
        mteb.evaluate(rehearsal, collected.loaded(task), cache=None, co2_tracker=False, show_progress_bar=False)
    return rehearsal.texts
