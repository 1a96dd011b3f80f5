"""The stores: whatever passes tests/conformance is one."""
