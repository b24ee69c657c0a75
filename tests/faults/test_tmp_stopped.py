import os, signal, time
import pytest
from daemons import Installation

def test_stopped(installation: Installation) -> None:
    with installation.running() as daemon:
      try:
          global pid
          pid = {e["name"]: e["pid"] for e in daemon.status()["engines"]}["embed"]
          os.kill(pid, signal.SIGSTOP)
          b=time.monotonic(); print(daemon.ctl("memory","--query","disk")); print("memory", time.monotonic()-b)
          b=time.monotonic(); t=daemon.answered("Is the load of this server too high?", "c1"); print("answered", time.monotonic()-b, [ (d["agent"], d["outcome"], d["reason"]) for d in t["deliveries"]])
          s=daemon.status(); print(s["healthy"], s["engines"][-1]["detail"], s["engines"][-1].get("status"))
          print(daemon.http("/healthz"))
          os.kill(pid, signal.SIGCONT)
          daemon.wait_healthy()
          print(daemon.rows("SELECT kind, detail FROM health"))
      finally:
          os.kill(pid, signal.SIGCONT)
