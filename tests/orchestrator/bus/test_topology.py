"""Who reaches whom over which topic, and what is told about topics that lead nowhere."""

import pytest

from ipc_protocol.bus import Topic, TopicSubscriber
from orchestrator.bus.routing import Member
from orchestrator.bus.topics import matches
from orchestrator.bus.topology import Declared, Lag, Use, lines, overlaps, topology, warnings


def member(name: str, *publishes: str, delegates: tuple[str, ...] = ()) -> Member:
    return Member(
        name=name,
        role="agent",
        rank=2,
        publishes=publishes,
        delegates=frozenset(delegates),
        inbox_max=8,
    )


def table(
    members: list[Member], *subscriptions: tuple[str, str], use: Use | None = None
) -> dict[str, Topic]:
    declared = Declared(members=tuple(members), subscriptions=subscriptions)
    return {row.name: row for row in topology(declared, use or Use())}


# ---- Patterns that meet --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a", "a.b", False),
        ("a.*", "a.b", True),
        ("a.*", "*.b", True),
        ("a.*", "b.*", False),
        ("*", "a.b", False),
        (">", "a.b", True),
        ("a.>", "a", False),
        ("a.>", "a.b.c", True),
        ("a.>", "*.*.c", True),
        ("a.>", "b.>", False),
        ("a.b.>", "a.>", True),
    ],
)
def test_two_patterns_meet_where_a_topic_matches_both(one: str, other: str, meet: bool) -> None:
    assert (overlaps(one, other), overlaps(other, one)) == (meet, meet)
    witnesses = [topic for topic in TOPICS if matches(one, topic) and matches(other, topic)]
    assert bool(witnesses) == meet


TOPICS = ["a", "b", "a.b", "a.c", "b.b", "a.b.c", "b.a.c", "a.a.c"]


# ---- Who reaches whom ----------------------------------------------------------------------------


def test_a_row_has_those_who_may_publish_there_and_those_who_receive_it() -> None:
    rows = table([member("ops", "disk.full"), member("dev")], ("dev", "disk.*"), ("sec", ">"))
    assert list(rows) == [">", "disk.*", "disk.full"]
    for row in rows.values():
        assert row.publishers == ["ops"]
        assert [each.agent for each in row.subscribers] == ["dev", "sec"]


def test_who_is_addressed_by_name_is_a_row_of_its_own() -> None:
    row = table([member("ops", delegates=("dev",)), member("dev")])["agent.dev"]
    assert (row.publishers, row.subscribers) == (["ops"], [TopicSubscriber(agent="dev")])
    assert row.leads_nowhere == []


def test_what_is_addressed_to_one_is_counted_for_those_who_delegate_to_it() -> None:
    use = Use(messages={"agent.dev": 3})
    rows = table([member("ops", delegates=("dev",)), member("dev")], ("sec", ">"), use=use)
    assert {name: row.messages for name, row in rows.items()} == {">": 0, "agent.dev": 3}


def test_a_topic_that_nobody_declares_and_that_is_used_is_a_row_too() -> None:
    use = Use(messages={"agent.ops": 2, "disk.full": 1}, lags=[Lag("ops", "agent.ops", 1, 7)])
    rows = table([member("ops")], ("ops", "disk.*"), use=use)
    assert list(rows) == ["agent.ops", "disk.*"]
    assert rows["disk.*"].messages == 1
    assert rows["agent.ops"].subscribers == [TopicSubscriber(agent="ops", pending=1, oldest_us=7)]


def test_what_is_addressed_to_one_is_not_counted_for_those_who_receive_everything() -> None:
    use = Use(messages={"agent.ops": 2, "disk.full": 1}, stored=frozenset({"old.topic"}))
    rows = table([member("ops")], ("sec", ">"), use=use)
    assert {name: row.messages for name, row in rows.items()} == {">": 1, "agent.ops": 2}


def test_what_only_the_store_knows_of_is_no_row() -> None:
    assert table([member("ops", "a")], use=Use(stored=frozenset({"b"}))).keys() == {"a"}


# ---- How much ------------------------------------------------------------------------------------


def test_a_pattern_counts_all_the_topics_that_it_matches() -> None:
    use = Use(messages={"a.b": 3, "a.c": 4, "b": 9}, rates={"a.b": 0.5, "a.c": 1.0, "b": 7.0})
    row = table([member("ops", "a.*")], ("dev", "a.>"), use=use)["a.*"]
    assert (row.messages, row.per_second) == (7, 1.5)


