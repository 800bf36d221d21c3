"""What happened in a run, counted: the RunReport and how it grows from BlockReceipts."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipeline.encoder.engines import EngineChoice
from pipeline.records import BlockReceipt

Outcome = Literal["published", "nothing_to_do", "failed"]

STAGES = ("read", "tokenize", "encode", "write")
TOKEN_BUCKETS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""Upper bounds of the tokens-per-row histogram; a last bucket takes what is longer."""

EMULATED = (
    "this hardware has no arithmetic of the recipe's compute type and imitates it; recipe.compute: float32 is at least "
    "about as fast here (and makes other vectors: everything is embedded anew)"
)

ISOLATED = (
    "some Blocks had killed their workers again and again and were done in processes of their own, row by row where it "
    "had to be; what still died is in quarantine as kills_process"
)

OUT_OF_MEMORY = "a device ran out of memory at the batch_tokens of the config"


NOT_TAKEN_OVER = {
    "unreadable_texts": "known texts were encoded again: Parts of the snapshot before could not be read or held other "
    "texts; `verify` says which",
    "scattered_texts": "known texts were encoded again: they lie so scattered over the snapshot before that reading "
    "its Parts for them would have taken longer",
}
"""Counter of a Block → end of the warning about it."""


@dataclass(slots=True)
class RunReport:
    """One run, from plan to publish; `to_json` is what `--json` prints and `reports/` keeps."""

    outcome: Outcome
    output_uri: str
    run_key: str = ""
    snapshot: int | None = None
    """Number published, or standing if there was nothing to do."""
    folder: str = ""
    """Where the rows lie: a URI any Parquet tool can read."""
    recipe: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    source: list[str] = field(default_factory=list)
    """`source.uri` of the config."""
    source_files: int = 0
    source_bytes: int = 0
    shards: int = 0
    shards_reused: int = 0
    shards_redone: int = 0
    """By a requeue, because they had rows in quarantine."""
    rows_retried: int = 0
    """How many rows those were."""
    rows_read: int = 0
    embedded: int = 0
    """Rows that have a vector of this run."""
    reused: int = 0
    """Rows that have a vector of an earlier run."""
    taken_over: int = 0
    """Of the reused ones, rows of new or changed files whose text was known."""
    encoded_texts: int = 0
    """Texts that the encoder was given: fewer than `embedded` where texts repeat, more where chunks are cut."""
    repeated_texts: int = 0
    """Rows (or chunks) that have the vector of an equal one of this run."""
    quarantined: int = 0
    deduplicated: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """Quarantined rows by Reason."""
    positions: dict[str, list[str]] = field(default_factory=dict)
    """Of some quarantined rows by Reason: file and row, or byte; never a text."""
    unreadable_bytes: int = 0
    """Bytes of the source in stretches that could not be read, however many rows they hold."""
    parts: int = 0
    bytes_written: int = 0
    vectors: int = 0
    """Vectors written; more than `embedded` when long texts are cut into chunks."""
    dimension: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    """Tokens the device computed, padding included."""
    truncated: int = 0
    token_histogram: list[int] = field(default_factory=lambda: [0] * (len(TOKEN_BUCKETS) + 1))
    """Rows per bucket of TOKEN_BUCKETS, encoded in this run."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of `plan`, `start`, `run`, `publish` and `total`."""
    stage_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    """Time spent in each stage, summed over all workers."""
    timeline: list[tuple[float, int, int]] = field(default_factory=list)
    """(seconds since the first Block was asked for, rows done, tokens done), ascending."""
    batches: int = 0
    """Forward passes that gave vectors."""
    batch_splits: int = 0
    """Forward passes that failed and were tried again in smaller ones."""
    retries: int = 0
    """Blocks that were begun again because a worker had died over them."""
    encoders: int = 0
    hosts: list[str] = field(default_factory=list)
    """The nodes of the cluster, each with what it offers."""
    executor: str = ""
    """Who ran the stages: ray, or process where so little was to be done that none was started; empty = nothing was."""
    device: str = ""
    engine: str = ""
    """What the encoders began with: torch | torch-compile | openvino | onnx; empty without a model."""
    engine_choices: list[EngineChoice] = field(default_factory=list)
    """What encoders went on with after a trial, one entry per trial; empty if none worked long enough for one."""
    calibration: dict[str, Any] | None = None
    """Of an int8 recipe: its identity, and of this output's own what making it took and how near it is to float32."""
    attention: dict[str, int] = field(default_factory=dict)
    """How encoders kept the rows of a batch apart, and why → how many were opened so."""
    versions: dict[str, str] = field(default_factory=dict)
    started_at: str = ""
    """ISO 8601, UTC."""
    warnings: list[str] = field(default_factory=list)
    """What a person should change, one sentence each."""
    error: str | None = None
    """One sentence, when the outcome is `failed`."""
    estimate: dict[str, Any] | None = None
    """What `plan --estimate` has said of this run, if it was asked."""
    report_uri: str | None = None
    """The HTML page about this run."""

    @property
    def accounted(self) -> int:
        """Rows for which the run can say what became of them; must equal `rows_read`."""
        return self.embedded + self.reused + self.quarantined + self.deduplicated

    @property
    def tokens_per_second(self) -> float:
        """Tokens encoded per second of the `run` phase, start-up left out."""
        run = self.seconds.get("run", 0.0)
        return self.tokens / run if run else 0.0

    @property
    def encoder_busy(self) -> float | None:
        """Share of the run in which an encoder was computing, 0 to 1; None if not measured."""
        available = self.encoders * self.seconds.get("run", 0.0)
        return min(1.0, self.stage_seconds.get("encode", 0.0) / available) if available else None

    @property
    def encoder_hours(self) -> float:
        """Hours for which encoders were held, summed over them."""
        return self.encoders * (self.seconds.get("start", 0.0) + self.seconds.get("run", 0.0)) / 3600

    @property
    def cost(self) -> float | None:
        """What the encoders cost at the price of the estimate; None without one."""
        price = (self.estimate or {}).get("price_per_hour")
        return None if price is None else float(price) * self.encoder_hours

    @property
    def padding_fraction(self) -> float:
        """Share of the computed tokens that were padding, 0 to 1."""
        return 1.0 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0

    def add(self, receipt: BlockReceipt) -> None:
        """Count one Block that this run has encoded and written."""
        self.rows_read += receipt.rows_read
        self.count_parts(receipt)
        metrics = receipt.metrics
        taken_over = int(metrics.get("reused", 0))
        self.embedded += receipt.embedded - taken_over
        self.reused += taken_over
        self.taken_over += taken_over
        self.encoded_texts += int(metrics.get("encoded_texts", 0))
        self.repeated_texts += int(metrics.get("repeated_texts", 0))
        for counter, why in NOT_TAKEN_OVER.items():
            self._warn_of(why, int(metrics.get(counter, 0)))
        self.tokens += int(metrics.get("tokens", 0))
        self.padded_tokens += int(metrics.get("padded_tokens", 0))
        self.truncated += int(metrics.get("truncated", 0))
        self.batches += int(metrics.get("batches", 0))
        self.batch_splits += int(metrics.get("batch_splits", 0))
        self.retries += int(metrics.get("retries", 0))
        self.bytes_written += sum(part.size_bytes for part in receipt.parts)
        for stage in STAGES:
            self.stage_seconds[stage] += metrics.get(f"{stage}_seconds", 0.0)
        if metrics.get("emulated_compute") and EMULATED not in self.warnings:
            self.warnings.append(EMULATED)
        if metrics.get("isolated") and ISOLATED not in self.warnings:
            self.warnings.append(ISOLATED)
        if safe := int(metrics.get("safe_batch_tokens", 0)):
            self.warnings = [warning for warning in self.warnings if not warning.startswith(OUT_OF_MEMORY)]
            self.warnings.append(f"{OUT_OF_MEMORY}; the run went on with {safe}: set runtime.batch_tokens to that")
        for bucket in range(len(self.token_histogram)):
            self.token_histogram[bucket] += int(metrics.get(f"tokens_bucket_{bucket}", 0))

    def _warn_of(self, why: str, texts: int) -> None:
        """Add to a warning that begins with a number of texts."""
        earlier = [warning for warning in self.warnings if warning.endswith(why)]
        total = texts + sum(int(warning.split()[0]) for warning in earlier)
        if total:
            self.warnings = [*(warning for warning in self.warnings if warning not in earlier), f"{total} {why}"]

    def add_reused(self, receipt: BlockReceipt) -> None:
        """Count one Block whose Parts an earlier run has written."""
        self.rows_read += receipt.rows_read
        self.reused += receipt.embedded
        self.count_parts(receipt)

    def count_parts(self, receipt: BlockReceipt) -> None:
        """Count what is the same for a new and a reused Block: Parts, vectors, rows without one."""
        self.quarantined += receipt.quarantined
        self.deduplicated += receipt.deduplicated
        self.reasons = dict(Counter(self.reasons) + Counter(receipt.reasons))
        self.unreadable_bytes += int(receipt.metrics.get("unreadable_bytes", 0))
        self.parts += sum(part.kind == "embeddings" for part in receipt.parts)
        self.vectors += sum(part.rows for part in receipt.parts if part.kind == "embeddings")

    @staticmethod
    def from_json(value: dict[str, Any]) -> "RunReport":
        """Return the report that was written as JSON; fields of other versions are left out."""
        known = {name: value[name] for name in RunReport.__slots__ if name in value}
        known["timeline"] = [(seconds, rows, tokens) for seconds, rows, tokens in value.get("timeline", [])]
        known["engine_choices"] = [EngineChoice(**choice) for choice in value.get("engine_choices", [])]
        return RunReport(**known)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, derived figures included."""
        return asdict(self) | {
            "accounted": self.accounted,
            "tokens_per_second": round(self.tokens_per_second, 1),
            "padding_fraction": round(self.padding_fraction, 5),
            "encoder_busy": self.encoder_busy,
            "encoder_hours": self.encoder_hours,
            "cost": self.cost,
        }
