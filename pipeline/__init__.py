"""Runs the stages in order on one Ray, and tells how far each of them is."""
