"""JobConfig: what a run reads, what a vector is, where the result goes, and how fast it may be."""

import difflib
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline.schemas import RESERVED_COLUMNS


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _without_credentials(value: str) -> str:
    authority = value.split("://", 1)[-1].split("/", 1)[0]
    if "://" in value and ("@" in authority or ("?" in value and "=" in value.split("?", 1)[1])):
        raise ValueError(
            "holds what looks like a credential; credentials come from the environment (AWS_ACCESS_KEY_ID, …)"
        )
    return value


Uri = Annotated[str, Field(min_length=1), AfterValidator(_without_credentials)]


class Section(BaseModel):
    """A part of the config; unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class Source(Section):
    """Where the text lies and which columns are read."""

    uri: Annotated[tuple[Uri, ...], Field(min_length=1), BeforeValidator(_as_tuple)]
    """File, folder, glob, or a list of them; `s3://`, `gs://`, `file://` or a plain path, through fsspec."""
    format: Literal["auto", "parquet", "jsonl", "csv", "text"] = "auto"
    """`auto` goes by the suffix of each file; `.gz`, `.zst` and `.bz2` are unpacked in every line format."""
    id_column: str = "id"
    """Column that names a row, string or integer; a text file offers `id` = `<file name>#<line>`."""
    text_column: str = "text"
    """Column that is embedded; a text file offers `text` = the line."""
    keep_columns: tuple[str, ...] = ()
    """Columns carried into the output unchanged, of any type."""
    empty_text: Literal["quarantine", "zero", "embed"] = "quarantine"
    """What becomes of empty and whitespace-only texts: quarantine, a zero vector (with `tokens` 0), or the vector
    that the model gives them."""
    duplicate_ids: Literal["error", "keep_first", "allow"] = "error"
    """What becomes of rows with one id: the run fails before it publishes and keeps what it has encoded; the first by
    file and row is embedded, which costs one more read of the source before each run; or all are published."""

    @model_validator(mode="after")
    def _columns_do_not_collide(self) -> Self:
        taken = sorted({c for c in self.keep_columns if c.casefold() in RESERVED_COLUMNS or c[:1] == "_"})
        if taken:
            raise ValueError(
                f"keep_columns names {', '.join(taken)}, which the output uses itself (as it does all names that "
                "begin with _); rename the column in the source or leave it out"
            )
        if len({column.casefold() for column in self.keep_columns}) < len(self.keep_columns):
            raise ValueError("keep_columns names a column twice (many tools do not tell A from a)")
        return self


class Recipe(Section):
    """All that decides what a vector is; its fingerprint names the work, and changing it embeds anew."""

    model: Uri
    """Hub id, local folder, folder on object storage, or `hashing://<dimension>` (vectors without a model)."""
    revision: str | None = None
    """Commit of a hub id; null takes the newest and writes down which it was."""
    prompt: str | None = None
    """Put before every text; null takes the model's own default prompt, if it has one."""
    max_tokens: Annotated[int, Field(ge=3)] = 512
    """Tokens per text that reach the model, special tokens included; never more than the model allows."""
    long_text: Literal["truncate", "chunk"] = "truncate"
    """A text beyond max_tokens is cut off, or becomes several rows with their character ranges."""
    chunk_overlap_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens that a chunk repeats of the one before; only for `long_text: chunk`."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Matryoshka truncation to the first numbers of a vector, normalised again; null keeps all."""
    normalize: bool = True
    """Scale every vector to length 1."""
    compute: Literal["float32", "bfloat16", "float16", "int8"] = "bfloat16"
    """Number type of the model's matrix products, and on a GPU of all of its body; pooling and what follows is always
    float32. int8 is for CPUs (OpenVINO; the extra `[int8]`): the model is quantised once, on texts of the source."""
    calibration: Uri | None = None
    """Only for `compute: int8`: the calibration of another output, `<output.uri>/_meta/calibrations/<its name>`; null =
    this output's own, made by its first run and used by all that follow."""
    stored: Literal["float32", "float16", "int8", "binary"] = "float32"
    """Number type of the vector column; int8 comes with a scale per row, binary keeps the signs only."""
    trust_remote_code: bool = False
    """Allow the model folder to bring its own Python code; only with a model you have read."""
    allow_pickled_weights: bool = False
    """Allow weights that are not safetensors; they are loaded with `weights_only`, no code in them runs."""

    @model_validator(mode="after")
    def _numbers_fit(self) -> Self:
        if self.chunk_overlap_tokens and self.long_text == "truncate":
            raise ValueError("chunk_overlap_tokens needs long_text: chunk")
        if self.chunk_overlap_tokens >= self.max_tokens // 2:
            raise ValueError(
                f"chunk_overlap_tokens is {self.chunk_overlap_tokens}; it must stay below half of max_tokens "
                f"({self.max_tokens})"
            )
        if self.long_text == "chunk" and self.model.startswith("hashing://"):
            raise ValueError("long_text: chunk needs a model with a tokenizer, which hashing:// is not")
        if self.compute == "int8" and self.model.startswith("hashing://"):
            raise ValueError("compute: int8 needs a model that can be quantised, which hashing:// is not")
        if self.calibration and self.compute != "int8":
            raise ValueError("calibration needs compute: int8")
        return self


