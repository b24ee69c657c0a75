"""Whatever the world answers, a delivery ends, in bounds, and a replay asks the same."""

from typing import Any

from deliveries import TOOLS, conversation, drive, evidence, handle, profile, verdict
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.loop import advance, effects_max, start
from agent_runtime.loop.decisions import DEFERRAL_US
from ipc_protocol.work import (
    AgentProfile,
    Answer,
    Beginning,
    Completion,
    Effect,
    EffectResult,
    Handle,
    Infer,
    Inferred,
    Memory,
    Noted,
    Outgoing,
    Recalled,
    Refused,
    TaskChange,
    ToolResult,
    UseTool,
    Weighed,
    effect_key,
)

PUBLISHED = ["user.reply", "ops.report"]
texts = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            '{"tool":"finish"}',
            '{"tool":"host.read","arguments":{"path":"@disk"}}',
            '{"tool":"host.read","arguments":{"path":"/proc/loadavg"}}',
            '{"tool":"fs.write","arguments":{"path":"a"}}',
            '{"tool":"message.send","arguments":{"topic":"ops.report","text":"x"}}',
            '{"tool":"nope","arguments":{}}',
            '{"action":"act","reason":"a"}',
            '{"action":"ignore","reason":"a"}',
            '{"action":"delegate","to":"devclaw","reason":"a"}',
            '{"action":"delegate","to":"stranger","reason":"a"}',
            '{"action":"defer","until":"1h","reason":"a"}',
            '{"lesson":"Look at the disk first.","outcome":"success","importance":3}',
            '{"lesson":"Look at the disk first.","outcome":"failure","importance":3}',
            "{braces} {identity} ``` {",
        ]
    ),
)
numbers = st.floats(allow_nan=False)
verdicts = st.builds(
    verdict,
    st.sampled_from(["act", "ignore", "delegate", "uncertain"]),
    st.sampled_from([None, "devclaw", "stranger"]),
)
staged = st.one_of(
    st.none(),
    st.builds(Outgoing, topic=st.just("ops.report"), payload=st.binary(max_size=8)),
    st.builds(TaskChange, id=st.none(), title=st.text(max_size=8)),
)
results: st.SearchStrategy[EffectResult] = st.one_of(
    st.builds(Inferred, text=texts, generated_tokens=st.integers(0, 300)),
    st.builds(Weighed, verdict=verdicts, preferences=st.dictionaries(st.text(max_size=4), numbers)),
    st.builds(
        Recalled,
        memories=st.lists(
            st.builds(
                Memory,
                id=st.just(1),
                text=st.text(max_size=20),
                outcome=st.just("success"),
                importance=numbers,
                created_us=st.just(1),
            ),
            max_size=4,
        ),
    ),
    st.builds(ToolResult, ok=st.booleans(), output=st.text(max_size=30), staged=staged),
    st.just(Noted()),
    st.builds(
        Refused,
        code=st.sampled_from(["inference.budget", "inference.unavailable", "work.budget"]),
        message=st.text(max_size=20),
    ),
)
similarities = st.floats(-1, 1, allow_nan=False)
profiles = st.builds(
    profile,
    role=st.sampled_from(["agent", "conductor"]),
    tools=st.lists(st.sampled_from(TOOLS), unique_by=lambda tool: tool.name),
    publishes=st.sampled_from([PUBLISHED, [], ["ops.report"]]),
    steps_max=st.integers(0, 5),
    tokens_max=st.integers(0, 1500),
    preference_weight=st.sampled_from([0.0, 0.1, 1.0]),
)
evidences = st.one_of(
    st.none(),
    st.builds(
        evidence,
        scores=st.fixed_dictionaries(
            {"opsclaw": similarities}, optional={"devclaw": similarities, "uxclaw": similarities}
        ),
        nobody=similarities,
        fallback=st.sampled_from([None, "opsclaw", "devclaw"]),
        recipients=st.sampled_from([("opsclaw",), ("opsclaw", "devclaw")]),
        takers=st.sampled_from([(), ("opsclaw",), ("devclaw", "opsclaw")]),
        verdict=st.one_of(st.none(), verdicts),
    ),
)
deliveries = st.one_of(
    st.builds(
        handle,
        st.text(max_size=60),
        evidence=evidences,
        must_take=st.booleans(),
        deferred=st.booleans(),
    ),
    st.builds(
        lambda answers, topic: handle("", topic=topic, question="Well?", answers=answers),
        st.lists(st.builds(Answer, agent=st.just("a"), text=st.text(max_size=30)), max_size=3),
        st.sampled_from(["agent.opsclaw", "user.request"]),
    ),
)


