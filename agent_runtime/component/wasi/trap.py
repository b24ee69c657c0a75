"""What a host function raises to end the call of the component, with the reason."""


class HostTrap(Exception):
    """The component did, or asked for, what only a trap can answer."""
