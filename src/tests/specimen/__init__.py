"""A small application of the tests' own. The tests of the machinery use it, and so need none of the shipped resources.

Users collect moths, which lie in drawers; a drawer has slips. `specimen.main` builds the service with these routes in
addition. Their tables are beside the migrated ones, in the tests' databases only. They have metadata of their own:
neither Alembic nor the service's OpenAPI document knows them. A resource of yours is unlikely to have one of the names.
"""
