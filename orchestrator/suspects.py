"""Which request ended its engine: those that may have are tried one at a time. Pure.

An engine that dies may have been ended by any request that had a slot, or by nobody here. So those
become *suspects*, and nobody else is asked of the next engine before each of them has been tried:
one at a time, first those that died on trial before, then those that were acquitted least often,
then by class. A suspect is acquitted once it has gone `TRIAL_TOKENS` beyond the place where its
engine died, has been answered, or has taken `TRIAL_SECONDS_MAX`; then it goes on, beside the trials
of the others. One whose engine dies while it is alone in it is tried again, and after
`DEATHS_ALONE_MAX` of these deaths it is the culprit. An engine that died of a signal from outside
makes suspects as well, who survive their trial.

A request can have had a slot that nobody heard of: an engine that aborts in its first step says
nothing any more. Hence one that was under way at `DEATHS_UNHEARD_MAX` deaths is suspected, whatever
was heard of it. Every death thus either finds a request alone, or leaves the suspects tried before
it with `TRIAL_TOKENS` more than they had, so that nobody waits for ever.
"""

from typing import Final

import msgspec

TRIAL_TOKENS: Final = 32
"""What is heard of a request lags behind its engine by `KEPT_INTERVAL_US` of tokens, which are 20
at most of one sequence; beyond them it has passed the place where the engine died."""

TRIAL_SECONDS_MAX: Final = 60.0
"""A prompt of 8,000 tokens at 170 tokens/s takes 47 s, and one that waits for its agent's quota
waits a minute at most: nobody else is to wait for longer than that."""

DEATHS_ALONE_MAX: Final = 2
"""The first may have been an accident, such as an operator's signal at that moment."""

DEATHS_UNHEARD_MAX: Final = 2
"""Most requests that wait in the queue of an engine that dies have nothing to do with it."""


class _Request(msgspec.Struct):
    """`tokens` is how far it is. A suspect has a `goal`, at which it is acquitted."""

    rank: int
    tokens: int = 0
    under_way: bool = False
    heard: bool = False
    unheard_deaths: int = 0
    deaths_alone: int = 0
    deaths_on_trial: int = 0
    acquittals: int = 0
    goal: int | None = None
    culprit: bool = False


class Suspects:
    """The requests of one engine, over all its lives. Every request enters, and leaves in the end.

    In between it is `asked` when `may_ask` allows it, and falls when the engine ends under it.
    """

    def __init__(self) -> None:
        self._requests: dict[int, _Request] = {}
        self._entered = 0
        self._trial: int | None = None
        self._fallen: set[int] = set()
        """Those that have noticed the present death, until all have that were under way."""
        self._deliberate = False

    # -- questions

    def __len__(self) -> int:
        """Requests that have entered and not left."""
        return len(self._requests)

    def may_ask(self, request: int) -> bool:
        """Whether the engine may be asked now: it is up, as far as is known here."""
        if self._fallen or self._trial is not None:
            return False
        first = self._first_suspect()
        return first is None or first == request

    def on_trial(self, request: int) -> bool:
        return self._trial == request

    def is_culprit(self, request: int) -> bool:
        """Whether it is not to be asked again."""
        return self._requests[request].culprit

    # -- events

    def enter(self, rank: int) -> int:
        """A new request of that rank, 0 for urgent: its number."""
        self._entered += 1
        self._requests[self._entered] = _Request(rank)
        return self._entered

    def ask(self, request: int) -> None:
        """It is asked of the engine."""
        assert self.may_ask(request)
        one = self._requests[request]
        one.under_way, one.heard = True, False
        if one.goal is not None:
            self._trial = request

    def hear(self, request: int, tokens: int) -> None:
        """It has a slot, and so many tokens by now."""
        one = self._requests[request]
        one.heard, one.unheard_deaths, one.tokens = True, 0, tokens
        if one.goal is not None and tokens >= one.goal:
            self.acquit(request)

    def acquit(self, request: int) -> None:
        """Its trial is over, and the engine lives."""
        one = self._requests[request]
        one.goal, one.deaths_alone, one.deaths_on_trial = None, 0, 0
        one.acquittals += 1
        if self._trial == request:
            self._trial = None

    def fall(self, request: int, *, deliberate: bool) -> None:
        """The engine has ended under it; `deliberate` where it was told to. Every request that was
        under way says so, and the last one settles what follows."""
        self._requests[request].under_way = False
        self._fallen.add(request)
        self._deliberate |= deliberate
        self._settle()

    def leave(self, request: int) -> None:
        """It is answered, refused or withdrawn."""
        if self._trial == request:
            self._trial = None
        del self._requests[request]
        self._fallen.discard(request)
        self._settle()

    # -- one death

    def _settle(self) -> None:
        if any(one.under_way for one in self._requests.values()):
            return
        alone = len(self._fallen) == 1
        if not self._deliberate:
            for request in self._fallen:
                self._requests[request].deaths_on_trial += request == self._trial
                self._suspect(self._requests[request], alone)
        self._fallen.clear()
        self._trial, self._deliberate = None, False

    def _suspect(self, one: _Request, alone: bool) -> None:
        if alone:
            one.deaths_alone += 1
            one.culprit = one.deaths_alone >= DEATHS_ALONE_MAX
        if not one.heard:
            one.unheard_deaths += 1
        if one.heard or alone or one.unheard_deaths >= DEATHS_UNHEARD_MAX or one.goal is not None:
            one.goal = one.tokens + TRIAL_TOKENS

    def _first_suspect(self) -> int | None:
        # One that died beside others who had been acquitted goes first next time, and so alone.
        suspects = [
            (-one.deaths_on_trial, one.acquittals, one.rank, number)
            for number, one in self._requests.items()
            if one.goal is not None and not one.under_way
        ]
        return min(suspects)[-1] if suspects else None
