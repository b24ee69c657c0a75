"""`agentd bench inference`: its plans, its figures and rows, and where its peers are."""

import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
from daemons import agentd

from agent_runtime.loop.decisions import Schema, call_schema, reflection_schema, triage_schema
from agent_runtime.loop.guidance import narrowed
from orchestrator.bench import inference_builds, inference_peers
from orchestrator.bench import inference_measures as measures
from orchestrator.bench import inference_rows as table
from orchestrator.bench import inference_scenarios as scenarios
from orchestrator.bench import inference_texts as texts
from orchestrator.bench.inference import Settings, run, typed_schemas
from orchestrator.bench.inference_load import Answer, Plan, Said
from orchestrator.bench.inference_measures import Figure
from orchestrator.bench.inference_rows import POOL, SERVER, Promise
from orchestrator.bench.inference_scenarios import Scenario
from orchestrator.bench.inference_servers import Device
from orchestrator.bench.inference_simulated import simulated
from orchestrator.bench.inference_sizes import CPU, GPU, Sizes, quick
from orchestrator.tools.catalogue import CATALOGUE
from orchestrator.tools.tool import Grants

SMALL = quick(quick(CPU))

# ---- Texts --------------------------------------------------------------------------------------


def test_a_text_has_a_word_for_each_token() -> None:
    assert len(texts.opening(40, 1).split()) == 40
    assert len(texts.endless(40, 1).split()) == 40
    assert len(texts.going_on(40, 1).split()) == 40
    assert (texts.opening(3, 1) + texts.going_on(12, 1)).count(" ") == 14


def test_the_same_seed_is_the_same_text_and_another_another() -> None:
    assert texts.endless(64, "a", 1) == texts.endless(64, "a", 1)
    assert texts.endless(64, "a", 1) != texts.endless(64, "a", 2)
    assert len(set(texts.WORDS)) == 128


def test_a_mixed_order_has_everybody_once() -> None:
    order = texts.shuffled(12, "round", 1)
    assert sorted(order) == list(range(12))
    assert order != texts.shuffled(12, "round", 2)
    assert order == texts.shuffled(12, "round", 1)


# ---- Plans --------------------------------------------------------------------------------------


def names(plan: Plan) -> list[str]:
    return [actor.name for actor in plan.actors]


def asked(plan: Plan) -> list[str]:
    return [ask.text for actor in plan.actors for ask in actor.asks]


def all_scenarios(sizes: Sizes) -> list[Scenario]:
    schemas = typed_schemas()["guided"]
    return [
        scenarios.burst(sizes),
        scenarios.preamble(sizes),
        scenarios.identities(sizes),
        scenarios.typed(sizes, "guided", schemas),
        scenarios.urgency(sizes).mixed,
        scenarios.long_prompt(sizes),
    ]


@pytest.mark.parametrize("sizes", [CPU, GPU, quick(CPU), quick(GPU), SMALL])
def test_each_sequence_of_a_scenario_fits_into_its_slot(sizes: Sizes) -> None:
    for scenario in all_scenarios(sizes):
        a_slot = scenario.context // scenario.slots
        assert a_slot % scenarios.CELLS_STEP == 0
        for plan in (scenario.plan(1), scenario.trial(1)):
            assert plan.limit_s > scenarios.START_SECONDS
            for actor in plan.actors:
                for ask in actor.asks:
                    words = len(ask.text.split()) + len(ask.identity.split())
                    assert words + ask.tokens_max <= a_slot


def test_a_repeat_asks_nothing_that_an_earlier_one_asked() -> None:
    for scenario in all_scenarios(SMALL):
        assert not set(asked(scenario.plan(1))) & set(asked(scenario.plan(2))), scenario.name


def test_a_burst_is_one_request_of_everybody() -> None:
    scenario = scenarios.burst(CPU)
    plan = scenario.plan(1)
    assert scenario.slots == len(plan.actors) == 8
    assert {len(text.split()) for text in asked(plan)} == {256}
    assert len(set(asked(plan))) == 8
    assert scenario.name == "8 agents at once, 256 in, 64 out"


