"""What `python -m eval` can be asked to do, one file a command."""
