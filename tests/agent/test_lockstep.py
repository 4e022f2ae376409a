"""Threads that meet at each call: what is answered together, in which order, and what an error or an end does."""

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from sacref.agent.lockstep import Lockstep
from tests.threads import in_threads


def together(programs: list[list[Any]], urgency: Any = lambda kind: 0) -> tuple[list[list[Any]], list[Any]]:
    """Threads that ask for the kinds of their programs, one after the other: what each was answered, and the groups that were."""
    groups: list[Any] = []

    def answer(kind: Any, requests: Mapping[int, Any]) -> dict[int, Any]:
        groups.append((kind, sorted(requests)))
        if kind == "fail":
            raise ValueError("no answer")
        return {member: (kind, 10 * request) for member, request in requests.items()}

    lockstep: Lockstep[int, Any] = Lockstep(len(programs), answer, urgency)
    answers: list[list[Any]] = [[] for _ in programs]

    def member(number: int) -> None:
        try:
            for step, kind in enumerate(programs[number]):
                try:
                    answers[number].append(lockstep.call(number, kind, 100 * number + step))
                except ValueError as error:
                    answers[number].append(str(error))
        finally:
            lockstep.leave(number)

    in_threads(len(programs), member, 20)
    return answers, groups


def test_calls_of_all_are_answered_at_once() -> None:
    answers, groups = together([["a", "b"]] * 3)
    assert groups == [("a", [0, 1, 2]), ("b", [0, 1, 2])]
    assert answers == [[("a", 1_000 * number), ("b", 1_000 * number + 10)] for number in range(3)]


def test_who_is_behind_is_answered_first_and_they_meet_again() -> None:
    _, groups = together([["a", "b", "b"], ["a", "a", "b", "b"], ["a", "a", "a", "b", "b"]], urgency=lambda kind: kind == "a")
    assert groups == [("a", [0, 1, 2]), ("a", [1, 2]), ("a", [2]), ("b", [0, 1, 2]), ("b", [0, 1, 2])]


def test_what_most_ask_for_is_answered_before_what_few_do() -> None:
    _, groups = together([["a", "c"], ["b", "c"], ["b", "c"]])
    assert groups[0] == ("b", [1, 2])
    assert sorted(groups) == [("a", [0]), ("b", [1, 2]), ("c", [0]), ("c", [1, 2])]


def test_who_begins_later_catches_up_with_those_who_wait_where_all_meet() -> None:
    _, groups = together([["b", "c", "b", "c"], ["b", "c", "b", "c"], ["a", "a", "b", "c"]], urgency=lambda kind: kind != "c")
    assert groups == [("b", [0, 1]), ("a", [2]), ("a", [2]), ("b", [2]), ("c", [0, 1, 2]), ("b", [0, 1]), ("c", [0, 1])]


def test_nobody_waits_for_who_has_left() -> None:
    _, groups = together([["a"], ["a", "a", "a"]])
    assert groups == [("a", [0, 1]), ("a", [1]), ("a", [1])]


def test_an_error_reaches_all_who_asked_and_nobody_else() -> None:
    answers, _ = together([["fail", "a"], ["fail", "a"], ["a", "a"]])
    assert [answer[0] for answer in answers] == ["no answer", "no answer", ("a", 2_000)]
    assert [answer[1][0] for answer in answers] == ["a", "a", "a"]


def test_an_answer_that_leaves_a_member_out_is_an_error_and_no_endless_wait() -> None:
    lockstep: Lockstep[int, int] = Lockstep(1, lambda kind, requests: {})
    with pytest.raises(KeyError):
        lockstep.call(0, "a", 1)


def test_the_end_reaches_who_waits_and_who_comes_later() -> None:
    lockstep: Lockstep[int, int] = Lockstep(2, lambda kind, requests: requests)
    raised: list[BaseException] = []

    def waits() -> None:
        try:
            lockstep.call(0, "a", 1)
        except KeyboardInterrupt as error:
            raised.append(error)

    thread = threading.Thread(target=waits, daemon=True)
    thread.start()
    end = KeyboardInterrupt()
    lockstep.end(end)
    thread.join(20)
    assert raised == [end]
    with pytest.raises(KeyboardInterrupt):
        lockstep.call(1, "a", 1)


@pytest.mark.parametrize("members", [1, 8])
def test_many_calls_lose_none(members: int) -> None:
    answers, groups = together([["a"] * 200] * members)
    assert len(groups) == 200
    assert all(answer == [("a", 10 * (100 * number + step)) for step in range(200)] for number, answer in enumerate(answers))