def test_a_preamble_is_the_same_for_all_and_what_follows_is_not() -> None:
    found = asked(scenarios.preamble(CPU).plan(1))
    beginnings = {" ".join(text.split()[:2048]) for text in found}
    assert len(beginnings) == 1
    assert len(set(found)) == 8


def test_agents_come_back_with_their_identities_in_an_order_that_changes() -> None:
    plan = scenarios.identities(CPU).plan(1)
    assert plan.rounds
    for actor in plan.actors:
        assert len({" ".join(ask.text.split()[:1024]) for ask in actor.asks}) == 1
        assert len({ask.text for ask in actor.asks}) == 10
    orders = [
        tuple(sorted(names(plan), key=lambda name: delays(plan, turn)[name])) for turn in range(10)
    ]
    assert len(set(orders)) == 10
    assert len(scenarios.identities(CPU).trial(1).actors[0].asks) == 2


def delays(plan: Plan, turn: int) -> dict[str, float]:
    return {actor.name: actor.asks[turn].delay_s for actor in plan.actors}


def test_every_agent_makes_each_decision_in_every_round() -> None:
    schemas = typed_schemas()["guided"]
    plan = scenarios.typed(CPU, "guided", schemas).plan(1)
    for actor in plan.actors:
        assert [ask.schema for ask in actor.asks] == [*schemas.values()] * CPU.typed_rounds
    assert len(scenarios.typed(CPU, "guided", schemas).trial(1).actors[0].asks) == 3


def test_urgent_requests_come_by_a_schedule_among_low_ones() -> None:
    urgency = scenarios.urgency(CPU)
    plan = urgency.mixed.plan(1)
    low = [actor for actor in plan.actors if actor.kind == "low"]
    (urgent,) = (actor for actor in plan.actors if actor.kind == "urgent")
    assert len(low) == 16
    assert {actor.priority for actor in low} == {"low"}
    assert (urgent.priority, urgent.every_s, len(urgent.asks)) == ("urgent", 2.0, 28)
    assert names(urgency.low_alone(1)) == [actor.name for actor in low]
    assert names(urgency.idle(1)) == [urgent.name]
    assert urgency.mixed.trial(1).actors[0].until_s == scenarios.LOW_TRIAL_S


def test_a_long_prompt_comes_when_the_decodes_are_under_way() -> None:
    plan = scenarios.long_prompt(CPU).plan(1)
    kinds = [(actor.kind, actor.begin_s) for actor in plan.actors]
    assert kinds == [("decode", 0.0)] * 4 + [("prefill", scenarios.LONG_BEGIN_S)]


def test_the_warm_up_is_a_short_request_of_somebody_known() -> None:
    scenario = scenarios.urgency(CPU).mixed
    warm = scenarios.warm_up(scenario)
    assert names(warm) == names(scenario.plan(0))[:1]
    assert warm.actors[0].priority == "low"


# ---- Figures ------------------------------------------------------------------------------------


def answer(
    actor: str = "a",
    kind: str = "agent",
    asked_us: int = 0,
    ended_us: int = 1_000_000,
    arrivals_us: Iterable[int] = (),
    *,
    prompt: int = 0,
    cached: int = 0,
    generated: int = 0,
    forced: int = 0,
    text: str = "",
) -> Answer:
    said = Said(
        text=text,
        prompt_tokens=prompt,
        cached_tokens=cached,
        generated_tokens=generated,
        forced_tokens=forced,
    )
    return Answer(
        actor=actor,
        kind=kind,
        number=0,
        asked_us=asked_us,
        ended_us=ended_us,
        arrivals_us=list(arrivals_us),
        said=said,
    )


def values(figures: measures.Figures) -> dict[str, float]:
    return {name: figure.value for name, figure in figures.items()}


def test_throughput_is_from_the_first_request_to_the_last_token() -> None:
    answers = [
        answer(asked_us=500_000, ended_us=1_500_000, prompt=100, generated=20),
        answer(asked_us=600_000, ended_us=2_500_000, prompt=60, generated=20),
    ]
    assert measures.wall_s(answers) == 2.0
    assert values(measures.throughput(answers)) == {measures.TOTAL: 100.0, measures.OUT: 20.0}
    assert values(measures.wall(answers)) == {measures.WALL: 2.0}


