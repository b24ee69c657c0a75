"""The diagrams of docs/architecture.md, made from the tables of states.

python -m tests.state_diagrams        renews the page; a test compares it
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from orchestrator.bus.conversation import CONVERSATION
from orchestrator.bus.delivery import DELIVERY

PAGE: Final = Path(__file__).parent.parent / "docs" / "architecture.md"
START: Final = "<!-- states:start -->\n"
END: Final = "<!-- states:end -->"


def diagram(initial: str, table: Mapping[tuple[str, str], str]) -> str:
    """One table as a mermaid diagram."""
    arrows = [f"    {before} --> {after}: {event}" for (before, event), after in table.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", f"    [*] --> {initial}", *arrows, "```"])


def renewed(page: str) -> str:
    """The page with the diagrams of today's tables."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    diagrams = [diagram("queued", DELIVERY.table), diagram("open", CONVERSATION.table)]
    return before + START + "\n\n".join(diagrams) + "\n" + END + after


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text("utf-8")), "utf-8")
