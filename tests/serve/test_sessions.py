"""Kept sessions: on disk always, in memory while there is room, found again after a restart."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("prometheus_client", reason="needs the extra serve")

from infini_jax.config import InputError  # noqa: E402
from infini_jax.inference import OpenedRun, Session  # noqa: E402
from infini_jax.inference.engine import Engine  # noqa: E402
from infini_jax.serve.errors import ApiError  # noqa: E402
from infini_jax.serve.limits import Limits  # noqa: E402
from infini_jax.serve.sessions import INDEX, Sessions  # noqa: E402
from tests.serve.models import Unending, model, unending  # noqa: E402

LIMITS = Limits(in_memory=2, sessions=5)


@pytest.fixture(scope="module")
def run():
  return unending()


@pytest.fixture
def sessions(run, tmp_path):
  made = Sessions(tmp_path / "kept", run, LIMITS)
  yield made
  made.close()


def read(run, text):
  session = Session(run)
  session.read(text)
  return session


def told(call, *arguments):
  with pytest.raises(ApiError) as caught:
    call(*arguments)
  return caught.value.code


def test_the_sessions_that_were_used_longest_ago_are_on_disk_alone(run, sessions, tmp_path):
  kept = [sessions.add(read(run, "x" * (9 + 7 * i)), "", "") for i in range(4)]
  assert sessions.in_memory == 2 and len(sessions) == 4
  assert len([*(tmp_path / "kept").glob("*.state")]) == 4
  for each in kept:
    fork = sessions.fork(each.id, "")
    assert fork.positions == [each.tokens] and sessions.in_memory == 2


def test_a_restart_finds_them_and_removes_what_was_never_reported(run, sessions, tmp_path):
  first = sessions.add(read(run, "one text"), "a", "its name")
  second = sessions.add(read(run, "another"), "b", "")
  sessions.remove(second.id, "b")
  folder = shutil.copytree(tmp_path / "kept", tmp_path / "again")  # as after a kill
  (folder / "sess_unreported.state").write_bytes(b"half")
  (folder / f"{first.id}.state.12345678.tmp").write_bytes(b"half")
  again = Sessions(folder, run, LIMITS)
  (found,) = again.list("a")
  assert found == first and again.fork(first.id, "a").positions == [first.tokens]
  assert {file.name for file in folder.iterdir()} - {f"{INDEX}-journal"} == {
    INDEX,
    f"{first.id}.state",
  }
  again.close()


def test_sessions_of_another_model_are_kept_and_not_served(run, sessions, tmp_path):
  kept = sessions.add(read(run, "one text"), "", "")
  folder = shutil.copytree(tmp_path / "kept", tmp_path / "again")
  other = Sessions(folder, OpenedRun(Engine(*model(seed=1)), Unending()), LIMITS)
  assert other.list("") == [] and other.others == 1
  assert told(other.get, kept.id, "") == "no_session"
  other.close()
  assert (folder / f"{kept.id}.state").is_file()


def test_one_request_at_a_time_changes_a_session(run, sessions):
  kept = sessions.add(read(run, "one text"), "", "")
  same, session = sessions.borrow(kept.id, "")
  for call in (sessions.borrow, sessions.fork, sessions.remove):
    assert told(call, kept.id, "") == "session_busy"
  session.read("more")
  sessions.give_back(same, session)
  assert sessions.get(kept.id, "").tokens == 13
  same, session = sessions.borrow(kept.id, "")
  session.read("and more")
  sessions.drop(same)  # a request that failed
  assert sessions.fork(kept.id, "").positions == [13]


@pytest.mark.parametrize("in_memory", [True, False])
def test_forks_of_one_session_do_not_refuse_each_other(run, sessions, in_memory):
  kept = sessions.add(read(run, "one text"), "", "")
  for _ in range(0 if in_memory else LIMITS.in_memory):
    sessions.add(read(run, "x"), "", "")
  with ThreadPoolExecutor(8) as threads:
    forks = [*threads.map(lambda _: sessions.fork(kept.id, ""), range(16))]
  assert [fork.positions for fork in forks] == [[kept.tokens]] * 16
  _, session = sessions.borrow(kept.id, "")  # and none of them is the session itself
  assert session not in forks


def test_a_file_that_is_opened_stays_as_it_was(run, sessions):
  kept = sessions.add(read(run, "one text"), "", "")
  with sessions.opened(kept.id, "") as file:
    same, session = sessions.borrow(kept.id, "")
    session.read("and much more text")
    sessions.give_back(same, session)
    content = file.read()
  assert content != sessions.file(kept.id, "").read_bytes()
  sessions.file(kept.id, "").unlink()
  assert told(sessions.opened, kept.id, "") == "session_lost"


def test_owners_do_not_see_each_other(run, sessions):
  kept = sessions.add(read(run, "one text"), "a", "")
  assert [each.id for each in sessions.list("a")] == [kept.id] and sessions.list("b") == []
  for call in (sessions.get, sessions.borrow, sessions.fork, sessions.opened, sessions.remove):
    assert told(call, kept.id, "b") == "no_session"
    assert told(call, f"../{kept.id}", "a") == "no_session"


def test_there_is_room_for_so_many(run, sessions):
  for _ in range(3):
    sessions.add(read(run, "x"), "", "")
  with sessions.room(), sessions.room():
    assert told(sessions.room().__enter__) == "too_many_sessions"
  with sessions.room():
    pass


def test_two_servers_cannot_have_one_folder(run, sessions, tmp_path):
  with pytest.raises(InputError, match="end the other server"):
    Sessions(tmp_path / "kept", run, LIMITS)