def test_a_prefix_counts_as_computed_again_from_the_second_time_on() -> None:
    answers = [
        answer("a", asked_us=0, cached=0),
        answer("a", asked_us=30, cached=1030),
        answer("a", asked_us=20, cached=24),
        answer("b", asked_us=10, cached=0),
    ]
    assert values(measures.returning(answers, 1024))[measures.AGAIN] == 1000


def test_forced_tokens_are_not_decoded_and_validity_is_a_share() -> None:
    answers = [
        answer(generated=30, forced=20, text="good"),
        answer(generated=20, ended_us=500_000, text="bad"),
    ]
    found = values(measures.decided(answers, lambda one: one.said.text == "good"))
    assert found == {measures.REQUESTS: 2.0, measures.DECODED: 15.0, measures.VALID: 0.5}


def test_waits_are_those_of_a_kind_that_were_answered() -> None:
    answers = [
        answer(kind="low", asked_us=1000, arrivals_us=[3000, 9000]),
        answer(kind="low", asked_us=1000, arrivals_us=[]),
        answer(kind="urgent", asked_us=0, arrivals_us=[1000]),
    ]
    assert values(measures.waited(answers, "low")) == {
        "first token of low requests, p50": 2.0,
        "first token of low requests, p99": 2.0,
    }
    with pytest.raises(ValueError, match="no request"):
        measures.waited(answers, "normal")


def test_a_percentile_is_one_that_was_measured() -> None:
    hundred = [float(each) for each in range(1, 101)]
    assert [measures.percentile(hundred, share) for share in (0.0, 0.5, 0.99, 1.0)] == [
        1.0, 50.0, 99.0, 100.0,
    ]  # fmt: skip


def test_tokens_count_in_the_window_in_which_they_came() -> None:
    answers = [
        answer(arrivals_us=[500_000, 1_500_000], prompt=10, generated=4),
        answer(arrivals_us=[1_200_000, 2_000_000], prompt=10, generated=4),
        answer(),
    ]
    assert measures.rate_within(answers, 1.0, 2.0) == 2 + 10 + 2
    assert measures.rate_within(answers, 1.0, 3.0) == (2 + 10 + 4) / 2


def test_low_work_has_figures_with_and_without_urgent_requests() -> None:
    low = [answer(kind="low", arrivals_us=[1_000_000], prompt=8, generated=8)]
    alone = measures.urgent_and_low(low, 0.0, 2.0)
    assert alone[measures.TOTAL].value == 8
    both = measures.urgent_and_low([*low, answer(kind="urgent", arrivals_us=[5000])], 0.0, 2.0)
    assert both[measures.first_token("urgent", 50)].value == 5.0
    assert not set(alone) & {measures.first_token("urgent", 50)}


def test_the_longest_gap_is_within_one_answer_of_a_decode() -> None:
    prefill = answer(kind="prefill", asked_us=1000, arrivals_us=[31_000])
    answers = [
        answer(kind="decode", arrivals_us=[1000, 5000, 25_000]),
        answer(kind="decode", arrivals_us=[100_000]),
        prefill,
    ]
    found = values(measures.beside_prefill(answers))
    assert found == {measures.GAP: 20.0, measures.PREFILLED: 30.0}
    silent = answer(kind="prefill", asked_us=1000, ended_us=8000)
    assert values(measures.beside_prefill([silent])) == {measures.GAP: 0.0, measures.PREFILLED: 7.0}


def test_the_median_of_repeats_and_how_far_they_lie_apart() -> None:
    repeats = [{"rate": Figure(value, "tokens/s", "higher")} for value in (90.0, 110.0, 100.0)]
    assert measures.median(repeats) == {"rate": Figure(100.0, "tokens/s", "higher")}
    assert measures.spread(repeats, "rate") == 0.2
    assert measures.spread([{"rate": Figure(0.0, "s", "lower")}], "rate") == 0.0


