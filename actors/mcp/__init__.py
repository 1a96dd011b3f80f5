"""MCP servers as tools: each call starts the server in a sandbox of its own, and only for tools that are pinned."""
