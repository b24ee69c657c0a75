"""The load of `agentd bench inference`: who asks when, and a server that answers over HTTP."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from daemons import short_folder

from ipc_protocol.errors import Failure
from orchestrator.bench import inference_measures as measures
from orchestrator.bench import inference_rows as table
from orchestrator.bench import inference_scenarios as scenarios
from orchestrator.bench import inference_texts as texts
from orchestrator.bench.bus_processes import running
from orchestrator.bench.inference import run_scenario
from orchestrator.bench.inference_actors import AskError, Heard, play
from orchestrator.bench.inference_comparing import Bench, Comparison, compared
from orchestrator.bench.inference_engine import engine_alone
from orchestrator.bench.inference_http import Hearing, perform, request_of
from orchestrator.bench.inference_load import Actor, Answer, Ask, Job, Plan, Said, Target
from orchestrator.bench.inference_peers import Peers, built, ceiling, llama_server, settings
from orchestrator.bench.inference_servers import (
    Device,
    engine_start,
    free_port,
    load,
    pool,
    wait_listening,
)
from orchestrator.bench.inference_sizes import CPU, quick


def actor(name: str, *texts: str, **fields: Any) -> Actor:
    asks = [Ask(text=text, tokens_max=4) for text in texts]
    return Actor(name=name, kind=fields.pop("kind", "agent"), asks=asks, **fields)


def plan(*actors: Actor, rounds: bool = False, limit_s: float = 20.0) -> Plan:
    return Plan(actors=list(actors), rounds=rounds, limit_s=limit_s)


# ---- Who asks when ------------------------------------------------------------------------------


class Stage:
    """Answers what it is asked, when it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.withdrawn = 0

    async def ask(self, who: Actor, ask: Ask, heard: Heard) -> Said:
        self.asked.append((who.name, ask.text))
        if ask.text == "refuse":
            raise AskError("not this")
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.withdrawn += 1
            raise
        heard()
        return Said(text=ask.text, generated_tokens=1)


async def test_an_actor_asks_again_when_it_has_its_answer() -> None:
    stage = Stage()
    answers = await play(plan(actor("a", "1", "2", "3")), stage.ask)
    assert [one.said.text for one in answers] == ["1", "2", "3"]
    assert [one.number for one in answers] == [0, 1, 2]
    assert all(one.asked_us <= one.arrivals_us[0] <= one.ended_us for one in answers)


async def test_in_rounds_nobody_is_ahead_of_another() -> None:
    stage = Stage()
    first = actor("a", "1", "2", "3")
    late = Actor(
        name="b",
        kind="agent",
        asks=[Ask(text=text, tokens_max=1, delay_s=0.02) for text in ("1", "2", "3")],
    )
    await play(plan(first, late, rounds=True), stage.ask)
    assert [text for _, text in stage.asked] == ["1", "1", "2", "2", "3", "3"]
    assert [name for name, _ in stage.asked] == ["a", "b"] * 3


async def test_a_schedule_is_kept_whatever_the_answers_do() -> None:
    stage = Stage()
    stage.open.clear()
    asyncio.get_running_loop().call_later(0.3, stage.open.set)
    answers = await play(plan(actor("a", "1", "2", every_s=0.05, until_s=0.2)), stage.ask)
    assert [text for _, text in stage.asked] == ["1", "2", "1", "2"]
    assert sorted(one.asked_us for one in answers) == [0, 50_000, 100_000, 150_000]
    assert {one.outcome for one in answers} == {"answered"}, "they are waited for"


async def test_what_has_not_begun_at_the_end_is_left_and_withdrawn() -> None:
    stage = Stage()
    stage.open.clear()
    (left,) = await play(plan(actor("a", "1", "2", until_s=0.05)), stage.ask)
    assert (left.outcome, left.arrivals_us, stage.withdrawn) == ("left", [], 1)


async def test_what_has_begun_at_the_end_is_waited_for() -> None:
    async def slow(_: Actor, ask: Ask, heard: Heard) -> Said:
        heard()
        await asyncio.sleep(0.1)
        return Said(text=ask.text)

    (answer,) = await play(plan(actor("a", "1", until_s=0.05)), slow)
    assert (answer.outcome, answer.said.text) == ("answered", "1")


async def test_an_actor_begins_again_until_its_time_is_over() -> None:
    stage = Stage()

    async def paced(who: Actor, ask: Ask, heard: Heard) -> Said:
        await asyncio.sleep(0.01)
        return await stage.ask(who, ask, heard)

    answers = await play(plan(actor("a", "1", "2", until_s=0.2)), paced)
    assert [text for _, text in stage.asked][:3] == ["1", "2", "1"]
    assert all(one.asked_us < 200_000 for one in answers)


async def test_a_refusal_is_an_answer_that_says_why() -> None:
    (answer,) = await play(plan(actor("a", "refuse")), Stage().ask)
    assert (answer.outcome, answer.error) == ("failed", "not this")


