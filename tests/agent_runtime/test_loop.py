"""Each transition of the loop, driven by scripted results."""

from itertools import pairwise

import pytest
from deliveries import (
    FINISH,
    MESSAGE_SEND,
    READ_DISK,
    REFLECTION,
    call,
    certain,
    conductor,
    conversation,
    drive,
    evidence,
    handle,
    profile,
    said,
    verdict,
    world,
)

from agent_runtime.loop import LOOP_VERSION, effects_max, start
from agent_runtime.loop.machine import ENTER, READ, READ_CONSULTED, TRANSITIONS
from agent_runtime.loop.state import Step
from ipc_protocol.work import (
    Answer,
    Completion,
    Effect,
    Infer,
    Inferred,
    Memory,
    Note,
    Noted,
    Outgoing,
    Recall,
    Recalled,
    Refused,
    TaskChange,
    ToolResult,
    UseTool,
    Weigh,
    Weighed,
)

BUDGET = Refused(code="inference.budget", message="The budget ended.")
DOWN = Refused(code="inference.unavailable", message="The engine is down.")
ANSWER = said("Free some space on /var.")
RUN = (READ_DISK, FINISH, ANSWER, REFLECTION)


def kinds(effects: list[Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def text_of(completion: Completion) -> str:
    return completion.outputs[-1].payload.decode()


def instructions(effects: list[Effect]) -> list[str]:
    return [
        effect.messages[-1].content.rsplit("\n\n", 1)[-1]
        for effect in effects
        if isinstance(effect, Infer)
    ]


# ---- The table ----------------------------------------------------------------------------------


def test_every_step_between_begin_and_done_enters_and_reads() -> None:
    between = set(Step) - {Step.BEGIN, Step.DONE}
    assert set(READ).isdisjoint(READ_CONSULTED)
    assert set(ENTER) == set(READ) | set(READ_CONSULTED) == between
    assert {step for step, _ in TRANSITIONS} == between | {Step.BEGIN}
    assert set(TRANSITIONS.values()) == between | {Step.DONE}


def test_the_loop_has_a_version_and_a_bound() -> None:
    assert LOOP_VERSION >= 1
    assert effects_max(profile(steps_max=0)) < effects_max(profile(steps_max=1))


# ---- Triage -------------------------------------------------------------------------------------


def test_what_nobody_else_takes_is_acted_on_without_asking_the_model() -> None:
    _, completion, effects = drive(profile(), handle(must_take=True), world(*RUN))
    assert kinds(effects)[:2] == ["Note", "Recall"]
    assert completion.outcome == "acted"
    assert completion.reason == "nobody else takes it"


def test_a_deferred_delivery_that_is_due_is_acted_on() -> None:
    _, completion, _ = drive(profile(), handle(deferred=True, evidence=evidence()), world(*RUN))
    assert completion.outcome == "acted"
    assert "deferred" in completion.reason


@pytest.mark.parametrize("found", [None, evidence(verdict=None)])
def test_without_screening_the_agent_acts(found: object) -> None:
    _, completion, _ = drive(profile(), handle(evidence=found), world(*RUN))
    assert completion.outcome == "acted"


def test_evidence_without_doubt_decides_alone() -> None:
    _, completion, effects = drive(profile(), handle(evidence=certain()), world(*RUN))
    assert kinds(effects)[:2] == ["Note", "Recall"]
    note = effects[0]
    assert isinstance(note, Note)
    assert note.summary == (
        "act (high): screening 0.70 for 'disk full on a server', next devclaw 0.20"
    )
    assert note.data["asked"] is False
    assert completion.outcome == "acted"


def test_doubtful_evidence_recalls_weighs_and_asks() -> None:
    found = evidence()
    decision = said({"action": "act", "priority": "low", "reason": "the disk is full"})
    weighed = Weighed(verdict=verdict("act"), preferences={"opsclaw": -10.123456, "none": -20.0})
    answers = world(decision, *RUN, weigh=weighed)
    _, completion, effects = drive(profile(preference_weight=0.5), handle(evidence=found), answers)
    assert kinds(effects)[:4] == ["Recall", "Weigh", "Infer", "Note"]
    assert kinds(effects)[4] == "Infer"  # act shares the recall
    weigh, asked, note = effects[1], effects[2], effects[3]
    assert isinstance(weigh, Weigh)
    assert isinstance(asked, Infer) and asked.schema is not None
    assert asked.schema["anyOf"][0]["properties"]["action"] == {"const": "act"}
    assert isinstance(note, Note)
    assert note.summary.startswith("act (low): screening 0.30")
    assert note.data["reason"] == "the disk is full"
    assert note.data["preference"] == {"opsclaw": -10.123, "none": -20.0}
    assert "it is like my duty" in completion.reason


def test_the_weighing_can_overturn_a_narrow_screening() -> None:
    weighed = Weighed(verdict=verdict("ignore"))
    answers = world(said({"action": "ignore", "reason": "code"}), weigh=weighed)
    _, completion, _ = drive(profile(), handle(evidence=evidence()), answers)
    assert completion.outcome == "ignored"
    assert completion.outputs == [] and completion.memories == []


@pytest.mark.parametrize(
    ("fallback", "outcome"), [("opsclaw", "acted"), ("devclaw", "ignored"), (None, "ignored")]
)
@pytest.mark.parametrize("weighed", [DOWN, Weighed(verdict=verdict())], ids=["refused", "in doubt"])
def test_without_a_weighing_the_fallback_owner_acts_and_nobody_else(
    weighed: Refused | Weighed, fallback: str | None, outcome: str
) -> None:
    answers = world(DOWN, *RUN, weigh=weighed)
    _, completion, _ = drive(profile(), handle(evidence=evidence(fallback=fallback)), answers)
    assert completion.outcome == outcome


@pytest.mark.parametrize(
    "decision",
    [
        DOWN,
        said("no json"),
        said({"action": "ignore", "reason": "x"}),
        said({"action": "act", "priority": "urgent", "reason": "x"}),
        said(""),
        Noted(),
    ],
    ids=["refused", "not json", "against the evidence", "raised", "empty", "wrong type"],
)
def test_a_decision_that_is_none_leaves_it_to_the_evidence(decision: Inferred) -> None:
    _, completion, effects = drive(profile(), handle(evidence=evidence()), world(decision, *RUN))
    assert completion.outcome == "acted"
    note = next(effect for effect in effects if isinstance(effect, Note))
    assert note.data["asked"] is False


def test_no_tokens_for_a_decision_leave_it_to_the_evidence() -> None:
    _, completion, effects = drive(
        profile(tokens_max=1),
        handle(evidence=evidence()),
        world(tool=ToolResult(ok=True, output="")),
    )
    assert "Infer" not in kinds(effects)
    assert completion.outcome == "failed"


def test_the_owner_that_did_not_receive_it_gets_it_from_the_fallback() -> None:
    found = evidence(
        score=0.1, scores={"opsclaw": 0.1, "devclaw": 0.6}, verdict=verdict("delegate", "devclaw")
    )
    _, completion, effects = drive(profile(), handle("Fix it.", evidence=found), world())
    assert kinds(effects) == ["Note"]
    note = effects[0]
    assert isinstance(note, Note) and note.data["to"] == "devclaw"
    assert note.summary.startswith("delegate to devclaw (high): screening 0.10")
    assert completion.outcome == "delegated"
    assert [output.topic for output in completion.outputs] == ["agent.devclaw"]
    assert text_of(completion) == "Fix it."
    assert "it is rather devclaw" in completion.reason
    assert completion.memories[0].text == "Passed to devclaw: Fix it."


def test_what_may_not_be_passed_on_is_acted_on() -> None:
    found = evidence(verdict=verdict("delegate", "uxclaw"))
    _, completion, _ = drive(profile(), handle(evidence=found), world(*RUN))
    assert completion.outcome == "acted"


def test_a_doubtful_delegation_is_asked_about_with_its_target() -> None:
    weighed = Weighed(verdict=verdict("delegate", "devclaw"))
    decision = said({"action": "delegate", "to": "devclaw", "reason": "code"})
    answers = world(decision, weigh=weighed)
    _, completion, effects = drive(profile(), handle(evidence=evidence()), answers)
    asked = next(effect for effect in effects if isinstance(effect, Infer))
    assert asked.schema is not None
    assert asked.schema["properties"]["to"] == {"const": "devclaw"}
    assert completion.outcome == "delegated"
    assert "it is rather devclaw's" in completion.reason


def test_what_is_nobodys_business_is_ignored() -> None:
    found = evidence(scores={"opsclaw": 0.1}, fallback=None, verdict=verdict("ignore"))
    _, completion, effects = drive(profile(), handle(evidence=found), world())
    assert completion.outcome == "ignored"
    note = effects[0]
    assert isinstance(note, Note)
    assert note.summary.endswith("screening 0.30 for 'disk full on a server'")


def test_a_model_that_counts_may_defer() -> None:
    decision = said({"action": "defer", "until": "4h", "reason": "after the backup"})
    _, completion, effects = drive(
        profile(preference_weight=0.5), handle(evidence=evidence()), world(decision)
    )
    asked = effects[2]
    assert isinstance(asked, Infer) and asked.schema is not None
    assert len(asked.schema["anyOf"]) == 2
    assert completion.outcome == "deferred"
    assert completion.until_us == 1000 + 4 * 3_600_000_000
    note = effects[3]
    assert isinstance(note, Note)
    assert note.summary.startswith("defer to 4h") and note.summary.endswith("after the backup")
    assert note.data["until"] == "4h"


@pytest.mark.parametrize(
    ("weight", "decision"),
    [
        (0.1, {"action": "defer", "until": "1h", "reason": "later"}),
        (0.5, {"action": "defer", "reason": "later"}),
    ],
    ids=["a small model", "without a time"],
)
def test_a_deferral_that_is_not_offered_changes_nothing(
    weight: float, decision: dict[str, str]
) -> None:
    answers = world(said(decision), *RUN)
    _, completion, _ = drive(
        profile(preference_weight=weight), handle(evidence=evidence()), answers
    )
    assert completion.outcome == "acted"


# ---- Act ----------------------------------------------------------------------------------------


def test_a_delivery_calls_a_tool_answers_and_remembers() -> None:
    state, completion, effects = drive(profile(), handle(must_take=True), world(*RUN))
    assert kinds(effects) == [
        "Note",
        "Recall",
        "Infer",
        "UseTool",
        "Infer",
        "Infer",
        "Infer",
    ]
    assert [effect.phase for effect in effects if not isinstance(effect, UseTool)] == [
        "triage",
        *["act"] * 4,
        "reflect",
    ]
    assert completion.outputs == [
        Outgoing(
            topic="user.reply",
            payload=b"Free some space on /var.\n\nSeen:\n- host.read @disk: / is 97% full",
        )
    ]
    memory = completion.memories[0]
    assert memory.lesson == "Look at the disk first."
    assert (memory.outcome, memory.importance) == ("success", 0.6)
    assert "host.read @disk" in memory.text
    assert state.spent_tokens == 80


def test_the_first_step_offers_no_end_and_nothing_that_leaves_the_agent() -> None:
    _, _, effects = drive(profile(), handle(must_take=True), world(*RUN))
    first, second, *_ = [effect.schema for effect in effects if isinstance(effect, Infer)]
    assert first is not None and second is not None
    offered = [call["properties"]["tool"]["const"] for call in first["anyOf"]]
    assert offered == ["host.read", "fs.write"]
    offered = [call["properties"]["tool"]["const"] for call in second["anyOf"]]
    assert offered == ["host.read", "fs.write", "message.send", "finish"]


def test_an_agent_whose_tools_all_reach_out_may_end_at_once() -> None:
    answers = world(FINISH, ANSWER, REFLECTION)
    _, completion, effects = drive(profile(tools=[MESSAGE_SEND]), handle(must_take=True), answers)
    assert "UseTool" not in kinds(effects)
    assert text_of(completion) == "Free some space on /var."


def test_an_agent_without_tools_answers() -> None:
    _, completion, effects = drive(
        profile(tools=[]), handle(must_take=True), world(ANSWER, REFLECTION)
    )
    assert kinds(effects) == ["Note", "Recall", "Infer", "Infer"]
    assert completion.outcome == "acted"


def test_a_text_is_written_plainly_in_a_request_of_its_own() -> None:
    answers = world(
        call("fs.write", path="a.py"),
        said("Here:\n```python\nprint(1)\n```\nDone."),
        FINISH,
        ANSWER,
        REFLECTION,
    )
    _, _, effects = drive(profile(), handle(must_take=True), answers)
    chosen, written, used = effects[2:5]
    assert isinstance(chosen, Infer) and chosen.schema is not None
    assert "content" not in str(chosen.schema)
    assert isinstance(written, Infer) and written.schema is None
    assert "a.py" in instructions(effects)[1]
    assert used == UseTool(name="fs.write", arguments={"path": "a.py", "content": "print(1)"})


@pytest.mark.parametrize("written", [BUDGET, said("")], ids=["refused", "empty"])
def test_a_text_that_is_not_to_be_had_leads_to_an_answer(written: Inferred) -> None:
    answers = world(call("fs.write", path="a.py"), written, ANSWER, REFLECTION)
    _, completion, effects = drive(profile(), handle(must_take=True), answers)
    assert "UseTool" not in kinds(effects)
    assert completion.outcome == "acted"


def test_a_text_that_the_budget_does_not_hold_leads_to_the_end() -> None:
    answers = world(said({"tool": "fs.write", "arguments": {"path": "a"}}, tokens=85), REFLECTION)
    delivery = handle(must_take=True)
    _, completion, effects = drive(profile(tokens_max=100), delivery, answers)
    assert kinds(effects)[2:] == ["Infer", "Infer"]
    assert "the budget is used up" in text_of(completion)


def test_the_same_call_twice_in_a_row_is_the_end() -> None:
    answers = world(READ_DISK, READ_DISK, ANSWER, REFLECTION)
    _, _, effects = drive(profile(), handle(must_take=True), answers)
    assert kinds(effects).count("UseTool") == 1


def test_the_same_text_twice_in_a_row_is_the_end() -> None:
    write = call("fs.write", path="a")
    answers = world(write, said("one"), write, said("one"), ANSWER, REFLECTION)
    _, _, effects = drive(profile(), handle(must_take=True), answers)
    assert kinds(effects).count("UseTool") == 1


def test_steps_are_bounded() -> None:
    load = call("host.read", path="/proc/loadavg")
    answers = world(READ_DISK, load, ANSWER, REFLECTION)
    _, _, effects = drive(profile(steps_max=2), handle(must_take=True), answers)
    assert kinds(effects).count("UseTool") == 2


@pytest.mark.parametrize(
    "first",
    [BUDGET, said("{"), said({"tool": "rm"}), said({"tool": "finish"}), Noted()],
    ids=["refused", "not json", "not offered", "an end", "wrong type"],
)
def test_a_first_question_that_leads_nowhere_is_asked_again_for_one_tool(first: Inferred) -> None:
    _, completion, effects = drive(profile(), handle(must_take=True), world(first, *RUN))
    schemas = [effect.schema for effect in effects if isinstance(effect, Infer)]
    assert schemas[1] is not None
    assert schemas[1]["properties"]["tool"] == {"const": "host.read"}
    assert completion.outcome == "acted"


def test_a_second_stumble_leads_to_an_answer() -> None:
    answers = world(BUDGET, BUDGET, ANSWER, REFLECTION)
    _, completion, _ = drive(profile(), handle(must_take=True), answers)
    assert text_of(completion) == "Free some space on /var."


def test_a_later_stumble_leads_to_an_answer() -> None:
    answers = world(READ_DISK, said("{"), ANSWER, REFLECTION)
    _, _, effects = drive(profile(), handle(must_take=True), answers)
    assert kinds(effects).count("UseTool") == 1


@pytest.mark.parametrize(
    ("result", "seen"),
    [
        (ToolResult(ok=False, output="no such file"), "no such file"),
        (Refused(code="work.budget", message="It has used its 8 tool calls."), "its 8 tool calls"),
        (Noted(), "a Noted"),
    ],
)
def test_a_tool_that_fails_is_an_observation(result: ToolResult, seen: str) -> None:
    answers = world(READ_DISK, FINISH, ANSWER, DOWN, tool=result)
    _, completion, effects = drive(profile(), handle(must_take=True), answers)
    transcript = next(e for e in reversed(effects) if isinstance(e, Infer)).messages[1].content
    assert "host.read @disk failed:" in transcript and seen in transcript
    assert completion.memories[0].outcome == "partial"
    assert seen in completion.memories[0].lesson


def test_what_tools_stage_goes_out_with_the_completion() -> None:
    report = Outgoing(topic="ops.report", payload=b"full")
    task = TaskChange(id=None, title="clean up")
    staged = iter([ToolResult(ok=True, output="", staged=report)])

    def answer(effect: Effect) -> object:
        if isinstance(effect, UseTool):
            return next(staged, ToolResult(ok=True, output="", staged=task))
        return scripted(effect)

    scripted = world(READ_DISK, call("host.read", path="/proc/loadavg"), FINISH, ANSWER, REFLECTION)
    _, completion, _ = drive(profile(), handle(must_take=True), answer)  # type: ignore[arg-type]
    assert [output.topic for output in completion.outputs] == ["ops.report", "user.reply"]
    assert completion.tasks == [task]


def test_without_a_model_the_answer_says_what_was_seen() -> None:
    answers = world(READ_DISK, DOWN, DOWN, DOWN)
    _, completion, _ = drive(profile(), handle(must_take=True), answers)
    assert text_of(completion) == (
        "There is no answer: The engine is down. (inference.unavailable).\n\n"
        "Seen:\n- host.read @disk: / is 97% full"
    )
    assert completion.outcome == "acted"
    assert completion.memories[0].outcome == "partial"


def test_nothing_seen_and_nothing_said_is_a_failure() -> None:
    _, completion, _ = drive(profile(), handle(must_take=True), world(DOWN, DOWN, DOWN, DOWN))
    assert completion.outcome == "failed"
    assert "engine is down" in completion.reason
    assert completion.memories[0].outcome == "failure"
    assert "engine is down" in completion.memories[0].lesson
    assert "There is no answer" in text_of(completion)


def test_an_answer_that_was_cut_ends_with_a_whole_sentence() -> None:
    cut = said("Free some space. Then look at the", tokens=10_000)
    _, completion, _ = drive(profile(tools=[]), handle(must_take=True), world(cut, REFLECTION))
    assert text_of(completion) == "Free some space."


def test_an_agent_that_may_not_reply_works_in_silence() -> None:
    _, completion, _ = drive(profile(publishes=[]), handle(must_take=True), world(*RUN))
    assert completion.outcome == "acted"
    assert completion.outputs == []
    assert completion.memories


def test_agents_that_share_a_message_know_of_each_other() -> None:
    found = certain(takers=("opsclaw", "secclaw"))
    _, _, effects = drive(profile(), handle(evidence=found), world(*RUN))
    assert instructions(effects)[0].startswith("secclaw may work on it too. ")


def test_memories_are_in_the_transcript() -> None:
    memory = Memory(
        id=1, text="/var filled up before", outcome="success", importance=1, created_us=1
    )
    answers = world(*RUN, recall=Recalled(memories=[memory] * 5))
    _, _, effects = drive(profile(), handle(must_take=True), answers)
    asked = next(effect for effect in effects if isinstance(effect, Infer))
    assert asked.messages[1].content.count("- /var filled up before") == 2


def test_a_recall_asks_for_what_the_message_says() -> None:
    _, _, effects = drive(profile(), handle("  The   disk\nis full. ", must_take=True), world(*RUN))
    assert effects[1] == Recall(phase="act", query="The disk is full.", limit=2)


# ---- Reflect ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reflection",
    [
        BUDGET,
        said("{"),
        said({"lesson": "Some tool has failed me.", "outcome": "failure", "importance": 5}),
    ],
    ids=["refused", "not json", "against the facts"],
)
def test_without_a_usable_reflection_the_facts_are_remembered(reflection: Inferred) -> None:
    answers = world(READ_DISK, FINISH, ANSWER, reflection)
    _, completion, _ = drive(profile(), handle(must_take=True), answers)
    memory = completion.memories[0]
    assert (memory.outcome, memory.lesson, memory.importance) == ("success", "", 0.4)


def test_a_used_up_budget_is_not_asked_to_reflect() -> None:
    answers = world(said("Fine.", tokens=60))
    _, completion, effects = drive(
        profile(tools=[], tokens_max=64), handle(must_take=True), answers
    )
    assert kinds(effects) == ["Note", "Recall", "Infer"]
    assert completion.memories[0].outcome == "success"


# ---- Compose ------------------------------------------------------------------------------------

OPS = Answer(agent="opsclaw", text="/var is at 97%.")
SEC = Answer(agent="secclaw", text="No risk.")


def test_the_conductor_composes_one_reply_and_remembers() -> None:
    _, completion, effects = drive(
        conductor(), conversation(OPS, SEC), world(said("The disk is full, no risk."), REFLECTION)
    )
    assert kinds(effects) == ["Infer", "Infer"]
    asked = effects[0]
    assert isinstance(asked, Infer)
    assert "opsclaw: /var is at 97%." in asked.messages[1].content
    assert completion.outcome == "composed"
    assert completion.outputs == [
        Outgoing(topic="user.reply", payload=b"The disk is full, no risk.")
    ]
    assert completion.memories[0].lesson == "Look at the disk first."


@pytest.mark.parametrize(
    ("answers", "reply"),
    [
        ([OPS], "/var is at 97%."),
        ([OPS, SEC], "opsclaw: /var is at 97%.\nsecclaw: No risk."),
    ],
)
@pytest.mark.parametrize("said_", [DOWN, said("  ")], ids=["refused", "empty"])
def test_without_the_model_the_reply_joins_the_answers(
    answers: list[Answer], reply: str, said_: Inferred
) -> None:
    _, completion, _ = drive(conductor(), conversation(*answers), world(said_, DOWN))
    assert text_of(completion) == reply
    assert completion.memories[0].outcome == "partial"


def test_a_conversation_without_answers_is_answered_all_the_same() -> None:
    _, completion, effects = drive(conductor(), conversation(), world(DOWN))
    assert kinds(effects) == ["Infer"]
    assert completion.outcome == "composed"
    assert text_of(completion) == "Nobody had an answer to this."


def test_a_composition_that_was_cut_ends_with_a_whole_sentence() -> None:
    cut = said("The disk is full. No ri", tokens=10_000)
    _, completion, _ = drive(conductor(), conversation(OPS), world(cut))
    assert text_of(completion) == "The disk is full."


def test_no_tokens_to_compose_join_the_answers() -> None:
    _, completion, effects = drive(conductor(tokens_max=1), conversation(OPS), world())
    assert effects == []
    assert text_of(completion) == OPS.text


@pytest.mark.parametrize(
    "delivery",
    [handle("Hello", topic="agent.conductor"), handle("Hello", question="?")],
    ids=["no conversation", "another topic"],
)
def test_a_conductor_acts_on_what_is_no_conversation(delivery: object) -> None:
    _, outcome = start(conductor(), delivery)  # type: ignore[arg-type]
    assert isinstance(outcome, Note)


def test_only_a_conductor_composes() -> None:
    _, outcome = start(profile(name="conductor"), conversation(OPS))
    assert isinstance(outcome, Note)


# ---- The shared prefix --------------------------------------------------------------------------


def test_every_question_of_an_agent_begins_with_the_same_bytes() -> None:
    decision = said({"action": "act", "reason": "mine"})
    _, _, effects = drive(profile(), handle(evidence=evidence()), world(decision, *RUN))
    asked = [effect for effect in effects if isinstance(effect, Infer)]
    assert len({effect.messages[0].content for effect in asked}) == 1
    transcripts = [effect.messages[1].content.rsplit("\n\n", 1)[0] for effect in asked]
    assert all(later.startswith(earlier) for earlier, later in pairwise(transcripts))
