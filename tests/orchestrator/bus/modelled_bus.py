"""A simple model of the bus: plain objects, one thing after the other, nothing kept twice.

It says what must be true after each step. What it leaves open is which of the deliveries that wait
are leased when: it is told by the bus, and checks that those were the first in the queue (`hand`).
"""

from modelled_lives import ModelledLives
from modelled_tables import Refusal
from modelled_things import (
    URGENCIES,
    Delivery,
    Letter,
    Message,
    Route,
)

from ipc_protocol.work import Completion
from orchestrator.bus.limits import (
    BACKPRESSURE_RETRY_US,
    CONVERSATION_MESSAGES_MAX,
    DEFERRAL_US_MAX,
    DEFERRAL_US_MIN,
    MESSAGE_TTL_US,
    OUTPUTS_MAX,
    RUNS_MAX,
)

__all__ = ["ModelledBus", "Refusal"]


class ModelledBus(ModelledLives):
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
        talk, going = delivery.message.conversation, 0
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
            if route.receivers and talk.messages + going >= CONVERSATION_MESSAGES_MAX:
                route = Route("bus.conversation-full")
            routes.append(route)
            coming += route.receivers
            going += not route.error
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