class Output(Section):
    """Where the result goes and how it is laid out."""

    uri: Uri
    """Folder of the output, on any store fsspec knows."""
    partition_by: tuple[str, ...] = ()
    """Hive-style folders, outermost first; columns of source.keep_columns of type string, integer, bool or date."""
    rows_per_part: Annotated[int, Field(ge=1, le=1_000_000)] = 16384
    """Rows per file and per Block. A matter of layout: changing it embeds anew."""
    carry: Literal["copy", "reference"] = "copy"
    """Unchanged Parts of the snapshot before are copied into the new folder, or only named by it."""
    keep_snapshots: Annotated[int, Field(ge=1)] = 7
    """How many of the newest snapshots `expire` and `nightly` leave; `embed` removes nothing."""
    max_deleted_fraction: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of the ids of the snapshot before that a `nightly` may lose; above it nothing is published."""
    changes: bool = False
    """Write beside each snapshot what it has inserted, updated and deleted, for stores that are kept in step."""


class Runtime(Section):
    """How fast and at what cost; changing it never changes a vector beyond the rounding of its precision."""

    encoders: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Encoder actors; auto = one per GPU, else one per node."""
    gpus_per_encoder: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs an encoder holds, fractions allowed; auto = 1 where the cluster has GPUs, else 0."""
    encoder_resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Custom Ray resources that an encoder holds, such as `{accelerator: 1}`: encoders run only on nodes that offer
    them, as many as there is room for with auto; the other stages run anywhere."""
    engine: Literal["auto", "torch", "torch-compile", "openvino", "onnx"] = "auto"
    """What computes the forward pass: torch, its compiler for the layers of the model, OpenVINO (CPU, float32,
    bfloat16 and int8; the extra `[openvino]`) or ONNX Runtime (CPU, float32; the extra `[onnx]`). auto = torch, for
    int8 OpenVINO; an encoder that has encoded for a minute and has four more before it tries others, on a GPU
    torch-compile, on a CPU OpenVINO and in float32 ONNX Runtime, and goes on with the fastest."""
    look_for_repeats: bool | Literal["auto"] = "auto"
    """Read the source once before encoding, so that a text that stands in several Blocks is encoded once; auto = for
    every model but hashing://, whose vectors cost less than the look."""
    batch_tokens: Annotated[int, Field(ge=1)] = 16384
    """Tokens per forward pass at most: the sum of its rows, or rows times the longest where rows are padded. A pass on
    a CPU has no more than 1,024 for each of its threads (2,048 in bfloat16) and than 4,096. Lower it when a device runs
    out of memory."""
    ray_address: str | None = None
    """Address of a cluster; null = that of $RAY_ADDRESS (set inside a submitted job), else this machine alone."""
    without_ray_bytes: Annotated[int, Field(ge=0)] = 32 * 2**20
    """A run on this machine alone that has fewer bytes of source to read than this starts no Ray: a process beside the
    driver does the work, which saves some seconds of start and computes the same. Only for one encoder without a GPU;
    0 = always Ray."""
    stall_minutes: Annotated[float, Field(gt=0)] = 30.0
    """A run in which no Block is finished for so long ends with an error that names what it waits for."""
    max_quarantined_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of the rows read that may go to quarantine, and of the source's bytes that may be unreadable; above it the
    run fails and publishes nothing."""


class Features(Section):
    """What the command `features` makes of a published snapshot: a table of vectors per entity and time."""

    uri: Uri
    """Folder of the feature table, outside `output.uri`."""
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] = "embeddings"
    """Of the Feast view."""
    entity: Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_as_tuple)] = ("id",)
    """Columns that name whom a feature belongs to: `id`, or columns of source.keep_columns, string or integer."""
    event_time: str = "event_timestamp"
    """Since when a feature is known: a column of source.keep_columns (time, date, or text in ISO 8601; UTC where it
    names no zone; of a date, the end of its day), or `event_timestamp` of the snapshot."""
    pool: Literal["mean", "max", "first", "by_tokens"] = "mean"
    """How the chunks of a text become one vector; `by_tokens` is the mean weighted by their tokens."""
    aggregate: Literal["none", "mean"] = "none"
    """`none`: the vector of the entity's newest text; `mean`: of its texts of the last `window_days`. Both as of each
    row's own event time."""
    window_days: Annotated[float, Field(gt=0, le=36_500)] = 90.0
    """Length of the window of `aggregate: mean`; it ends with the row's event time, which belongs to it."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Keep the first numbers of every vector; null keeps all."""
    normalize: bool = True
    """Scale the vector of each text, after pooling and truncation, and that of each row to length 1."""
    stored: Literal["float32", "float16", "int8", "binary"] = "float32"
    """Number type of the column `embedding`, as in `recipe.stored`."""
    int8_scale: Literal["row", "corpus"] = "row"
    """int8 with a scale per row, or with one for all that is fitted, so that codes of two rows can be compared."""
    projection: Literal["none", "pca", "whiten"] = "none"
    """Fitted rotation of the vectors onto their main directions, for `whiten` with equal variance along each."""
    components: Annotated[int, Field(ge=1)] | None = None
    """Numbers per vector after the projection, the main directions first; null = as many as before."""
    clusters: Annotated[int, Field(ge=2)] | None = None
    """Add the column `cluster`: the number of the nearest of so many centres, fitted by k-means."""
    centroids: Uri | None = None
    """Parquet file with `name` and `embedding`: a column `cosine_<name>` for each, of the vector before projection."""
    fit_rows: Annotated[int, Field(ge=1)] = 50_000
    """Rows on which projection, clusters and scale are fitted; once, then every later table uses the same fit."""
    seed: int = 0
    """Of the drawing of these rows and of k-means; another one fits anew."""
    ttl_days: Annotated[float, Field(gt=0, le=36_500)] | None = None
    """Age up to which a join takes a feature; null = any. Written into the Feast view; changes no row."""
    binary_threshold: Literal["zero", "median"] = "zero"
    """binary codes by the sign of each number, or by whether it is above the median of its dimension among all that is
    fitted, so that every bit says as much as it can."""
    centroid_measures: Annotated[tuple[Literal["cosine", "distance"], ...], BeforeValidator(_as_tuple)] = ("cosine",)
    """What is told of each centroid: columns `cosine_<name>`, `distance_<name>` (Euclidean), or both."""
    partition_by: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    """Hive-style folders of the table, outermost first: columns of features.entity, or `event_date`, the day of the
    event time in UTC. They are folder names then, and no columns of the files."""
    keep_tables: Annotated[int, Field(ge=1)] = 7
    """How many of the newest tables `expire` leaves."""

    @model_validator(mode="after")
    def _windows_are_asked_for(self) -> Self:
        if "window_days" in self.model_fields_set and self.aggregate == "none":
            raise ValueError("window_days needs aggregate: mean")
        if self.components is not None and self.projection == "none":
            raise ValueError("components needs projection: pca or whiten")
        if self.int8_scale == "corpus" and self.stored != "int8":
            raise ValueError("int8_scale needs stored: int8")
        if self.binary_threshold == "median" and self.stored != "binary":
            raise ValueError("binary_threshold needs stored: binary")
        if "centroid_measures" in self.model_fields_set and self.centroids is None:
            raise ValueError("centroid_measures needs centroids")
        stray = [name for name in self.partition_by if name not in ("event_date", *self.entity)]
        if stray or len(set(self.partition_by)) < len(self.partition_by):
            raise ValueError("partition_by takes event_date and columns of features.entity, each once")
        if len({name.casefold() for name in self.entity}) < len(self.entity):
            raise ValueError("entity names a column twice")
        return self