def honest(effect: Effect, result: EffectResult) -> EffectResult:
    """An engine never generates more than it was asked for."""
    if isinstance(effect, Infer) and isinstance(result, Inferred):
        spent = min(result.generated_tokens, effect.tokens_max)
        return Inferred(text=result.text, generated_tokens=spent)
    return result


@given(profiles, deliveries, st.data())
def test_a_delivery_ends_within_its_bounds(
    agent: AgentProfile, delivery: Handle, data: st.DataObject
) -> None:
    journal: list[EffectResult] = []
    allowed_texts: list[Outgoing] = []

    def answer(effect: Effect) -> EffectResult:
        result = honest(effect, data.draw(results))
        journal.append(result)
        if isinstance(result, ToolResult) and isinstance(result.staged, Outgoing):
            allowed_texts.append(result.staged)
        return result

    state, completion, effects = drive(agent, delivery, answer)

    assert len(effects) <= effects_max(agent)
    assert sum(isinstance(effect, UseTool) for effect in effects) <= agent.steps_max
    assert {effect.name for effect in effects if isinstance(effect, UseTool)} <= {
        tool.name for tool in agent.tools
    }
    assert state.spent_tokens <= agent.tokens_max
    topics = {*agent.publishes, *(f"agent.{name}" for name in agent.delegates)}
    own = [output for output in completion.outputs if output not in allowed_texts]
    assert {output.topic for output in own} <= topics
    _assert_is_consistent(completion, delivery.beginning)

    again, effects_again = _replay(agent, delivery, journal)
    assert again == completion
    assert [effect_key(effect) for effect in effects_again] == [
        effect_key(effect) for effect in effects
    ]


def _assert_is_consistent(completion: Completion, beginning: Beginning) -> None:
    if completion.outcome == "deferred":
        assert completion.until_us is not None
        assert completion.until_us - beginning.now_us in DEFERRAL_US.values()
    else:
        assert completion.until_us is None
    if completion.outcome in ("ignored", "deferred"):
        assert not completion.outputs and not completion.memories and not completion.tasks
    else:
        assert len(completion.memories) == 1
    if beginning.must_take or beginning.deferred:
        assert completion.outcome in ("acted", "failed", "composed")


def _replay(
    agent: AgentProfile, delivery: Handle, journal: list[EffectResult]
) -> tuple[Completion, list[Effect]]:
    effects: list[Effect] = []
    state, outcome = start(agent, delivery)
    for result in journal:
        assert not isinstance(outcome, Completion)
        effects.append(outcome)
        state, outcome = advance(state, result)
    assert isinstance(outcome, Completion)
    return outcome, effects


@given(st.lists(st.text(max_size=30), max_size=3))
def test_an_engine_that_is_down_costs_no_answer(answers: list[str]) -> None:
    down: Any = Refused(code="inference.unavailable", message="down")
    delivery = conversation(*(Answer(agent="a", text=text) for text in answers))
    agent = profile(name="conductor", role="conductor")
    _, completion, _ = drive(agent, delivery, lambda _: down)
    assert completion.outcome == "composed"
    assert len(completion.outputs) == 1
