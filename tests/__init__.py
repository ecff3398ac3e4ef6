"""One test file per module; `profiles` makes a profile small enough for tests."""
