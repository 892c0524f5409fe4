"""Diffusion as pure functions: schedule, prediction, guidance, samplers. Knows no network."""
