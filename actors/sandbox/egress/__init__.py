"""The one way out of a sandbox: a proxy that decides on each connection, makes it, and keeps a record of it."""
