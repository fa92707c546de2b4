"""The tables. Importing the package imports all of its modules, so that Alembic and the mappers know every table."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)
