"""What every stage program shares: command line, Ray session, stage states, progress and logs."""