async def test_a_plan_that_takes_too_long_fails() -> None:
    stage = Stage()
    stage.open.clear()
    with pytest.raises(TimeoutError):
        await play(plan(actor("a", "1"), limit_s=0.05), stage.ask)


# ---- Over HTTP ----------------------------------------------------------------------------------


def test_a_text_is_a_completion_and_a_schema_a_chat() -> None:
    path, body = request_of(Ask(text="go on", tokens_max=8), "m")
    assert (path, body["prompt"], body["max_tokens"]) == ("/completions", "go on", 8)
    schema = {"type": "object"}
    path, body = request_of(Ask(text="do", identity="you", tokens_max=8, schema=schema), "m")
    assert path == "/chat/completions"
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["response_format"]["json_schema"]["schema"] == schema


def heard_of(*events: dict[str, Any]) -> tuple[Hearing, list[bool]]:
    hearing = Hearing()
    return hearing, [hearing.take(json.dumps(one).encode()) for one in events]


USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 2,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"accepted_prediction_tokens": 1},
}


def test_text_of_both_kinds_is_heard_and_what_has_none_is_not() -> None:
    hearing, brought = heard_of(
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"content": "a"}}]},
        {"choices": [{"text": "b", "finish_reason": None}]},
        {"choices": [{"text": "", "finish_reason": "length"}]},
        {"choices": [], "usage": USAGE},
    )
    assert brought == [False, True, True, False, False]
    assert hearing.said() == Said(
        text="ab",
        finish="length",
        prompt_tokens=9,
        cached_tokens=4,
        generated_tokens=2,
        forced_tokens=1,
    )


def test_a_server_that_counts_no_details_has_zeros_in_them() -> None:
    bare = {"prompt_tokens": 9, "completion_tokens": 2}
    hearing, _ = heard_of({"choices": [{"text": "", "finish_reason": "stop"}], "usage": bare})
    said = hearing.said()
    assert (said.finish, said.cached_tokens, said.forced_tokens) == ("stop", 0, 0)


@pytest.mark.parametrize(
    "event", [b"no json", b"[1]", b'"x"', b'{"choices": 1}', b'{"error": {"message": "no"}}']
)
def test_an_event_that_is_none_is_an_error(event: bytes) -> None:
    with pytest.raises(AskError):
        Hearing().take(event)


def test_an_answer_without_its_end_is_an_error() -> None:
    hearing, _ = heard_of({"choices": [{"text": "a", "finish_reason": None}]})
    with pytest.raises(AskError, match="without its usage"):
        hearing.said()


