"""Drills: checks that are too slow for each run of the tests. Each module of this package has a `main()`."""
