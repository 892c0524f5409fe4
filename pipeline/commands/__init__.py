"""What `python -m pipeline` can be asked to do, one file a command.

Each has TEXT (its first line is the help of the command), EPILOG, `add` and `run`.
"""