def test_the_best_is_the_highest_rate_or_the_shortest_time() -> None:
    rates = {name: {"x": Figure(value, "", "higher")} for name, value in (("a", 1.0), ("b", 2.0))}
    times = {name: {"x": Figure(value, "", "lower")} for name, value in (("a", 1.0), ("b", 2.0))}
    assert measures.best(rates, "x") == "b"
    assert measures.best(times, "x") == "a"


# ---- Rows ---------------------------------------------------------------------------------------


def test_a_promise_is_a_factor_of_a_rate_and_its_reciprocal_of_a_time() -> None:
    ours = {"rate": Figure(150.0, "", "higher"), "time": Figure(2.0, "", "lower")}
    theirs = {"rate": Figure(100.0, "", "higher"), "time": Figure(4.0, "", "lower")}
    promises = [
        Promise(POOL, SERVER, "rate", 1.5),
        Promise(POOL, SERVER, "rate", 1.6),
        Promise(POOL, SERVER, "time", 2.0),
        Promise(POOL, SERVER, "time", 3.0),
        Promise(POOL, SERVER, "time"),
    ]
    rows = table.rows("CPU", {POOL: ours, SERVER: theirs}, promises)
    assert [(row.expected, row.met, row.ratio) for row in rows] == [
        (150.0, True, 1.5),
        (160.0, False, 1.5),
        (2.0, True, 0.5),
        (4.0 / 3, False, 0.5),
        (None, None, 0.5),
    ]


def test_a_peer_that_is_missing_leaves_the_figure_and_who_was_not_measured_has_none() -> None:
    ours = {POOL: {"rate": Figure(1.0, "tokens/s", "higher")}}
    promises = [Promise(POOL, SERVER, "rate", 1.5), Promise(table.ENGINE, SERVER, "rate", 1.0)]
    (row,) = table.rows("CPU", ours, promises)
    assert (row.measure, row.value, row.peer, row.expected, row.met) == (
        "CPU: rate", 1.0, None, None, None,
    )  # fmt: skip


def test_a_row_says_when_it_is_not_the_pool_that_was_measured() -> None:
    figure = {"rate": Figure(1.0, "tokens/s", "higher")}
    measured = {table.ENGINE: figure, SERVER: {"rate": Figure(0.0, "tokens/s", "higher")}}
    (row,) = table.rows("CPU", measured, [Promise(table.ENGINE, SERVER, "rate")])
    assert row.measure == "CPU: rate, engine alone"
    assert (row.peer_value, row.ratio) == (0.0, None)


def test_every_answer_must_be_valid_whatever_the_peer_does() -> None:
    half = {measures.VALID: Figure(0.5, "share", "higher")}
    promise = Promise(POOL, SERVER, measures.VALID)
    (row,) = table.rows("CPU", {POOL: half, SERVER: half}, [promise])
    assert (row.expected, row.met) == (1.0, False)


def test_a_simulation_is_a_row_for_each_class_and_figure() -> None:
    of_class = {"goodput_tokens_per_second": 2.0, "longest_wait_seconds": 1.0, "fairness": 1.0}
    fifo = {**of_class, "goodput_tokens_per_second": 0.0}
    said = {
        "minutes": 60,
        "pool": {"classes": {"urgent": of_class}},
        "fifo": {"classes": {"urgent": fifo}},
    }
    rows = simulated(json.dumps(said).encode())
    assert [(row.value, row.peer_value, row.ratio) for row in rows] == [
        (2.0, 0.0, None),
        (1.0, 1.0, 1.0),
        (1.0, 1.0, 1.0),
    ]
    with pytest.raises(msgspec.DecodeError):
        simulated(b"no simulation")


# ---- The typed decisions ------------------------------------------------------------------------


