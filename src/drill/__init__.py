"""Drills: what takes too long for each run of the tests. Each module of this package has a `main()`."""
