"""Measuring models: protocols, and the one evaluator."""
