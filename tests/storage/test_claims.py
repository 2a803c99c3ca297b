"""Claims: one owner at a time, heartbeats, and what happens where an owner dies, sleeps or says nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from promptbench.config import UsageError
from promptbench.storage import claims
from promptbench.storage.claims import Claims, alone, holders, read

ABOUT = {"kind": "run", "run": "base2new/birds/coop-1"}
HOLD = """
import sys, time
from pathlib import Path
from promptbench.storage.claims import Claims
claim = Claims(Path(sys.argv[1])).take("a", {"kind": "run"})
print("held" if claim else "none", flush=True)
time.sleep(60)
"""


def age(path: Path, seconds: float) -> None:
    """As if nobody had touched the file for so long."""
    status = path.stat()
    os.utime(path, (status.st_atime - seconds, status.st_mtime - seconds))


def elsewhere(path: Path) -> None:
    """As if the claim came from another machine."""
    head, _, rest = path.read_bytes().partition(b"\n")
    said = json.loads(head)
    path.write_bytes(json.dumps({**said, "host": "node7", "machine": "another"}).encode() + b"\n" + rest)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.02)


def test_a_claim_has_one_owner_and_is_gone_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "claims"
    with Claims(folder) as one, Claims(folder) as other:
        claim = one.take("a", ABOUT)
        assert claim is not None and other.take("a", ABOUT) is None and one.take("a", ABOUT) is None
        assert other.busy("a") and not other.busy("b")
        (holder,) = holders(folder)
        assert (holder.name, holder.about, holder.pid, holder.alive) == ("a", ABOUT, os.getpid(), True)
        assert holder.host and abs(holder.since - time.time()) < 60
        claim.release()
        assert holders(folder) == [] and not other.busy("a")
        assert other.take("a", ABOUT) is not None
    assert not folder.exists()


def test_of_many_threads_one_gets_the_claim(tmp_path: Path) -> None:
    path = tmp_path / "claims" / "a.claim"
    with Claims(tmp_path / "claims") as first:
        assert first.take("a", ABOUT) is not None
        elsewhere(path)
        age(path, claims.STALE + 5)  # stale, so that all of them also try to take it over
        everyone, got = [Claims(tmp_path / "claims") for _ in range(16)], []
        start = threading.Barrier(len(everyone))

        def try_it(mine: Claims) -> None:
            start.wait()
            got.append(mine.take("a", ABOUT))

        threads = [threading.Thread(target=try_it, args=(mine,)) for mine in everyone]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len([claim for claim in got if claim is not None]) == 1
        assert [path.name for path in (tmp_path / "claims").iterdir()] == ["a.claim"]
        for mine in everyone:
            mine.close()


def test_an_owner_shows_signs_of_life_and_progress(tmp_path: Path, quick: None) -> None:
    with Claims(tmp_path) as mine:
        claim = mine.take("a", ABOUT)
        assert claim is not None
        claim.progress = {"done": 3, "total": 40}
        age(claim.path, 50)
        before = claim.path.stat().st_mtime
        deadline = time.monotonic() + 20
        while claim.path.stat().st_mtime - before < 40 and time.monotonic() < deadline:
            time.sleep(0.01)
        holder = read(claim.path)
        assert holder is not None and holder.progress == {"done": 3, "total": 40} and holder.about == ABOUT
        claim.progress = {"text": "x" * 1000}  # no room for it: the last stays
        claim.beat()
        again = read(claim.path)
        assert again is not None and again.progress == {"done": 3, "total": 40} and not claim.lost


def test_a_silent_owner_elsewhere_is_waited_for_and_then_replaced(tmp_path: Path) -> None:
    with Claims(tmp_path) as mine, Claims(tmp_path) as other:
        claim = mine.take("a", ABOUT)
        assert claim is not None
        elsewhere(claim.path)
        age(claim.path, claims.STALE - 10)
        assert other.take("a", ABOUT) is None
        age(claim.path, 15)
        taken = other.take("a", ABOUT)
        assert taken is not None
        claim.beat()
        taken.beat()
        assert claim.lost and not taken.lost
        claim.release()  # what is not ours any more stays
        assert taken.path.exists() and other.busy("a")


def test_the_clock_of_the_machine_plays_no_role(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Claims(tmp_path) as mine, Claims(tmp_path) as other:
        claim = mine.take("a", ABOUT)
        assert claim is not None
        elsewhere(claim.path)
        monkeypatch.setattr(time, "time", lambda: 5e9)  # a clock that is decades ahead
        assert other.take("a", ABOUT) is None


def test_a_killed_owner_of_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    if not claims.machine():
        pytest.skip("this system does not tell when a process was started")
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with Claims(tmp_path) as mine:
            assert mine.take("a", ABOUT) is None
            process.kill()
            deadline = time.monotonic() + 20
            while (claim := mine.take("a", ABOUT)) is None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert claim is not None  # although it is a zombie still
    finally:
        process.kill()
        process.communicate()


def test_a_claim_that_a_crash_left_empty_goes_stale(tmp_path: Path) -> None:
    path = tmp_path / "a.claim"
    path.write_bytes(b"")
    with Claims(tmp_path) as mine:
        assert mine.take("a", ABOUT) is None and holders(tmp_path)[0].host == ""
        age(path, claims.STALE + 5)
        assert mine.take("a", ABOUT) is not None


def test_claims_of_the_dead_are_cleared_away(tmp_path: Path) -> None:
    with Claims(tmp_path) as mine:
        for name in ("a", "b"):
            assert mine.take(name, ABOUT) is not None
        elsewhere(tmp_path / "a.claim")
        age(tmp_path / "a.claim", claims.STALE + 5)
        mine.clear()
        assert [holder.name for holder in holders(tmp_path)] == ["b"]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    mine = Claims(tmp_path / "claims")
    with monkeypatch.context() as patch, pytest.raises(UsageError, match=r"cannot be written \(No space left"):
        patch.setattr(os, "write", full)
        mine.take("a", ABOUT)
    assert list((tmp_path / "claims").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        Claims(tmp_path / "file").take("a", ABOUT)


@pytest.mark.slow
def test_what_is_done_alone_is_never_done_by_two(tmp_path: Path) -> None:
    inside, most = [], []

    def work() -> None:
        with alone(tmp_path / "claims", "features"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_nobody_waits_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with alone(tmp_path / "file", "features"):
        pass
