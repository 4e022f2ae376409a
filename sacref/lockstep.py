"""Threads that make the same calls in the same order, so that what all of them ask for can be done at once."""

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, TypeVar

RequestT = TypeVar("RequestT")
AnswerT = TypeVar("AnswerT")


class Lockstep(Generic[RequestT, AnswerT]):
    """Members wait for each other at each call; the last one to come has the calls answered, all of one kind together.

    Where members wait at calls of different kinds, since the episodes of an evaluation end at different times or runs were taken up at
    different steps, one kind is answered, `first` before others, then what most ask for; the others wait on. So they meet again.

    Args:
        members: how many there are; each is a thread.
        answer: `(kind, member -> request) -> member -> answer`. It is called by one thread at a time.
        first: kinds that are answered before all others.
    """

    def __init__(
        self,
        members: int,
        answer: Callable[[Hashable, Mapping[int, RequestT]], Mapping[int, AnswerT]],
        first: Callable[[Hashable], bool] = lambda kind: False,
    ) -> None:
        self._answer, self._first = answer, first
        self._there = set(range(members))
        self._asked: dict[int, tuple[Hashable, RequestT]] = {}
        self._answers: dict[int, AnswerT | BaseException] = {}
        self._condition = threading.Condition()

    def call(self, member: int, kind: Hashable, request: RequestT) -> AnswerT:
        """The answer to a member's request, once all members ask for something.

        Raises:
            Exception: what `answer` raised; all whose requests it was given get it.
        """
        with self._condition:
            self._asked[member] = kind, request
            self._answer_if_all_ask()
            while member not in self._answers:
                self._condition.wait()
            answer = self._answers.pop(member)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def leave(self, member: int) -> None:
        """The others no longer wait for a member, whose run has ended."""
        with self._condition:
            self._there.discard(member)
            self._answer_if_all_ask()

    def _answer_if_all_ask(self) -> None:
        if not self._there or self._asked.keys() != self._there:
            return
        kinds = Counter(kind for kind, _ in self._asked.values())
        kind = max(kinds, key=lambda each: (self._first(each), kinds[each]))
        requests = {member: request for member, (of, request) in self._asked.items() if of == kind}
        answers: Mapping[int, Any]
        try:
            answers = self._answer(kind, requests)
        except BaseException as error:
            answers = dict.fromkeys(requests, error)
        for member in requests:
            del self._asked[member]
            self._answers[member] = answers[member]
        self._condition.notify_all()
