"""The tables. Importing the package imports every module in it, so that Alembic and the mappers know them all."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)
