"""What the loop makes of a call of which nobody knows whether it happened."""

from collections.abc import Iterator

from deliveries import (
    FINISH,
    READ_DISK,
    REFLECTION,
    World,
    call,
    drive,
    guided,
    handle,
    profile,
    said,
    world,
)

from ipc_protocol.work import (
    AgentProfile,
    Completion,
    Effect,
    EffectResult,
    Infer,
    Refused,
    ToolResult,
    UseTool,
)

IN_DOUBT = ToolResult(
    ok=False, unknown=True, output="It is not known whether host.read happened. Look at it."
)
SEEN = ToolResult(ok=True, output="/ is 97% full")
ANSWER = said("Free some space on /var.")
DOWN = Refused(code="inference.unavailable", message="The engine is down.")


def driven(
    inferred: World,
    *tools: ToolResult,
    as_: AgentProfile | None = None,
    text: str = "The disk is full.",
) -> tuple[Completion, list[str], int]:
    """The completion, the transcripts that the model saw, and how many tools were used."""
    results: Iterator[ToolResult] = iter(tools)

    def answer(effect: Effect) -> EffectResult:
        return next(results) if isinstance(effect, UseTool) else inferred(effect)

    _, completion, effects = drive(as_ or profile(), handle(text, must_take=True), answer)
    transcripts = [effect.messages[1].content for effect in effects if isinstance(effect, Infer)]
    return completion, transcripts, sum(isinstance(effect, UseTool) for effect in effects)


def test_the_model_is_told_and_may_do_it_again() -> None:
    again = world(READ_DISK, READ_DISK, FINISH, ANSWER, REFLECTION)
    _, transcripts, used = driven(again, IN_DOUBT, SEEN)
    assert used == 2
    assert f"host.read @disk may have happened or not:\n{IN_DOUBT.output}" in transcripts[1]
    assert "host.read @disk returned:\n/ is 97% full" in transcripts[2]


def test_once_it_is_known_a_repetition_is_the_end() -> None:
    again = world(READ_DISK, READ_DISK, READ_DISK, ANSWER, REFLECTION)
    _, _, used = driven(again, IN_DOUBT, SEEN)
    assert used == 2


def test_whoever_reads_the_answer_is_told() -> None:
    completion, _, _ = driven(world(READ_DISK, FINISH, ANSWER, REFLECTION), IN_DOUBT)
    assert (
        completion.outputs[0]
        .payload.decode()
        .endswith(f"Seen:\n- host.read @disk: {IN_DOUBT.output}")
    )


def test_what_is_remembered_is_the_doubt() -> None:
    completion, _, _ = driven(world(READ_DISK, FINISH, ANSWER, DOWN), IN_DOUBT)
    (memory,) = completion.memories
    assert memory.outcome == "partial"
    assert memory.lesson.startswith("host.read @disk may have happened or not: It is not known")


def test_a_guided_model_is_told_too_and_learns_nothing_from_it() -> None:
    load = call("host.read", path="/proc/loadavg")
    model = world(load, said({"answer": IN_DOUBT.output}), REFLECTION)
    _, transcripts, _ = driven(model, IN_DOUBT, as_=guided(), text="How high is the load?")
    assert "may have happened or not" in transcripts[1]
    assert "do without" not in transcripts[2]
