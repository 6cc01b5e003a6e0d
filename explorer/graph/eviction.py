"""Who stays when a budget of bytes is full: what is dear to compute again, for each byte it takes.

The rule is GreedyDual-Size (Cao and Irani, 1997) with two changes, both for evaluations, which go through the
same batches in the same order again and again.  Under such a scan a plain queue of any kind evicts each value
just before it is asked for.  So a newcomer gets in only past values of which clearly less is left than it brings;
and what ages those that stay is the volume of newcomers, so that values which nobody uses any more give way after
a few scans while those in use are renewed by each.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

# A newcomer must bring more than twice what is left of the one it displaces: equals do not displace each other.
_ADMIT = 0.5
# Newcomers of eight times the budget use up what a value of their own worth brought.
_AGE = 1 / 8
# How many may go for one newcomer, which bounds the work of an insertion.
_MOST_VICTIMS = 256


@dataclass(eq=False, slots=True)
class _Member:
    key: str
    size: int
    worth: float
    credit: float


class Ranking:
    """Keys with their sizes, together never above a budget.  Not for several threads at once.

    Args:
        budget: bytes.

    >>> ranking = Ranking(100)
    >>> ranking.add("cheap", 60, seconds=1.0), ranking.add("dear", 60, seconds=9.0)
    ([], ['cheap'])
    >>> ranking.add("cheap", 60, seconds=1.0) is None, ranking.bytes
    (True, 60)
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = 0
        self._age = 0.0
        self._members: dict[str, _Member] = {}
        self._heap: list[tuple[float, int, _Member]] = []
        self._count = 0

    def __contains__(self, key: str) -> bool:
        return key in self._members

    def __len__(self) -> int:
        return len(self._members)

    def add(self, key: str, size: int, seconds: float) -> list[str] | None:
        """Take in ``key``; the keys that went for it, or None when it is not worth their going."""
        self.drop(key)
        worth = seconds / max(size, 1)
        over = self.bytes + size - self.budget
        victims: list[_Member] = []
        if over > 0:
            self._age += worth * min(size / self.budget, 1.0) * _AGE
            if size > self.budget:
                return None
            freed = 0
            while freed < over:
                least = self._least()
                if least.credit - self._age >= _ADMIT * worth or len(victims) == _MOST_VICTIMS:
                    for member in victims:
                        self._push(member)
                    return None
                heapq.heappop(self._heap)
                victims.append(least)
                freed += least.size
            for member in victims:
                del self._members[member.key]
                self.bytes -= member.size
        member = _Member(key, size, worth, self._age + worth)
        self._members[key] = member
        self.bytes += size
        self._push(member)
        return [victim.key for victim in victims]

    def touch(self, key: str) -> None:
        """Renew ``key``, which is in use."""
        member = self._members.get(key)
        if member is not None:
            # Its place in the heap is put right when it comes to the top.
            member.credit = self._age + member.worth

    def drop(self, key: str) -> None:
        """Forget ``key``."""
        member = self._members.pop(key, None)
        if member is None:
            return
        self.bytes -= member.size
        if len(self._heap) > 2 * len(self._members) + 64:
            self._heap = [item for item in self._heap if self._members.get(item[2].key) is item[2]]
            heapq.heapify(self._heap)

    def _push(self, member: _Member) -> None:
        self._count += 1
        heapq.heappush(self._heap, (member.credit, self._count, member))

    def _least(self) -> _Member:
        """The member with the least credit, left at the top of the heap."""
        while True:
            credit, _, member = self._heap[0]
            if self._members.get(member.key) is not member:
                heapq.heappop(self._heap)
            elif credit < member.credit:
                heapq.heappop(self._heap)
                self._push(member)
            else:
                return member
