"""The exceptions a user or operator can meet, one exit code each.

PipelineError                exit 1   anything below; the message alone must be enough to act on
├── ConfigError              exit 2   edit the config or the arguments
├── SourceError              exit 1   mend the input, or its address, or the rights on it
├── EncoderError             exit 1   mend the model folder, or the device it runs on
│   └── SickDevice           exit 1   a device fails on good texts; another process or node may do better
├── StorageError             exit 1   the output store refused, lost or changed something
│   └── AttemptsDiffer       exit 1   two attempts at one Block set other rows aside; run again, in a fresh folder
├── SnapshotConflict         exit 3   another run holds or published the output; run again
│   └── PlanOutdated         exit 3   an expiry has removed what the plan counts on; a run plans again, once
├── Stopped                  exit 1   somebody asked the run to end; run again to go on
├── DeletionRefused          exit 4   too much of the snapshot before would go; look, then allow it or mend the source
├── GateFailed               exit 4   vectors are worse than a gate allows; look at the scores
└── ReconciliationError      exit 1   the counts do not add up: a bug or a lost Block; nothing was published
"""

from typing import Any


class PipelineError(Exception):
    """An error whose message says what was expected, what was found, where, and what to do."""

    exit_code = 1
    report: Any = None
    """The RunReport of the run that failed, once there was a plan."""


class ConfigError(PipelineError):
    """The config or the arguments are wrong; nothing was started."""

    exit_code = 2


class SourceError(PipelineError):
    """The input cannot be listed or read as configured."""


class EncoderError(PipelineError):
    """The model cannot be loaded or does not do what the recipe asks of it."""


class SickDevice(EncoderError):
    """A device, or the model on it, fails on texts that are good."""


class StorageError(PipelineError):
    """The output cannot be written, or holds something it must not."""


class AttemptsDiffer(StorageError):
    """Two attempts at one Block, both right, have put other rows aside; the folder of the run holds some of each."""


class SnapshotConflict(PipelineError):
    """Another run holds the output, or published the snapshot number this run was for."""

    exit_code = 3


class PlanOutdated(SnapshotConflict):
    """What a Plan counts on was removed by an expiry before the run had its claim; planned again, all is well."""


class Stopped(PipelineError):
    """The run was asked to end. Ray still runs and ends with this process, which should not wait for it."""


class DeletionRefused(PipelineError):
    """More of the snapshot before would go than the config allows; the run publishes nothing."""

    exit_code = 4


class GateFailed(PipelineError):
    """What vectors are good for lies further below a baseline than the config allows."""

    exit_code = 4


class ReconciliationError(PipelineError):
    """Rows read and rows accounted for differ; the run publishes nothing."""


def in_a_line(error: BaseException, most: int | None = None) -> str:
    """Return what an error says, on one line; of a library's long message the first `most` characters."""
    return " ".join(str(error).split())[:most]
