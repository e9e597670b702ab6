"""Scale the loss dynamically, as DeepSpeed did for the Pythia models trained in fp16.

The loss is multiplied by `scale`, so that small gradients do not vanish in fp16. If a gradient then
exceeds the largest fp16 number, the update "overflows" and is skipped: weights, Adam's moments and
learning rate stay as they are.

The first overflow does not change the scale (`HYSTERESIS` is 2). Each further overflow halves it.
After `WINDOW` updates without an overflow, the scale doubles, and the next overflow again does not
change it. The constants are those of Pythia's configs.
"""

from __future__ import annotations

from dataclasses import dataclass

from pythia_core.errors import TrainingError

INITIAL = 2.0**12
WINDOW = 1000
HYSTERESIS = 2
MINIMUM = 1.0


@dataclass
class LossScale:
    """The loss scale of a run in fp16, and the counters that decide when it changes."""

    scale: float = INITIAL
    good: int = 0
    """Number of updates since the last overflow, or since the start."""
    hysteresis: int = HYSTERESIS
    """Number of overflows until the scale is halved. At 1, the next overflow halves the scale."""
    skipped: int = 0
    """Number of skipped updates so far, by which the learning rate lags behind the step."""

    def update(self, overflow: bool) -> None:
        """Adapt the scale and the counters after an update.

        Raises:
            TrainingError: the update overflowed at the minimum scale.
        """
        if not overflow:
            self.good += 1
            if self.good % WINDOW == 0:
                self.scale *= 2
                self.hysteresis = HYSTERESIS
            return
        if self.hysteresis > 1:
            self.hysteresis -= 1
        elif self.scale <= MINIMUM:
            raise TrainingError(
                f"the gradient overflows fp16 even at the minimum loss scale, {self.scale:g}, "
                f"after {self.skipped} skipped updates. Train in bf16, or with a lower lr_max"
            )
        else:
            self.scale = max(self.scale / 2, MINIMUM)
        self.good = 0
        self.skipped += 1
