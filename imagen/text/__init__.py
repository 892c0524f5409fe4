"""The frozen T5 encoder and what is stored of it."""
