"""Runs the stages in order, here or as Ray jobs on a cluster, and tells how far each is."""
