"""What all tests share: a pool in a temporary directory, and the seed of what is random.

Invariant: nothing random without the seed, and a test that drew from it says how to run it again.
"""

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import ramet

SEGMENT_SIZE = "1MiB"  # Small, so that sealing and opening many segments happens in short tests.

hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile(
    "soak", deadline=None, database=None, max_examples=1000, stateful_step_count=200
)
hypothesis.settings.load_profile("suite")

# A shell that starts the suite in the background has it ignore ctrl-C, and so would every command
# that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=8812, help="seed of the tests marked random")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed and "randomness" in getattr(item, "fixturenames", ()):
        seed = item.config.getoption("--seed")
        report.sections.append(("randomness", f"rerun with --seed {seed}"))
    return report


@pytest.fixture
def randomness(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of the run's seed and this test's name, whatever ran before."""
    return random.Random(f"{request.config.getoption('--seed')} {request.node.nodeid}")


@pytest.fixture
def pool_path(tmp_path: Path) -> Path:
    """Where a test may make a pool."""
    return tmp_path / "pool"


@pytest.fixture
def pool(pool_path: Path) -> Iterator[ramet.Pool]:
    """An empty pool with small segments."""
    with ramet.open(pool_path, create=True, segment_size=SEGMENT_SIZE) as opened:
        yield opened
