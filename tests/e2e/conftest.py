"""Clusters shared by the tests of a file; stopped, and checked to be gone, at its end."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from cluster import HADAL, Cluster  # noqa: E402


def pytest_sessionstart(session):
    if not os.access(HADAL, os.X_OK):
        pytest.exit(f"{HADAL} is not there; build it first, or name it in HADAL", 3)


def cluster_of(*args, **options):
    cluster = Cluster(*args, **options)
    yield cluster
    if cluster.process.poll() is None:
        assert cluster.stop() == 0, cluster.log_tail()


@pytest.fixture(scope="module")
def mock22():
    """Two replicas of two stages that compute nothing: a step takes 3 ms."""
    yield from cluster_of(replicas=2, stages=2, engine="mock", mock_step_us=3000)


@pytest.fixture(scope="module")
def sample22():
    """Two replicas of two stages with the sample model."""
    yield from cluster_of(replicas=2, stages=2)


@pytest.fixture
def start():
    """Starts clusters that the test treats as it likes; whatever is left is ended."""
    started = []

    def begin(*args, **options):
        started.append(Cluster(*args, **options))
        return started[-1]

    yield begin
    for cluster in started:
        cluster.kill()
