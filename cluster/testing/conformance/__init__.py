"""What every store has to pass; see suite.py."""
