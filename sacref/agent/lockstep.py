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
    different steps, one kind is answered, the most urgent one, and of several what most ask for; the others wait on. So they meet again.

    Args:
        members: how many there are; each is a thread.
        answer: `(kind, member -> request) -> member -> answer`. It is called by one thread at a time.
        urgency: of a kind; higher comes before lower. What the members are to meet at is the least urgent: who is behind then catches up.
    """

    def __init__(
        self,
        members: int,
        answer: Callable[[Hashable, Mapping[int, RequestT]], Mapping[int, AnswerT]],
        urgency: Callable[[Hashable], int] = lambda kind: 0,
    ) -> None:
        self._answer, self._urgency = answer, urgency
        self._there = set(range(members))
        self._asked: dict[int, tuple[Hashable, RequestT]] = {}
        self._answers: dict[int, AnswerT | BaseException] = {}
        self._ended: BaseException | None = None
        self._condition = threading.Condition()

    def call(self, member: int, kind: Hashable, request: RequestT) -> AnswerT:
        """Return the answer to a member's request, once all members ask for something.

        Raises:
            BaseException: what `answer` raised, for all whose requests it was given; or what `end` was given, for all.
        """
        with self._condition:
            if self._ended is not None:
                raise self._ended
            self._asked[member] = kind, request
            self._answer_if_all_ask()
            while member not in self._answers:
                self._condition.wait()
                if self._ended is not None:
                    raise self._ended
            answer = self._answers.pop(member)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def leave(self, member: int) -> None:
        """Let the others no longer wait for a member, whose run has ended."""
        with self._condition:
            self._there.discard(member)
            self._answer_if_all_ask()

    def end(self, error: BaseException) -> None:
        """Raise `error` from all calls, those that wait included."""
        with self._condition:
            self._ended = error
            self._condition.notify_all()

    def _answer_if_all_ask(self) -> None:
        if not self._there or self._asked.keys() != self._there:
            return
        kinds = Counter(kind for kind, _ in self._asked.values())
        kind = max(kinds, key=lambda each: (self._urgency(each), kinds[each]))
        requests = {member: request for member, (of, request) in self._asked.items() if of == kind}
        answers: dict[int, Any]
        try:
            answered = self._answer(kind, requests)
            answers = {member: answered[member] for member in requests}
        except BaseException as error:  # of any kind: who gets none waits for ever
            answers = dict.fromkeys(requests, error)
        for member in requests:
            del self._asked[member]
        self._answers |= answers
        self._condition.notify_all()
