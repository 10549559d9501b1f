"""Define the size of tasks that are environments."""

from dataclasses import dataclass

_MOST = 10**6


@dataclass(frozen=True)
class EnvironmentShape:
    """How many episodes a policy acts in before each update of its parameters, and for each score."""

    episodes: int = 20

    def __post_init__(self) -> None:
        if not 1 <= self.episodes <= _MOST:
            raise ValueError(f"episodes: {self.episodes} is none of 1 to {_MOST}: set one of these")

    @property
    def most_examples(self) -> tuple[int, int]:
        """Return the numbers of episodes to adapt to and to judge by."""
        return self.episodes, self.episodes
