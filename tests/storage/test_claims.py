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


@pytest.fixture(autouse=True)
def _short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is only old is watched for a moment."""
    monkeypatch.setattr(claims, "WATCH", 0.1)
    monkeypatch.setattr(claims, "LOOK", 0.01)
    monkeypatch.setattr(claims, "_watches", {})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.02)


def rewritten(path: Path, **facts: Any) -> None:
    """As if the owner had said something else of itself."""
    head, _, rest = path.read_bytes().partition(b"\n")
    status = path.stat()
    path.write_bytes(json.dumps({**json.loads(head), **facts}).encode() + b"\n" + rest)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def dead_process() -> int:
    """The id of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


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
        age(claim.path, 50)
        silent = claim.path.stat().st_mtime
        claim.beat()
        assert claim.path.stat().st_mtime - silent > 40  # alive all the same
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


def test_an_owner_that_wakes_while_it_is_replaced_keeps_its_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look at a claim and its removal its owner may touch it: it is put back then."""
    with Claims(tmp_path) as mine, Claims(tmp_path) as other:
        claim = mine.take("a", ABOUT)
        assert claim is not None
        elsewhere(claim.path)
        age(claim.path, claims.STALE + 5)
        rename = os.rename

        def wakes(source: Path, target: Path) -> None:
            rename(source, target)
            os.utime(target)

        monkeypatch.setattr(os, "rename", wakes)
        assert other.take("a", ABOUT) is None
        assert claim.path.exists()


def test_a_guard_that_a_crash_left_stands_in_nobody_s_way(tmp_path: Path) -> None:
    """It is there while one of several processes removes an old claim."""
    with Claims(tmp_path) as mine, Claims(tmp_path) as other:
        claim = mine.take("a", ABOUT)
        assert claim is not None
        elsewhere(claim.path)
        age(claim.path, claims.STALE + 5)
        guard = tmp_path / ".a.claim.guard"
        guard.write_bytes(b"")
        assert other.take("a", ABOUT) is None and guard.exists()
        age(guard, claims.STALE + 5)
        other.take("a", ABOUT)
        assert other.take("a", ABOUT) is not None and not guard.exists()


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


def test_what_the_system_may_hide_is_not_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under hidepid nobody sees the processes of others, in a space of user ids of its own not even those of its id."""
    if not claims.machine():
        pytest.skip("this system does not tell when a process was started")
    pid = dead_process()
    with Claims(tmp_path) as mine, Claims(tmp_path) as other:
        claim = mine.take("a", ABOUT)
        assert claim is not None
        boot, pids, *_ = claims.machine().split(" ")
        for elsewhere in ({"uid": os.getuid() + 1}, {"machine": f"{boot} {pids}"}, {"uid": None}):
            rewritten(claim.path, **{"machine": claims.machine(), "uid": os.getuid(), "pid": pid, **elsewhere})
            assert other.take("a", ABOUT) is None and other.busy("a")
        rewritten(claim.path, machine=claims.machine(), uid=os.getuid(), pid=pid)
        assert other.take("a", ABOUT) is not None  # of our own we see that it is gone


def test_a_process_that_lives_and_is_not_shown_is_not_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one of ours with another group, or in a /proc of another space of process ids."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    read_text = Path.read_text

    def hidden(path: Path, *arguments: Any, **more: Any) -> str:
        if str(path) == f"/proc/{process.pid}/stat":
            raise FileNotFoundError(path)
        return read_text(path, *arguments, **more)

    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with Claims(tmp_path) as mine, monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", hidden)
            assert mine.take("a", ABOUT) is None and mine.busy("a")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_is_set_takes_no_claim_from_the_living(
    hours: int, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Claims(tmp_path) as mine, Claims(tmp_path) as other:
        claim = mine.take("a", ABOUT)
        assert claim is not None
        elsewhere(claim.path)
        monkeypatch.setattr(claims, "WATCH", 20.0)  # which nobody waits for
        real = claims.now
        monkeypatch.setattr(claims, "now", lambda folder: real(folder) + 3600 * hours)
        for _ in range(3):
            assert other.take("a", ABOUT) is None
        other.clear()
        claim.beat()
        assert not claim.lost and other.busy("a")


def test_a_dead_claim_goes_stale_though_the_clock_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "STALE", 0.3)
    path = tmp_path / "a.claim"
    path.write_text("{}\n")
    age(path, -3600)
    with Claims(tmp_path) as mine:
        began = time.monotonic()
        assert mine.take("a", ABOUT) is None  # and nobody waits
        while mine.take("a", ABOUT) is None and time.monotonic() - began < 20:
            time.sleep(0.02)
        assert 0.3 <= time.monotonic() - began < 20


def test_old_claims_are_watched_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(8):
        (tmp_path / f"{index}.claim").write_text("{}\n")
        age(tmp_path / f"{index}.claim", claims.STALE + 5)
    slept: list[float] = []
    sleep = time.sleep

    def noted(seconds: float) -> None:
        slept.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(claims.time, "sleep", noted)
    assert not any(holder.alive or holder.dead for holder in holders(tmp_path))
    assert not slept  # a listing waits for nothing
    with Claims(tmp_path) as mine:
        mine.clear()
        assert not holders(tmp_path)
    assert 0 < sum(slept) < 3 * claims.WATCH  # one watch, not eight


def test_time_that_nobody_watched_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where owner and reader were frozen together, the reader may be the first to look again."""
    monkeypatch.setattr(claims, "WATCH", 4.0)
    clock = [0.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: clock[0])
    path = tmp_path / "a.claim"
    path.write_text("{}\n")
    age(path, claims.STALE + 5)
    dead = []
    read(path)
    for step in (3600.0, 1.0, 3600.0, 1.0):
        clock[0] += step
        holder = read(path)
        assert holder is not None
        dead.append(holder.dead)
    assert dead == [False, False, False, True]


def test_what_a_process_left_that_was_killed_while_it_cleared_away_goes(tmp_path: Path) -> None:
    names = [".a.claim.guard", ".b.claim.0123456789abcdef"]
    for name in (*names, "a.claim"):
        (tmp_path / name).write_text("{}\n")
        age(tmp_path / name, claims.STALE + 5)
    with Claims(tmp_path / "young") as young:
        fresh = young.folder / ".a.claim.guard"
        young.folder.mkdir()
        fresh.touch()
        young.clear()
        assert fresh.exists()
        fresh.unlink()
    with Claims(tmp_path) as mine:
        mine.clear()
    assert not tmp_path.exists()
