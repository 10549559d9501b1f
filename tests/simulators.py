"""An environment of Gymnasium for tests: a point on a line, whose task is where it should be, with faults if asked."""

import os
import signal
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Line(gymnasium.Env[Any, Any]):
    """A point starts near 0 and moves by its action, clipped to ±0.5, with noise; the reward is minus its distance from
    `target`. It ends beyond ±3.

    harm: what is wrong with it, after three steps in any episode.
    """

    def __init__(self, harm: str = "", render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space: Any = spaces.Box(-0.5, 0.5, (1,), np.float32)
        if harm == "actions":
            self.action_space = spaces.MultiDiscrete([2, 2])
        if harm == "observations":
            self.observation_space = spaces.Discrete(3)  # type: ignore[assignment]
        self.harm, self.target, self.steps, self.place = harm, 0.0, 0, 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.place = 0, float(self.np_random.uniform(-0.1, 0.1))
        return self._observation(), {}

    def set_target(self, value: float) -> None:
        self.target = value

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.steps += 1
        if self.steps > 3 and self.harm == "raise":
            raise RuntimeError("the solver did not converge")
        if self.steps > 3 and self.harm == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self.place += float(action[0]) + float(self.np_random.normal(0, 0.01))
        reward = -abs(self.place - self.target)
        if self.steps > 3 and self.harm == "nan":
            reward = float("nan")
        return self._observation(), reward, abs(self.place) > 3, False, {}

    def _observation(self) -> Any:
        return np.array([self.place, self.steps / 10])


gymnasium.register("Line-v0", Line)
