"""Measurements of aurora-lora: speed and memory, calibration, merges into quantised models, probes, frozen features."""
