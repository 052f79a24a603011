"""Training: one optimisation step on a global batch, what watches it, and what a run leaves."""

import lmlab.deferred  # noqa: F401  before Lightning is imported: it takes half as long