class TrainingSet(Section):
    """Examples of one kind, as Parquet."""

    uri: Annotated[tuple[Uri, ...], Field(min_length=1), BeforeValidator(_as_tuple)]
    """File, folder, glob, or a list of them."""
    kind: Literal["class", "pair", "retrieval", "rerank"]
    """`class`: text, label · `pair`: text_a, text_b, score · `retrieval`: query, positives, negatives (lists) ·
    `rerank`: query, candidates, relevance (lists)."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """How often a batch is of this set, compared with the others; null = its number of examples."""


class Training(Section):
    """What the command `train` makes of the model of the recipe: another one, trained on sets of examples."""

    uri: Uri
    """Folder of the trained model, empty or absent; `recipe.model` of the jobs that embed with it."""
    sets: Annotated[tuple[TrainingSet, ...], Field(min_length=1)]
    """A list of `uri` (Parquet), `kind` and `weight`. Columns by kind: `class`: text, label; `pair`: text_a, text_b,
    score; `retrieval`: query, positives, negatives (lists); `rerank`: query, candidates, relevance (lists). `weight`
    says how often a batch is of this set (default: its number of examples)."""
    loss: Literal["circle", "weighted"] = "circle"
    """One circle loss for all kinds, or InfoNCE and CoSENT with the weights of piccolo-embedding, to compare with."""
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Of the circle loss: positives are to reach a cosine of 1 - margin, negatives margin."""
    scale: Annotated[float, Field(gt=0)] = 32.0
    """Of the circle loss: how much the hardest examples outweigh the others."""
    steps: Annotated[int, Field(ge=1)] = 150
    """Batches that the model is trained on."""
    batch_rows: Annotated[int, Field(ge=2)] = 32
    """Examples a batch, all of one set, over all workers; each is compared with all others."""
    mini_batch_rows: Annotated[int, Field(ge=1)] = 32
    """Texts that are computed at once; lower it when a device runs out of memory. Changes no gradient."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    """The highest; it rises for `warmup_fraction` of the steps, then falls to zero."""
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the steps in which the learning rate rises."""
    base_weight: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the base model in the weights that are published: base_weight · base + (1 - base_weight) · trained
    (WiSE-FT, arXiv 2109.01903). Raise it when a kind of problem that is not trained on loses too much. A head of
    `head_dimensions` has no base and is published as it was trained."""
    max_tokens: Annotated[int, Field(ge=3)] = 128
    """Tokens per text while training; longer texts are cut."""
    head_dimensions: Annotated[int, Field(ge=1)] | None = None
    """Put a linear layer of this width behind the model, if its vectors have another; null adds none."""
    matryoshka: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Widths at which the first numbers of a vector are trained to be a good vector too; with the full width."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Processes that share each batch; with GPUs one each."""
    checkpoint_steps: Annotated[int, Field(ge=1)] = 50
    """Steps after which a training can go on when it was killed."""
    compare: bool = False
    """Score the mini set of `evaluate --mini` with the model before and after (the extra `[evaluation]`), and put the
    table into the README of the model's folder; the vectors are kept in `<uri>-compared`. With `evaluation.mirror` its
    data is read from there, not made from packages."""
    seed: int = 0
    """Of the order of the examples, of dropout and of a new head."""

    @model_validator(mode="after")
    def _batches_can_be_shared(self) -> Self:
        if self.batch_rows % self.workers:
            raise ValueError(f"batch_rows ({self.batch_rows}) must be a multiple of workers ({self.workers})")
        return self


