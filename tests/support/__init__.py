"""What tests of every folder share: real servers, waiting, and the processes a test run leaves behind."""
