"""Hostile input: drawn by Hypothesis, given to each layer, and held against what a reader may rely on."""
