"""Messages and conversations in the model."""

from collections.abc import Sequence

from modelled_tables import ModelledTables, Refusal
from modelled_things import (
    URGENCIES,
    Conversation,
    Delivery,
    Message,
)

from orchestrator.bus.limits import (
    CONVERSATION_MESSAGES_MAX,
    MESSAGE_TTL_US,
)
from orchestrator.bus.opening import Publish


class ModelledTalks(ModelledTables):
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
        self.require_budget(talk, count)
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

    def require_budget(self, talk: Conversation, count: int = 1) -> None:
        if talk.messages + count > CONVERSATION_MESSAGES_MAX:
            raise Refusal("bus.conversation-full")

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
