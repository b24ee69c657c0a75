"""The life of a delivery in the model, and what is handed to workers."""

from collections.abc import Sequence

from modelled_tables import Refusal
from modelled_talks import ModelledTalks
from modelled_things import (
    Delivery,
    Letter,
)

from orchestrator.bus.handing import GivenBack, Leased
from orchestrator.bus.limits import (
    DEATHS_MAX,
    RUNS_MAX,
)


class ModelledLives(ModelledTalks):
    # ---- The life of a delivery -----------------------------------------------------------------

    def require_held(self, number: int, worker: str, agent: str | None = None) -> Delivery:
        found = self.numbered(number)
        mine = found is not None and found.state == "leased" and found.holder == worker
        if found is None or not mine or (agent is not None and found.agent != agent):
            raise Refusal("work.unknown-delivery")
        return found

    def taken(self, delivery: Delivery) -> None:
        """It is not in its worker's hands any more."""
        hands = self.hands.get(delivery.holder or "", [])
        if delivery in hands:
            hands.remove(delivery)

    def queue(self, delivery: Delivery, *, displaced: bool) -> None:
        self.taken(delivery)
        delivery.state, delivery.reason, delivery.until_us = "queued", None, None
        delivery.waits_for = None
        delivery.ready_since = self.step - 1
        current = self.workers.get(delivery.agent)
        replaced = current is None or current.name != delivery.holder
        delivery.displaced |= displaced or replaced

    def give_back(self, worker: str, *, told: bool) -> list[Delivery]:
        rest = self.held(worker)
        for each in rest:
            self.queue(each, displaced=not told)
        if told:
            self.given_back.add(worker)
        return rest

    def park(self, delivery: Delivery, reason: str, until_us: int | None, *, rest: bool) -> None:
        self.taken(delivery)
        delivery.state, delivery.reason, delivery.until_us = "parked", reason, until_us
        if rest:
            assert delivery.holder is not None
            self.give_back(delivery.holder, told=True)

    def bury(self, delivery: Delivery, code: str, deaths: int) -> None:
        self.taken(delivery)
        delivery.state, delivery.deaths, delivery.reason = "dead", deaths, None
        delivery.until_us = delivery.waits_for = None
        message = delivery.message
        letter = Letter(delivery, code, message.topic, message.payload, message)
        self.letters.append(letter)
        self.closed(delivery)

    def resume_due(self) -> int:
        late = [
            each
            for each in self.deliveries
            if each.state == "queued"
            and not each.ever_begun
            and each.message.expires_us <= self.now_us
        ]
        for each in late:
            self.bury(each, "bus.expired", each.deaths)
        due = [
            each
            for each in self.deliveries
            if each.state == "parked" and each.until_us is not None and each.until_us <= self.now_us
        ]
        for each in due:
            self.queue(each, displaced=True)
            each.ready_since = self.step  # one after the other
        return len(due)

    def next_due_us(self) -> int | None:
        times = [
            each.until_us
            for each in self.deliveries
            if each.state == "parked" and each.until_us is not None
        ]
        times += [
            each.message.expires_us
            for each in self.deliveries
            if each.state == "queued" and not each.ever_begun
        ]
        return min(times, default=None)

    def may_begin_anew(self, delivery: Delivery) -> bool:
        return not delivery.tool_used and delivery.run + 1 < RUNS_MAX

    def fail(
        self,
        number: int,
        worker: str,
        *,
        worker_died: bool,
        final: bool,
        anew: bool,
        rest: bool,
    ) -> str:
        delivery = self.numbered(number)
        if delivery is None:
            raise Refusal("work.unknown-delivery")
        if delivery.state != "leased" or delivery.holder != worker:
            return delivery.state
        deaths = delivery.deaths + worker_died
        again = anew and self.may_begin_anew(delivery)
        if (final and not again) or deaths >= DEATHS_MAX:
            self.bury(delivery, "work.refused" if final else "work.deaths", deaths)
        else:
            self.queue(delivery, displaced=not rest)
            delivery.deaths = deaths
            if again:
                delivery.begin_anew()
        state = delivery.state
        if rest:
            self.give_back(worker, told=True)
        return state

    # ---- What the bus hands to workers ----------------------------------------------------------

    def hand(self, handed: Sequence[tuple[str, object]]) -> None:
        """Take what was handed over in this step, and check that it was next."""
        markers = {
            name: n for n, (name, thing) in enumerate(handed) if isinstance(thing, GivenBack)
        }
        assert set(markers) == self.given_back, (markers, self.given_back)
        self.given_back.clear()
        for number, (name, thing) in enumerate(handed):
            if isinstance(thing, GivenBack):
                for each in self.held(name):
                    self.queue(each, displaced=False)
                continue
            assert isinstance(thing, Leased)
            self._hand_one(name, thing, lasts=number > markers.get(name, -1))

    def _hand_one(self, worker: str, leased: Leased, *, lasts: bool) -> None:
        delivery = self.numbered(leased.delivery.delivery)
        assert delivery is not None and self.leasable(delivery), (leased, delivery)
        credit = self.workers.get(delivery.agent)
        assert credit is not None and credit.name == worker, "a worker without credit"
        hands = self.hands.setdefault(worker, [])
        if lasts:
            assert len(hands) < credit.window, f"{worker} has {len(hands)} already"
            self._require_next(delivery, hands)
        if delivery.begun is not None and delivery.begun[2] != credit.component:
            delivery.begin_anew()
        if delivery.begun is None:
            delivery.begun = (self.now_us, leased.delivery.seed, credit.component)
        self._require_whole(delivery, leased)
        delivery.state, delivery.holder, delivery.ever_begun = "leased", worker, True
        hands.append(delivery)

    def _require_next(self, delivery: Delivery, hands: list[Delivery]) -> None:
        for each in self.deliveries:
            if each.agent != delivery.agent or not self.leasable(each) or each is delivery:
                continue
            waited = each.ready_since < self.step
            inorder = each.rank == delivery.rank and not each.displaced
            earlier = each.place < delivery.place and (waited or inorder)
            assert not earlier, f"{each} waits, and {delivery} was handed over"
        for each in hands:
            same = (each.message.sender, each.rank) == (delivery.message.sender, delivery.rank)
            overtaken = same and each.number > delivery.number
            assert not overtaken or delivery.displaced, f"{each} was handed over before {delivery}"

    def _require_whole(self, delivery: Delivery, leased: Leased) -> None:
        """The worker sees what was published, and the beginning of its run as it was."""
        sent, message = leased.delivery, delivery.message
        assert delivery.begun is not None
        assert (sent.begun_us, sent.seed, leased.setting.component) == delivery.begun
        assert (sent.message, sent.topic, sent.sender, sent.payload) == (
            message.number,
            message.topic,
            message.sender,
            message.payload,
        )
        assert sent.correlation == message.conversation.name
        assert (sent.attempt, sent.rank, sent.hops, sent.expires_us) == (
            delivery.deaths + 1,
            delivery.rank,
            message.hops,
            message.expires_us,
        )
        assert (sent.must_take, sent.deferred, leased.composing) == (
            delivery.must_take,
            delivery.deferred,
            delivery.composing,
        )
        assert sent.evidence == delivery.evidence
        if delivery.composing:
            said = [
                (each.sender, each.payload.decode())
                for each in self.answers(message.conversation, message.round)
                if each.number < message.number
            ]
            assert [(each.agent, each.text) for each in sent.answers] == said
