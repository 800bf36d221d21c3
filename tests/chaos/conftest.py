"""The world of the chaos tests: a real S3 server behind the fault proxy, a real Ray cluster, a corpus, and a tally."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from jobs.demo.local_s3 import LocalS3, local_s3
from pipeline.storage.filesystem import Store
from tests.chaos.cluster import RayCluster
from tests.chaos.disturbed import World
from tests.chaos.kills import SHORT, Tally
from tests.chaos.network import Loopback, Namespaces, Network
from tests.chaos.proxy import Fault, FaultProxy, Rule
from tests.chaos.rows import check_folder, folder_rows
from tests.chaos.tallied import TALLY
from tests.running import leading_to, written_config

FILES, ROWS = 40, 128
FIRST_FILES = "corpus/0*.jsonl"
"""A quarter of them, for what a shorter run shows as well."""

MILD = (
    Rule(Fault.SLOW_DOWN, probability=0.01, burst=3),
    Rule(Fault.INTERNAL_ERROR, probability=0.01),
    Rule(Fault.RESET, probability=0.01),
    Rule(Fault.LOST_RESPONSE, frozenset({"PUT"}), probability=0.02),
    Rule(Fault.TRUNCATED, frozenset({"GET"}), probability=0.01),
    Rule(Fault.STALLED, frozenset({"GET"}), probability=0.005, seconds=1.0),
    Rule(Fault.SLOW, probability=0.02, seconds=0.2),
)
"""What storage does to every run while it is killed at: about one answer in fifteen is faulty."""


@pytest.fixture(scope="session")
def tally(request: pytest.FixtureRequest) -> Tally:
    """What has really happened to whom; it is shown at the end."""
    return request.config.stash.setdefault(TALLY, Tally())


@pytest.fixture(scope="session")
def own_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    """An S3 server that may be stopped."""
    with local_s3(tmp_path_factory.mktemp("own-s3")) as server:
        yield server
        server.kill()


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    """A network namespace per worker node where this machine allows it, else an address of 127/8 each."""
    if Namespaces.are_possible():
        with Namespaces() as namespaces:
            yield namespaces
    else:
        yield Loopback()


@pytest.fixture(scope="session")
def proxy(own_s3: LocalS3, network: Network, request: pytest.FixtureRequest) -> Iterator[FaultProxy]:
    """The fault proxy before that server, where every node reaches it."""
    seed = request.config.getoption("--seed")
    with FaultProxy(own_s3.endpoint_url, seed, network.head.address) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def world(own_s3: LocalS3, proxy: FaultProxy, network: Network, tally: Tally) -> Iterator[World]:
    """A Ray cluster of a head and two workers whose storage lies behind the proxy."""
    storage = proxy.environment(own_s3.environment)
    tally.network = type(network).__name__
    with RayCluster(network, storage) as cluster:
        yield World(own_s3, cluster, storage, tally)


@pytest.fixture
def straight(own_s3: LocalS3) -> Iterator[LocalS3]:
    """The way of the test itself to that server, past the proxy."""
    with leading_to(own_s3.environment):
        yield own_s3


@dataclass(frozen=True, slots=True)
class Corpus:
    """Some thousand texts in one bucket, and the rows that an undisturbed run makes of them."""

    bucket: str
    undisturbed: pa.Table
    seconds: float
    """How long that run took."""

    rows_per_file: int = ROWS

    def config(self, folder: Path, name: str, source: str = "corpus/") -> tuple[str, str]:
        """Write a config whose output is fresh; return its path and the output's address."""
        return _config(folder, self.bucket, name, source)

    def first_files(self) -> pa.Table:
        """Return what an undisturbed run makes of `FIRST_FILES`."""
        number = pc.cast(
            pc.extract_regex(self.undisturbed["id"], "(?P<file>[0-9]+)-").combine_chunks().field(0), "int64"
        )
        return self.undisturbed.filter(pc.less(number, 10)).combine_chunks()


def _config(folder: Path, bucket: str, name: str, source: str = "corpus/") -> tuple[str, str]:
    output = f"s3://{bucket}/{name}"
    path = written_config(
        folder / f"{name}.yaml",
        source={"uri": f"s3://{bucket}/{source}", "keep_columns": ["label"]},
        recipe={"model": "hashing://256", "max_tokens": 256},
        output={"uri": output, "rows_per_part": 32},
    )
    return path, output


@pytest.fixture(scope="session")
def corpus(world: World, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The texts, and what becomes of them without any fault."""
    folder = tmp_path_factory.mktemp("corpus")
    with leading_to(world.s3.environment):
        world.s3.create_bucket("chaos")
        store = Store("s3://chaos/corpus")
        for number in range(FILES):
            rows = ({"id": f"{number}-{row}", "text": f"{number}-{row} " * 60, "label": row % 7} for row in range(ROWS))
            store.put(f"{number:02d}.jsonl", b"".join(orjson.dumps(row) + b"\n" for row in rows))
        path, output = _config(folder, "chaos", "undisturbed")
        started = time.monotonic()
        driver = world.start_driver(path, folder / "driver.log")
        assert driver.wait() == 0, driver.said[-3000:]
        seconds = time.monotonic() - started
        check_folder(output)
        rows = folder_rows(output)
    assert rows.num_rows == FILES * ROWS
    return Corpus("chaos", rows, seconds)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long ones to `make chaos`."""
    if config.getoption("--kills") <= SHORT.total():
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