Kind = Literal["STS", "Classification", "Clustering", "PairClassification", "Reranking", "Retrieval"]
"""The six kinds of problem of C-MTEB, by mteb's names."""


class Evaluation(Section):
    """How `evaluate` measures what vectors of the recipe are good for."""

    uri: Uri
    """Folder of the evaluation: texts of the tasks, their vectors (an output like any other), scores and reports."""
    tasks: Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_as_tuple)] = ("cmteb",)
    """`cmteb` (the 35 tasks of C-MTEB model cards), `mini` (six small sets made from packages), names of tasks, as
    a card or as mteb has them, or `NAME:KIND` (`Tickets:Classification`) for labelled texts of your own in the
    mirror."""
    mirror: Uri | None = None
    """Folder with the data, one folder per task, laid out as on the hub; null = from the hub (mini: from packages)."""
    reference: Uri | None = None
    """Model card to compare with: its README.md, or the YAML in it."""
    max_drop: dict[Kind, Annotated[float, Field(ge=0)]] = {}
    """By kind, the points that its mean may lie below the baseline of `evaluate --gate`; of kinds not named here 0.2,
    and 1.5 for Clustering, which moves by as much from seed to seed."""


class Gate(Section):
    """What every encoder must show before it encodes anything."""

    canary: Uri
    """Parquet file with `text` and `embedding`: texts with the float32 vectors they should have, as `evaluate` leaves
    it. Every encoder encodes them when it starts; if one gives others, nothing is published (exit code 4)."""
    min_cosine: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Least cosine of a text's vector to its reference; null = what `recipe.compute` keeps: 0.99999 in float32, 0.998
    in bfloat16 and float16, 0.985 in int8. So a recipe in float32 is not computed in another number type."""
    min_neighbours_kept: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Least share of the five nearest texts of each, by the references, that are its nearest by the vectors."""
    min_order_kept: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Least share of the pairs of these neighbours that lie in the same order."""


class JobConfig(Section):
    """One job: the whole YAML file."""

    source: Source
    recipe: Recipe
    output: Output
    runtime: Runtime = Runtime()
    features: Features | None = None
    training: Training | None = None
    evaluation: Evaluation | None = None
    gate: Gate | None = None

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        stray = [column for column in self.output.partition_by if column not in self.source.keep_columns]
        if stray:
            raise ValueError(f"output.partition_by names {', '.join(stray)}; add it to source.keep_columns")
        if len(set(self.output.partition_by)) < len(self.output.partition_by):
            raise ValueError("output.partition_by names a column twice")
        if self.output.changes and self.source.duplicate_ids == "allow":
            raise ValueError(
                "output.changes needs ids that name one row; source.duplicate_ids: allow lets them stand twice"
            )
        around = [uri for uri in self.source.uri if f"{self.output.uri.rstrip('/')}/".startswith(f"{uri.rstrip('/')}/")]
        if around:
            raise ValueError(
                f"output.uri lies in source.uri ({around[0]}): the next run would read its own output; move one of them"
            )
        if self.recipe.compute == "int8" and self.runtime.engine not in ("auto", "openvino"):
            raise ValueError(f"recipe.compute: int8 needs runtime.engine: openvino, not {self.runtime.engine}")
        if self.runtime.batch_tokens < self.recipe.max_tokens:
            raise ValueError(
                f"runtime.batch_tokens is {self.runtime.batch_tokens}, below recipe.max_tokens "
                f"({self.recipe.max_tokens}): one text would not fit. Raise the first or lower the second."
            )
        return self

    @model_validator(mode="after")
    def _features_come_from_the_output(self) -> Self:
        if self.features is None:
            return self
        asked = {"entity": (self.features.entity, "id"), "event_time": ((self.features.event_time,), "event_timestamp")}
        for key, (names, own) in asked.items():
            valid = (own, *self.source.keep_columns)
            stray = [name for name in names if name not in valid]
            nearest = difflib.get_close_matches(stray[0], valid, 1) if stray else []
            if nearest:
                raise ValueError(f"features.{key} names {stray[0]}, no such column is kept; did you mean {nearest[0]}?")
            if stray:
                raise ValueError(f"features.{key} names {', '.join(stray)}; add it to source.keep_columns")
        uri = f"{self.features.uri.rstrip('/')}/"
        for key, others in {"output.uri": (self.output.uri,), "source.uri": self.source.uri}.items():
            around = [other for other in others if uri.startswith(f"{other.rstrip('/')}/")]
            if around:
                raise ValueError(f"features.uri lies in {key} ({around[0]}); give it a folder of its own")
        if f"{self.output.uri.rstrip('/')}/".startswith(uri):
            raise ValueError(f"output.uri lies in features.uri ({self.features.uri}); give it a folder of its own")
        return self
