"""What runs: graphs, channels, steps, runs, and the Ray actors around them."""