class Server:
    """As small as a server with this interface can be."""

    def __init__(self) -> None:
        self.keys: list[str | None] = []
        self.loading = 0
        """Requests that are told to come again."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if self.loading:
            self.loading -= 1
            raise web.HTTPServiceUnavailable
        body = await request.json()
        if body["prompt"] == "refuse":
            raise web.HTTPBadRequest(text="not this")
        if not body["stream"]:
            return web.json_response({})
        self.keys.append(request.headers.get("Authorization"))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for text in ("one", " two"):
            await self._send(response, {"choices": [{"text": text, "finish_reason": None}]})
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        end = {"choices": [{"text": "", "finish_reason": "length"}], "usage": usage}
        await self._send(response, end)
        await response.write(b": a comment\n\ndata: [DONE]\n\n")
        return response

    async def _send(self, response: web.StreamResponse, event: dict[str, Any]) -> None:
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[Server, str]]:
    server = Server()
    app = web.Application()
    app.router.add_post("/v1/completions", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield server, f"http://127.0.0.1:{port}/v1"
    finally:
        await runner.cleanup()


async def test_answers_come_with_their_tokens_and_everybody_has_a_key() -> None:
    keys = {"a": "key-a", "b": "key-b"}
    async with serving() as (server, url):
        job = Job(
            target=Target(url=url, model="m", keys=keys),
            plan=plan(actor("a", "x"), actor("b", "y")),
        )
        answers = await perform(job)
    assert [one.said.text for one in answers] == ["one two", "one two"]
    assert [(one.said.prompt_tokens, one.said.generated_tokens) for one in answers] == [(3, 2)] * 2
    assert all(1 <= len(one.arrivals_us) <= 2 for one in answers)
    assert sorted(map(str, server.keys)) == ["Bearer key-a", "Bearer key-b"]


async def test_a_server_that_loads_its_model_is_waited_for() -> None:
    async with serving() as (server, url):
        server.loading = 1
        target = Target(url=url, model="m")
        (answer,) = await perform(Job(target=target, plan=plan(actor("a", "x")), patience_s=10))
        assert answer.outcome == "answered"
        assert server.keys == [None]


async def test_nobody_who_answers_is_waited_for_only_so_long() -> None:
    target = Target(url=f"http://127.0.0.1:{free_port()}/v1", model="m")
    with pytest.raises(TimeoutError):
        await perform(Job(target=target, plan=plan(actor("a", "x")), patience_s=0.3))
    (answer,) = await perform(Job(target=target, plan=plan(actor("a", "x"))))
    assert answer.outcome == "failed"


async def test_the_generator_is_a_process_of_its_own(tmp_path: Path) -> None:
    async with serving() as (_, url):
        target = Target(url=url, model="m")
        answers = await load("a test", target, plan(actor("a", "x", "y")), tmp_path, 10.0)
        assert [type(one) for one in answers] == [Answer, Answer]
        with pytest.raises(Failure, match="400: not this"):
            await load("a test", target, plan(actor("a", "refuse")), tmp_path)
        with pytest.raises(Failure, match="did not come to its end"):
            await load("a test", target, plan(actor("a", "x"), limit_s=0.0), tmp_path)


# ---- Those who are measured, with the real model ------------------------------------------------


async def test_the_engine_alone_and_the_daemon_answer_the_same_plan(model_path: Path) -> None:
    device = Device(kind="cpu", cores=1, model=model_path)
    asked = plan(actor("a", texts.endless(32, "test")), limit_s=60.0)
    with short_folder() as folder:
        start = engine_start(device, slots=1, context=256)
        async with engine_alone(start, folder) as engine:
            (alone,) = await play(asked, engine.ask)
        async with pool(device, 1, 256, asked.actors, folder) as target:
            (served,) = await load("a test", target, asked, folder, 60.0)
    for answer in (alone, served):
        assert (answer.outcome, answer.said.finish) == ("answered", "length")
        assert (answer.said.prompt_tokens, answer.said.generated_tokens) == (32, 4)
        assert answer.arrivals_us


async def test_a_server_that_ends_at_once_is_not_waited_for(tmp_path: Path) -> None:
    async with running(("sh", "-c", "echo no such model >&2; exit 1"), tmp_path) as process:
        with pytest.raises(Failure, match="A server did not come up:\\nno such model"):
            await wait_listening(process, free_port(), "A server", tmp_path)


async def test_an_engine_that_refuses_says_why(model_path: Path, tmp_path: Path) -> None:
    device = Device(kind="cpu", cores=1, model=model_path)
    typed = Ask(text="go", identity="you", tokens_max=8, schema={"type": "nonsense"})
    asked = Plan(actors=[Actor(name="a", kind="agent", asks=[typed])], limit_s=60.0)
    async with engine_alone(engine_start(device, slots=1, context=256), tmp_path) as engine:
        (answer,) = await play(asked, engine.ask)
    assert answer.outcome == "failed"
    assert answer.error


async def test_without_peers_the_figures_stand_alone(model_path: Path) -> None:
    sizes = quick(CPU)._replace(agents=2, prompt=32, answer=4)
    notes: list[str] = []
    with short_folder() as folder:
        bench = Bench(
            device=Device(kind="cpu", cores=1, model=model_path),
            peers=Peers(None, None, []),
            sizes=sizes,
            folder=folder,
            quick=True,
            tell=lambda _: None,
            notes=notes,
        )
        comparison = Comparison(
            scenarios.burst(sizes),
            measures.throughput,
            measures.TOTAL,
            table.BURST["cpu"],
            repeats=2,
            alone=True,
        )
        rows = await compared(bench, comparison)
    assert [row.measure.rpartition(": ")[2] for row in rows] == [
        "tokens in and out",
        "tokens in and out",
        "tokens in and out, engine alone",
        "tokens out",
    ]
    assert all(row.value > 0 and row.peer is None and row.met is None for row in rows)


async def test_a_scenario_that_fails_is_a_promise_that_is_not_kept(tmp_path: Path) -> None:
    bench = Bench(
        device=Device(kind="cpu", cores=1, model=tmp_path / "model.gguf"),
        peers=Peers(Path("/bin/false"), None, []),
        sizes=quick(CPU),
        folder=tmp_path,
        quick=True,
        tell=lambda _: None,
        notes=[],
    )
    (row,) = await run_scenario(bench, "burst")
    assert (row.measure, row.met) == ("CPU, burst: ended", False)
    assert "with -kvu -t 1 -tb 1: llama-server did not come up" in bench.notes[0]
    assert "with none of its settings" in bench.notes[-1]


async def test_llama_server_and_its_ceiling_do_the_same_work(model_path: Path) -> None:
    peers = built("cpu")
    if peers.server is None or peers.ceiling is None:
        pytest.skip(" ".join(peers.missing))
    device = Device(kind="cpu", cores=1, model=model_path)
    sizes = quick(CPU)._replace(agents=2, prompt=32, answer=4)
    scenario = scenarios.burst(sizes)
    (setting, *_) = settings(device)
    with short_folder() as folder:
        async with llama_server(
            peers.server, device, scenario.slots, scenario.context, setting, folder
        ) as target:
            answers = await load("a test", target, scenario.plan(1), folder, 60.0)
        figures = await ceiling(peers.ceiling, device, sizes, setting.flags, folder)
    assert [(one.said.prompt_tokens, one.said.generated_tokens) for one in answers] == [(32, 4)] * 2
    assert figures[measures.TOTAL].value > 0
