"""What `python -m preencode` can be asked to do, one file a command."""
