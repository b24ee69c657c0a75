"""A simple model of the bus: plain objects, one thing after the other, nothing kept twice.

It says what must be true after each step. What it leaves open is which of the deliveries that wait
are leased when: it is told by the bus, and checks that those were the first in the queue (`hand`).
"""

import re
from collections.abc import Sequence

from modelled_things import (
    URGENCIES,
    Agent,
    Conversation,
    Delivery,
    Letter,
    Message,
    Question,
    Route,
    Worker,
    fits,
)

from ipc_protocol.limits import PAYLOAD_BYTES_MAX
from ipc_protocol.work import Completion
from orchestrator.bus.handing import GivenBack, Leased
from orchestrator.bus.limits import (
    BACKPRESSURE_RETRY_US,
    DEATHS_MAX,
    DEFERRAL_US_MAX,
    DEFERRAL_US_MIN,
    HOPS_MAX,
    MESSAGE_TTL_US,
    OUTPUTS_MAX,
    RUNS_MAX,
)
from orchestrator.bus.opening import Publish


class Refusal(Exception):
    """The bus must refuse it with this code, and change nothing."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class ModelledBus:
    def __init__(self, agents: Sequence[Agent]) -> None:
        self.agents = {agent.name: agent for agent in agents}
        self.now_us = 1_800_000_000_000_000
        self.step = 0
        self.conversations: list[Conversation] = []
        self.messages: list[Message] = []
        self.deliveries: list[Delivery] = []
        self.letters: list[Letter] = []
        self.questions: list[Question] = []
        self.memories: list[tuple[str, str, Delivery]] = []
        self.tasks: dict[int, tuple[str, str]] = {}
        self.state: dict[tuple[str, str], bytes] = {}
        self.workers: dict[str, Worker] = {}
        self.hands: dict[str, list[Delivery]] = {}
        """What each worker was handed and has not been taken from it, in order."""
        self.given_back: set[str] = set()
        """Workers that must be told in this step that nothing is leased to them any more."""
        self.accepted = 0
        self.cleaned = 0

    # ---- Questions ------------------------------------------------------------------------------

    @property
    def conductor(self) -> Agent | None:
        return next((each for each in self.agents.values() if each.conductor and each.active), None)

    def inbox(self, agent: str) -> list[Delivery]:
        return [
            each
            for each in self.deliveries
            if each.agent == agent and not each.finished and not each.composing
        ]

    def room(self, agent: str, sender: str, coming: Sequence[str] = ()) -> int:
        """Messages that fit, one by one: each as long as something is free, and the sender has no
        more in it than seven times what is free."""
        inbox = self.inbox(agent)
        free = self.agents[agent].inbox - len(inbox) - coming.count(agent)
        own = sum(each.message.sender == sender for each in inbox) + coming.count(agent)
        count = 0
        while free > 0 and own <= 7 * free:
            free, own, count = free - 1, own + 1, count + 1
        return count

    def leasable(self, delivery: Delivery) -> bool:
        in_time = delivery.message.expires_us > self.now_us or delivery.ever_begun
        return delivery.state == "queued" and delivery.screened and in_time

    def held(self, worker: str) -> list[Delivery]:
        return [
            each for each in self.deliveries if each.state == "leased" and each.holder == worker
        ]

    def numbered(self, number: int) -> Delivery | None:
        return next((each for each in self.deliveries if each.number == number), None)

    def under_way(self, conversation: Conversation) -> bool:
        return any(
            each.message.conversation is conversation and not each.finished and not each.composing
            for each in self.deliveries
        )

    def answers(self, conversation: Conversation, number: int) -> list[Message]:
        return [
            each
            for each in self.messages
            if each.conversation is conversation
            and each.round == number
            and each.topic == "user.reply"
            and not each.composed
        ]

    def route(
        self,
        sender: str,
        topic: str,
        *,
        size: int = 0,
        hops: int = 0,
        expires_us: int | None = None,
        count: int = 1,
        coming: Sequence[str] = (),
    ) -> Route:
        words = topic.split(".")
        if any(re.fullmatch("[a-z0-9_-]+", word) is None for word in words):
            return Route("bus.invalid-topic")
        if size > PAYLOAD_BYTES_MAX:
            return Route("bus.payload-too-large")
        if hops > HOPS_MAX or (expires_us is not None and expires_us <= self.now_us):
            return Route("bus.expired")
        addressed = topic.removeprefix("agent.") if topic.startswith("agent.") else None
        agent = self.agents.get(sender)
        if sender == "operator":
            allowed = topic != "user.reply"
        elif agent is None or not (agent.active or agent.retired):
            allowed = False
        elif addressed is not None:
            allowed = addressed in agent.delegates
        else:
            allowed = any(fits(pattern, topic) for pattern in agent.publishes)
        if not allowed:
            return Route("bus.not-permitted")
        if topic == "user.reply":
            return Route(sink=True)
        active = [each for each in self.agents.values() if each.active]
        if addressed is not None:
            names = [each.name for each in active if each.name == addressed]
        else:
            names = sorted(
                each.name
                for each in active
                if each.name != sender and any(fits(p, topic) for p in each.consumes)
            )
        if not names:
            return Route("bus.no-subscriber")
        full = tuple(name for name in names if self.room(name, sender, coming) < count)
        if full:
            return Route("bus.backpressure", full=full)
        return Route(receivers=tuple(names), direct=addressed is not None)

    # ---- Messages -------------------------------------------------------------------------------

    def post(
        self, message: Message, receivers: Sequence[str], *, screened: bool, must_take: bool = False
    ) -> Message:
        self.messages.append(message)
        self.accepted += len(receivers)
        for name in receivers:
            agent = self.agents[name]
            self.deliver(
                Delivery(
                    message=message,
                    agent=name,
                    rank=min(message.rank, agent.rank),
                    screened=screened or must_take or not agent.screened,
                    must_take=must_take,
                )
            )
        return message

    def deliver(self, delivery: Delivery) -> Delivery:
        delivery.ready_since = self.step
        self.deliveries.append(delivery)
        return delivery

    def publish(self, request: Publish) -> tuple[list[Message], int]:
        """As the operator. The messages in the order of the payloads, and how many there were."""
        ids: Sequence[str | None] = request.message_ids or [None] * len(request.payloads)
        if len(ids) != len(request.payloads) or (request.message_ids and len(set(ids)) < len(ids)):
            raise Refusal("request.invalid")
        known: dict[str | None, Message] = {
            each.publisher_id: each for each in self.messages if each.publisher_id is not None
        }
        fresh = [(p, i) for p, i in zip(request.payloads, ids, strict=True) if i not in known]
        if not fresh:
            return [known[each] for each in ids if each is not None], len(ids)
        expires_us = request.expires_us or self.now_us + MESSAGE_TTL_US
        route = self.route(
            "operator",
            request.topic,
            size=max(len(payload) for payload, _ in fresh),
            expires_us=expires_us,
            count=len(fresh),
        )
        if route.error:
            raise Refusal(route.error)
        talk = None if request.correlation is None else self._entered(request, len(fresh))
        for payload, publisher_id in fresh:
            own = talk or self._opened(request, "")
            message = Message(
                conversation=own,
                round=own.round,
                topic=request.topic,
                sender="operator",
                rank=own.rank,
                payload=payload,
                expires_us=expires_us,
                publisher_id=publisher_id,
                receipt=route.receivers,
            )
            own.messages += 1
            own.question = own.question or message
            self.post(message, route.receivers, screened=request.screened)
        posted = iter(self.messages[-len(fresh) :])
        inorder = [known[i] if i in known else next(posted) for i in ids]
        return inorder, len(ids) - len(fresh)

    def _opened(self, request: Publish, name: str) -> Conversation:
        rank = URGENCIES.index(request.priority or "normal")
        self.conversations.append(Conversation(rank=rank, asked=request.asked, name=name))
        return self.conversations[-1]

    def _entered(self, request: Publish, count: int) -> Conversation:
        assert request.correlation is not None
        found = [each for each in self.conversations if each.name == request.correlation]
        if not found:
            return self._opened(request, request.correlation)
        talk = found[0]
        if talk.state == "answered":
            talk.question, talk.asked = None, request.asked
        if request.priority is not None:
            talk.rank = min(talk.rank, URGENCIES.index(request.priority))
        self.contribute(talk)
        return talk

    # ---- Conversations --------------------------------------------------------------------------

    def contribute(self, talk: Conversation) -> None:
        if talk.state == "answered":
            talk.round += 1
        talk.state, talk.composer = "open", None

    def settle(self, talk: Conversation) -> None:
        if talk.state != "open" or self.under_way(talk):
            return
        conductor = self.conductor
        if conductor is None or not (talk.asked or self.answers(talk, talk.round)):
            self.answer(talk, self.joined(talk, talk.round))
            return
        message = Message(
            conversation=talk,
            round=talk.round,
            topic=f"agent.{conductor.name}",
            sender="bus",
            rank=talk.rank,
            payload=b"",
            expires_us=self.now_us + MESSAGE_TTL_US,
            cause=talk.question,
        )
        self.compose(talk, message, conductor.name, min(talk.rank, conductor.rank))

    def compose(self, talk: Conversation, message: Message, agent: str, rank: int) -> None:
        self.messages.append(message)
        self.accepted += 1
        talk.state = "composing"
        talk.composer = self.deliver(
            Delivery(
                message=message,
                agent=agent,
                rank=rank,
                screened=True,
                must_take=True,
                composing=True,
            )
        )

    def joined(self, talk: Conversation, number: int) -> str:
        return "\n\n".join(
            f"{each.sender}: {each.payload.decode()}" for each in self.answers(talk, number)
        )

    def answer(self, talk: Conversation, reply: str) -> None:
        talk.state, talk.reply, talk.composer = "answered", reply, None
        talk.answered_us = self.now_us

    def closed(self, delivery: Delivery) -> None:
        talk = delivery.message.conversation
        if delivery.composing:
            if talk.state == "composing" and talk.composer is delivery:
                self.answer(talk, self.joined(talk, delivery.message.round))
        elif not self._fell_back(delivery.message):
            self.settle(talk)

    def _fell_back(self, message: Message) -> bool:
        owner = self.agents.get(message.fallback or "")
        if owner is None or not owner.active:
            return False
        evidence = None
        for each in self.deliveries:
            if each.message is not message:
                continue
            dead = each.state == "dead" and each.agent != owner.name
            if each.must_take or not (each.outcome == "ignored" or dead):
                return False
            if each.agent == owner.name and each.evidence is not None:
                evidence = each.evidence
        self.accepted += 1
        rank = min(message.rank, owner.rank)
        self.deliver(Delivery(message, owner.name, rank, True, must_take=True, evidence=evidence))
        return True

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

    # ---- Completions ----------------------------------------------------------------------------

    def complete(
        self, agent: str, number: int, worker: str, completion: Completion, *, screened: bool
    ) -> dict[str, object]:
        """What the bus must answer, in short."""
        delivery = self.numbered(number)
        if delivery is None or delivery.agent != agent:
            raise Refusal("work.unknown-delivery")
        put_off = delivery.state == "parked" and delivery.reason == "deferred"
        if delivery.state == "done" or (put_off and delivery.holder == worker):
            return {"state": delivery.state, "repeated": True}
        self.require_held(number, worker)
        deferred = completion.outcome == "deferred"
        if deferred and (
            completion.until_us is None
            or completion.until_us - self.now_us > DEFERRAL_US_MAX
            or delivery.run + 1 >= RUNS_MAX
            or completion.outputs
            or completion.tasks
        ):
            raise Refusal("work.refused")
        routes = self._routed(delivery, completion)
        if isinstance(routes, Route):
            self.park(delivery, "backpressure", self.now_us + BACKPRESSURE_RETRY_US, rest=False)
            delivery.displaced = True
            return {"state": "parked", "full": list(routes.full)}
        changed = any(self.state.get((agent, key)) != was for key, was in delivery.read.items())
        if completion.state and changed:
            if not self.may_begin_anew(delivery):
                raise Refusal("work.conflict")
            self.queue(delivery, displaced=False)
            delivery.begin_anew()
            self.give_back(worker, told=True)
            return {"state": "queued"}
        self._require_own_tasks(agent, completion)
        self._keep(agent, completion)
        return self._applied(delivery, completion, routes, screened=screened)

    def _routed(self, delivery: Delivery, completion: Completion) -> list[Route] | Route:
        routes: list[Route] = []
        coming: list[str] = []
        for number, output in enumerate(completion.outputs):
            if number >= OUTPUTS_MAX:
                routes.append(Route("bus.not-permitted"))
                continue
            route = self.route(
                delivery.agent,
                output.topic,
                size=len(output.payload),
                hops=delivery.message.hops + 1,
                coming=coming,
            )
            if route.error == "bus.backpressure" and not any(
                self._filled_alone(name, coming.count(name)) for name in route.full
            ):
                return route
            routes.append(route)
            coming += route.receivers
        return routes

    def _filled_alone(self, name: str, coming: int) -> bool:
        """So many of one sender would not leave room for one more in an inbox that was empty."""
        free = self.agents[name].inbox - coming
        return free <= 0 or coming > 7 * free

    def _require_own_tasks(self, agent: str, completion: Completion) -> None:
        """Tasks are never removed, so they are numbered without a gap."""
        owners = {number: owner for number, (owner, _) in self.tasks.items()}
        for change in completion.tasks:
            if change.id is None:
                owners[len(owners) + 1] = agent
            elif owners.get(change.id) != agent:
                raise Refusal("store.ownership")

    def size_of_state(self, agent: str) -> int:
        own = [(key, value) for (owner, key), value in self.state.items() if owner == agent]
        return sum(len(key) + len(value) + 64 for key, value in own)

    def _keep(self, agent: str, completion: Completion) -> None:
        before, size = dict(self.state), self.size_of_state(agent)
        for change in completion.state:
            if change.value is None:
                self.state.pop((agent, change.key), None)
            else:
                self.state[agent, change.key] = change.value
        own = self.agents[agent]
        allowed = own.state_max if own.active or own.retired else 0
        if completion.state and self.size_of_state(agent) > max(allowed, size):
            self.state = before
            raise Refusal("work.refused")

    def _applied(
        self, delivery: Delivery, completion: Completion, routes: list[Route], *, screened: bool
    ) -> dict[str, object]:
        agent = delivery.agent
        if completion.outcome == "deferred":
            assert completion.until_us is not None
            until_us = max(completion.until_us, self.now_us + DEFERRAL_US_MIN)
            self.park(delivery, "deferred", until_us, rest=False)
            delivery.begin_anew()
            delivery.deferred = delivery.displaced = True
        else:
            self.taken(delivery)
            delivery.state, delivery.outcome = "done", completion.outcome
        self.memories += [(agent, entry.text, delivery) for entry in completion.memories]
        for change in completion.tasks:
            if change.id is None:
                self.tasks[len(self.tasks) + 1] = (agent, change.title or "")
            else:
                self.tasks[change.id] = (agent, change.title or self.tasks[change.id][1])
        letters = len(self.letters)
        posted = self._said(delivery, completion, routes, screened=screened)
        if completion.left_out:
            topic = completion.outputs[-1].topic if completion.outputs else ""
            self.letters.append(Letter(delivery, "work.left-out", topic, b""))
        buried = len(self.letters) - letters
        if delivery.finished:
            self.closed(delivery)
        return {
            "state": delivery.state,
            "messages": posted,
            "dead_letters": buried,
            "memories": len(completion.memories),
            "tasks": len(completion.tasks),
        }

    def _said(
        self, delivery: Delivery, completion: Completion, routes: list[Route], *, screened: bool
    ) -> int:
        talk, posted = delivery.message.conversation, 0
        pairs = list(zip(completion.outputs, routes, strict=True))
        replies = [output.payload.decode() for output, route in pairs if route.sink]
        current = talk.state == "composing" and talk.composer is delivery
        if delivery.composing and replies and current:
            self.answer(talk, "\n\n".join(replies))
        for output, route in pairs:
            if route.error:
                self.letters.append(Letter(delivery, route.error, output.topic, output.payload))
                continue
            composed = delivery.composing and route.sink
            if not composed:
                self.contribute(talk)
            asked = delivery.rank if output.priority is None else URGENCIES.index(output.priority)
            message = Message(
                conversation=talk,
                round=talk.round,
                topic=output.topic,
                sender=delivery.agent,
                rank=min(talk.rank, max(asked, delivery.rank)),
                payload=output.payload,
                expires_us=self.now_us + MESSAGE_TTL_US,
                hops=delivery.message.hops + 1,
                cause=delivery.message,
                made_by=delivery,
                composed=composed,
            )
            talk.messages += 1
            posted += 1
            self.post(message, route.receivers, screened=screened, must_take=route.direct)
        return posted

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
