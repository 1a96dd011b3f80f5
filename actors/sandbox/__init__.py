"""Where tool calls execute: one file per isolation backend."""
