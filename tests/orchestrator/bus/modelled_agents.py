"""The agents of the model: one that nobody screens, one that is, a conductor, and a newcomer."""

from modelled_things import Agent


def agents() -> list[Agent]:
    return [
        Agent(
            "alfa",
            rank=2,
            inbox=4,
            consumes=("work.>",),
            publishes=("more.a", "note.x", "void.x", "user.reply"),
            delegates=("bravo",),
            screened=False,
            state_max=400,
        ),
        Agent(
            "bravo",
            rank=1,
            inbox=3,
            consumes=("work.a", "more.*", "note.*"),
            publishes=("work.b", "note.x", "user.reply"),
            delegates=("alfa", "delta"),
            state_max=400,
        ),
        Agent(
            "carol",
            rank=2,
            inbox=2,
            consumes=("note.*",),
            publishes=("user.reply", "work.c"),
            conductor=True,
        ),
        Agent(
            "delta",
            rank=4,
            inbox=16,
            consumes=("work.>", "late.x"),
            publishes=("user.reply", "work.a"),
            state_max=400,
            active=False,
        ),
    ]
