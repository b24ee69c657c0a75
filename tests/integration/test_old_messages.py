"""A daemon deletes what is older than the retention window, and says how much."""

from daemons import Installation, short_folder

from orchestrator.store.database import Database

DAY_US = 86_400_000_000


def make_older(installation: Installation, days: int) -> None:
    """As if everything in the store had happened so many days earlier."""
    database = Database(installation.state / "agentd.db", writable=True)
    try:
        database.execute("BEGIN IMMEDIATE")
        database.actor = "bus"
        database.tell_actor()
        for table, columns in (
            ("conversation", ("opened_us", "answered_us")),
            ("message", ("sent_us", "expires_us")),
            ("delivery", ("queued_us", "begun_us", "leased_us", "finished_us")),
        ):
            earlier = ", ".join(f"{column} = {column} - {days * DAY_US}" for column in columns)
            database.execute(f"UPDATE {table} SET {earlier}")
        database.commit()
    finally:
        database.close()


def test_what_is_older_than_the_retention_window_is_deleted() -> None:
    with short_folder() as folder:
        installation = Installation.bare(folder / "here", bus={"retention": "6d"})
        installation.add_agent("sink", brain="echo", consumes=["work.in"])
        with installation.running() as daemon:
            for name in ("old", "newest of the old"):
                daemon.ctl("send", "work.in", name, "--wait", "--timeout", "20s")
        make_older(installation, days=5)
        with installation.running() as daemon:
            daemon.ctl("send", "work.in", "young", "--wait", "--timeout", "20s")
            assert daemon.rows("SELECT count(*) FROM message") == [(3,)]
        make_older(installation, days=2)
        with installation.running() as daemon:
            kept = "SELECT CAST(payload AS TEXT) FROM message ORDER BY id"
            daemon.wait(lambda: daemon.rows(kept) == [("young",)], "to delete what is old", 30)
            metrics = daemon.metrics()
            for table in ("conversation", "message", "delivery"):
                assert metrics.total("agentd_store_rows_deleted_total", table=table) == 2
