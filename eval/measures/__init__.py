"""Measures of samples: each module is one family of numbers, each number has its uncertainty."""
