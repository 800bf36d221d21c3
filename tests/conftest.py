"""What many tests share: one real S3 server, a bucket per test, the demo's model and its texts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer

from jobs.demo.fetch import fetch_model, fetch_reviews
from jobs.demo.local_s3 import LocalS3, local_s3
from pipeline.storage.filesystem import Store
from tests.browsing import Browse, looking
from tests.running import leading_to
from tests.side_by_side import ByWorld

settings.register_profile("without times", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("without times")  # a machine may be busy

pytest_plugins = ["tests.chaos.tallied"]  # loaded by the process that starts the others, too

_bucket_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    """A running S3 server, to which the environment leads. To stop one, start one of your own."""
    with local_s3(tmp_path_factory.mktemp("s3")) as server, leading_to(server.environment):
        yield server
        server.kill()  # nobody reads it again, and a clean stop takes a second


@pytest.fixture
def bucket(s3: LocalS3) -> str:
    """The name of an empty bucket that no other test uses."""
    name = f"test-{next(_bucket_numbers):05d}"
    s3.create_bucket(name)
    return name


@pytest.fixture(scope="session")
def m3e_small() -> Path:
    """The folder of m3e-small: a real Chinese model of 4 layers × 512, as sentence-transformers loads it."""
    return fetch_model()


@pytest.fixture(scope="session")
def reviews() -> pa.Table:
    """The 17,410 distinct Chinese reviews: id, text, label."""
    return fetch_reviews()


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Return what Chromium makes of a page: its DOM, and what it wrote to the console."""
    return looking(tmp_path)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A fresh output: on disk, and in a bucket."""
    if request.param == "local":
        return Store(str(tmp_path / "out"))
    return Store(f"s3://{request.getfixturevalue('bucket')}/out")


@pytest.fixture
def local(tmp_path: Path) -> Store:
    """A fresh output on disk."""
    return Store(str(tmp_path / "out"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say how much is destroyed; the rest of the chaos suite is in tests/chaos."""
    parser.addoption("--kills", type=int, default=8, help="how many kills the chaos suite carries out (%(default)s)")
    parser.addoption("--seed", type=int, default=20261124, help="of its first round of kills (%(default)s)")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByWorld:
    """Let `-n` keep together what shares a world."""
    return ByWorld(config, log)
