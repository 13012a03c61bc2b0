"""Learning rate schedules: factors of the peak rate by the share of steps done."""

from __future__ import annotations

import math
from collections.abc import Callable

from direct_anneal.config.names import ScheduleName as ScheduleName

# All but the last fall from 1 to 0. 1-sqrt: Hägele et al., arXiv:2405.18392, who found it ahead of linear and cosine.
SCHEDULES: dict[ScheduleName, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "1-sqrt": lambda done: 1 - math.sqrt(done),
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "constant": lambda _: 1.0,  # the stable phase
}


def rate_factor(schedule: ScheduleName, step: int, num_steps: int, warm_up_steps: int = 0) -> float:
    """Return the factor of step 0..num_steps: warm-up rises linearly to 1, and the schedule covers what comes after it.

    The last step that is taken, num_steps − 1, has a rate above 0: a step at rate 0 would be wasted.

    >>> [rate_factor("linear", step, 4) for step in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if step < warm_up_steps:
        return (step + 1) / (warm_up_steps + 1)
    return SCHEDULES[schedule]((step - warm_up_steps) / (num_steps - warm_up_steps))
