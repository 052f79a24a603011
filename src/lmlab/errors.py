"""How things go wrong, and the exit status that each gets: a failed audit has that of a failed training."""

DONE, OUR_FAULT, USER_INPUT, TRAINING_FAILED, INTERRUPTED = 0, 1, 2, 3, 130


class TrainingFailed(RuntimeError):
    """Training cannot go on: the loss is not finite, memory or disk ran out. Says what is kept."""


class NotFinite(TrainingFailed):
    """A loss, a gradient or a weight is no longer a number. Who knows the run's directory adds what is kept."""