def schemas_of_the_agents() -> dict[str, dict[str, Schema]]:
    """What `agent_runtime` asks a model with, for an agent with the usual tools."""
    grants = Grants(
        agent="opsclaw",
        tools=(
            "fs.read", "fs.list", "fs.write", "host.read", "memory.search", "message.send",
            "task.create",
        ),
        publishes=("user.reply", "ops.report"),
        delegates=("devclaw", "uxclaw"),
        host_read=("/proc/loadavg", "/proc/meminfo", "@disk"),
    )  # fmt: skip
    tools = CATALOGUE.describe(grants)
    led, may_finish = narrowed(tools, "Is the disk full, and is the memory?", ())
    lessons = ["Next time, read @disk first for this.", "Next time, ask a person first about this."]
    return {
        "in its own words": {
            "triage": triage_schema(
                "act", None, priorities=["urgent", "high", "normal"], may_defer=True
            ),
            "act": call_schema(tools, may_finish=True, argument_chars_max=85),
            "reflect": reflection_schema(["success", "partial", "failure"]),
        },
        "guided": {
            "triage": triage_schema(
                "act",
                None,
                priorities=["urgent", "high", "normal"],
                may_defer=False,
                with_reason=False,
            ),
            "act": call_schema(led, may_finish=may_finish, argument_chars_max=85),
            "reflect": reflection_schema(["success", "partial"], lessons),
        },
    }


def test_the_schemas_are_those_that_the_agents_ask_with() -> None:
    assert typed_schemas() == schemas_of_the_agents()


# ---- The peers ----------------------------------------------------------------------------------


def device(kind: str, cores: int) -> Device:
    return Device(kind=kind, cores=cores, model=Path("model.gguf"))


def test_llama_server_is_tried_with_every_layout_and_number_of_threads() -> None:
    labels = [one.label for one in inference_peers.settings(device("cpu", 2))]
    assert labels == [
        "-kvu -t 1 -tb 1", "-no-kvu -t 1 -tb 1", "-kvu -t 2 -tb 2", "-no-kvu -t 2 -tb 2",
    ]  # fmt: skip
    assert len(inference_peers.settings(device("cpu", 1))) == 2
    labels = [one.label for one in inference_peers.settings(device("gpu", 16))]
    assert labels == ["-kvu", "-kvu -bs", "-no-kvu", "-no-kvu -bs"]


def test_the_size_of_a_step_is_tried_where_it_matters() -> None:
    found = inference_peers.settings(device("cpu", 1), batches=True)
    assert [one.label for one in found] == [
        "-kvu -t 1 -tb 1",
        "-kvu -t 1 -tb 1 -b 512 -ub 512",
        "-kvu -t 1 -tb 1 -b 128 -ub 128",
    ]


def test_the_ceiling_is_tried_with_those_that_it_has() -> None:
    found = inference_peers.ceiling_settings(device("gpu", 16))
    assert [one.label for one in found] == ["-kvu", "-no-kvu"]


def test_a_build_for_a_card_serves_the_processor_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    version = importlib.metadata.version("llama-cpp-python")
    none = inference_peers.built("gpu")
    assert none.server is None
    assert "make bench-peers CUDA=1" in none.missing[0]
    name = inference_builds.name_of(version, "cuda13.0-sm90")
    folder = tmp_path / "agentd" / "peers" / name
    folder.mkdir(parents=True)
    for program in inference_builds.PROGRAMS:
        (folder / program).touch()
    for kind in ("cpu", "gpu"):
        found = inference_peers.built(kind)
        assert (found.server, found.missing) == (folder / "llama-server", [])
    plain = tmp_path / "agentd" / "peers" / version
    plain.mkdir()
    (plain / "llama-server").touch()
    found = inference_peers.built("cpu")
    assert (found.server, found.ceiling) == (
        plain / "llama-server",
        folder / "llama-batched-bench",
    )


# ---- The command --------------------------------------------------------------------------------


def test_a_scenario_that_does_not_exist_is_refused_with_those_that_do() -> None:
    refused = agentd("bench", "inference", "--only", "everything")
    assert refused.status == 2
    assert "long-prompt" in refused.errors


def test_a_model_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.gguf")
    failed = agentd("bench", "inference", "--model", missing, "--device", "cpu", "--quick")
    assert failed.status == 1
    assert "none.gguf" in failed.errors


def test_the_simulation_alone_needs_no_model() -> None:
    report = run(Settings(quick=True, only=("simulation",), devices=("cpu",)), lambda _: None)
    assert len(report.measures) == 15
