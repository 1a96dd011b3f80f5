"""Where it is: stores, client, settings, metrics, the command line."""