def test_the_lag_is_that_of_the_row_with_the_age_of_the_oldest() -> None:
    lags = [Lag("dev", "a.b", 2, 20), Lag("dev", "a.c", 1, 10), Lag("dev", "b", 5, 1)]
    rows = table([member("ops", "a.b")], ("dev", "a.*"), ("dev", "b"), use=Use(lags=lags))
    assert rows["a.*"].subscribers == [TopicSubscriber(agent="dev", pending=3, oldest_us=10)]
    assert rows["a.b"].subscribers == [TopicSubscriber(agent="dev", pending=2, oldest_us=20)]


def test_who_does_not_subscribe_any_more_and_has_something_left_is_shown() -> None:
    row = table([member("ops", "a.b")], use=Use(lags=[Lag("gone", "a.b", 1, 5)]))["a.b"]
    assert row.subscribers == [TopicSubscriber(agent="gone", pending=1, oldest_us=5)]


# ---- What leads nowhere --------------------------------------------------------------------------


def test_what_nobody_else_receives_leads_nowhere() -> None:
    rows = table([member("ops", "a.b"), member("dev", "a.b")], ("ops", "a.*"))
    assert rows["a.b"].leads_nowhere == ["ops"]
    assert rows["a.*"].leads_nowhere == []
    assert warnings(rows.values()) == ["ops may publish on 'a.b', and nobody else receives it."]


def test_a_delegate_that_is_not_there_leads_nowhere() -> None:
    rows = table([member("ops", delegates=("devclav",)), member("devclaw")])
    assert rows["agent.devclav"].leads_nowhere == ["ops"]
    assert rows["agent.devclav"].near == "agent.devclaw"


def test_a_reply_does_not_lead_nowhere() -> None:
    rows = table([member("ops", "user.reply"), member("dev", "user.*")])
    assert warnings(rows.values()) == []
    assert lines(rows.values()) == [
        "user.*: ops, dev → the conversation",
        "user.reply: ops, dev → the conversation",
    ]


def test_what_no_other_agent_feeds_is_told_with_the_name_that_is_like_it() -> None:
    rows = table([member("ops", "disk.report"), member("dev")], ("dev", "disk.reports"))
    assert rows["disk.reports"].unfed == ["dev"]
    assert rows["disk.reports"].near == "disk.report"
    assert rows["disk.report"].near == "disk.reports"
    assert warnings(rows.values()) == [
        "ops may publish on 'disk.report', and nobody else receives it. Is 'disk.reports' meant?",
        "dev may receive from 'disk.reports', and no other agent publishes there."
        " Is 'disk.report' meant?",
    ]
    assert lines(rows.values()) == [
        "disk.report: ops → nobody",
        "disk.reports: only the operator → dev",
    ]


def test_what_only_people_send_to_is_told_without_a_warning() -> None:
    members = [member("ops", "disk.report"), member("dev", "disk.reported")]
    subscriptions = (("dev", "disk.report"), ("ops", "disk.reported"), ("dev", "disk.reports"))
    used = table(members, *subscriptions, use=Use(messages={"disk.reports": 1}))
    assert (used["disk.reports"].unfed, used["disk.reports"].near) == (["dev"], "")
    assert warnings(used.values()) == []
    unlike = table(members, *subscriptions[:2], ("dev", "load"))
    assert (unlike["load"].unfed, unlike["load"].near) == (["dev"], "")
    assert warnings(unlike.values()) == []


def test_a_warning_names_all_whom_it_is_about_and_no_name_that_is_unlike() -> None:
    rows = table([member(name, "a.b") for name in ("one", "two", "three")])
    assert warnings(rows.values()) == [
        "one, two and three may publish on 'a.b', and nobody else receives it."
    ]


def test_what_people_ask_need_not_be_published_by_an_agent() -> None:
    rows = table([member("ops")], ("ops", "user.request"))
    assert rows["user.request"].unfed == []


# ---- What is never used --------------------------------------------------------------------------


def test_what_was_declared_and_never_used_names_who_declared_it() -> None:
    rows = table([member("ops", "a.b"), member("dev")], ("dev", "a.b"), ("dev", "c"))
    assert rows["a.b"].unused_by == ["dev", "ops"]
    assert rows["c"].unused_by == ["dev"]


def test_what_is_in_the_store_or_was_counted_is_used() -> None:
    use = Use(stored=frozenset({"a.b"}), messages={"c": 1})
    rows = table([member("ops", "a.*")], ("dev", "a.b"), ("dev", "c"), use=use)
    assert [row.unused_by for row in rows.values()] == [[], [], []]
