"""What others may test with: a conformance suite for stores. Needs pytest, which the rest of the package does not."""
