"""Sweeps: many trials of one question, drawn from a ledger by workers that stay warm.

A sweep is a directory: `sweep.yaml` (what was asked), `ledger.sqlite` (what every trial is doing), `study.sqlite`
(the same for optuna-dashboard), `trials/NAME-HASH/` (a run's directory each), `workers/` (what each worker said).
A *point* is one choice of the parameters, a *trial* one run of it; replicates are trials that differ in their seed.
"""
