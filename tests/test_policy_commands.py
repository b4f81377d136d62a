"""Policies and remotes as users have them: by command, with a service and without, and after."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import ramet as product
import serving as services
from serving import make_pool, run_ramet, serving

pytestmark = pytest.mark.slow

WAIT_SECONDS_MAX = 40.0


def ramet(pool: Path, *words: str) -> str:
    return services.ramet("-p", pool, *words)


@pytest.fixture
def sites(tmp_path: Path) -> tuple[Path, Path]:
    """A pool with a volume that holds something, and an empty one."""
    here, there = make_pool(tmp_path / "here"), make_pool(tmp_path / "there")
    with product.open(here) as pool:
        pool.create_volume("db", "8MiB").write(4096, b"content" * 1000)
    return here, there


def until(holds: Callable[[], bool]) -> None:
    """Wait until something is so; it has to become so."""
    end = time.monotonic() + WAIT_SECONDS_MAX
    while not holds():
        assert time.monotonic() < end, "it never came to be"
        threading.Event().wait(0.2)


def names(pool: Path) -> set[str]:
    return {it["name"] for it in json.loads(ramet(pool, "snapshot", "list", "--json"))}


def test_a_service_snapshots_and_replicates_by_itself(sites: tuple[Path, Path]) -> None:
    here, there = sites
    with serving(here), serving(there):
        ramet(here, "remote", "add", "dr", f"file://{there}")
        options = ("--every", "1h", "--volume", "d*", "--daily", "7", "--remote", "dr")
        ramet(here, "policy", "set", "hourly", *options)
        until(lambda: len(names(there)) == 1)
        assert names(here) == names(there)
        [policy] = json.loads(ramet(here, "policy", "list", "--json"))
        assert (policy["volumes_count"], policy["snapshots_count"]) == (1, 1)
        assert policy["error"] is None
        ramet(here, "replicate", "dr")
        [remote] = json.loads(ramet(here, "remote", "list", "--json"))
        assert (remote["lag_count"], remote["lag_bytes"]) == (0, 0)
        assert remote["reached_ns"] is not None
    # What was set and what is known is there without a service, too.
    [plan, *_] = json.loads(ramet(here, "policy", "plan", "--days", "0.1", "--json"))
    assert plan["policy"] == "hourly"
    [created] = json.loads(ramet(here, "policy", "run", "hourly", "--json"))[0]["created"]
    assert ramet(here, "replicate").split() == [created]
    assert created in names(there)


def test_a_file_of_policies_is_taken_as_a_whole_or_not(sites: tuple[Path, Path]) -> None:
    here, _ = sites
    file = here.parent / "policies.toml"
    file.write_text('# Ours.\n[policy.p]\ncron = "0 3 * * *"\nvolumes = ["db"]\nkeep.daily = 7\n')
    with serving(here) as service:
        ramet(here, "policy", "apply", str(file))
        assert ramet(here, "policy", "dump") == file.read_text()
        file.write_text("[policy.p]\nkepp = 1\n")
        refused = run_ramet("-p", str(here), "policy", "apply", str(file))
        assert refused.returncode == 2
        assert "policy 'p'" in refused.stderr
        assert "# Ours." in ramet(here, "policy", "dump")
        ramet(here, "policy", "remove", "p")
        assert json.loads(ramet(here, "policy", "list", "--json")) == []
        assert service.said
    (here / "policies.toml").write_text("[policy")
    with serving(here) as service:
        assert any("no policy is followed" in line for line in service.said)
        assert run_ramet("-p", str(here), "policy", "list").returncode == 2
        assert "db" in ramet(here, "volume", "list")
    ramet(here, "check")


def test_what_a_policy_cannot_do_is_said_where_people_look(sites: tuple[Path, Path]) -> None:
    here, _ = sites
    with serving(here) as service:
        ramet(here, "remote", "add", "dr", "exec:sh -c 'echo no route >&2; exit 255'")
        options = ("--every", "1h", "--volume", "db", "--last", "1", "--remote", "dr")
        ramet(here, "policy", "set", "p", *options, "--before", "false")
        until(lambda: any("hook_failed" in line for line in service.said))
        assert "hook_failed" in run_ramet("-p", str(here), "policy", "list").stderr
        ramet(here, "policy", "set", "p", *options)
        until(lambda: any("no route" in line for line in service.said))
        until(lambda: len(names(here)) == 1)
        refused = run_ramet("-p", str(here), "replicate")
        assert refused.returncode == 6
        assert "no route" in refused.stderr
        assert len(names(here)) == 1
