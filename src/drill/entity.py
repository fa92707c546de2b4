"""Type an entity in as chapter 5 of the README says, do what the messages say, and run `make check`.

The entity has a column of each type that people use, a reference to the user and one to another table.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.repository import clone_to

FILES = {
    "src/app/domain/__init__.py": "",
    "src/app/domain/product.py": """\
from enum import StrEnum


class Condition(StrEnum):
    NEW = "new"
    USED = "used"
""",
    "src/app/models/product.py": """\
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, JSON, DateTime, Enum, ForeignKey, Numeric, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base
from app.core.models import PersistentDeletion, TimestampModel, UUIDModel
from app.domain.product import Condition


class Shelf(Base):
    __tablename__ = "shelf"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    name: Mapped[str] = mapped_column(String(50), unique=True)


class Product(UUIDModel, TimestampModel, PersistentDeletion, Base):
    __tablename__ = "product"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    description: Mapped[str] = mapped_column(Text)
    stock: Mapped[int]
    is_active: Mapped[bool]
    weight: Mapped[float]
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    made_on: Mapped[date]
    sold_from: Mapped[time]
    sold_since: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    warranty: Mapped[timedelta]
    code: Mapped[UUID]
    condition: Mapped[Condition] = mapped_column(Enum(Condition, name="condition"))
    details: Mapped[dict[str, Any]] = mapped_column(JSON)
    tags: Mapped[list[str]] = mapped_column(ARRAY(String(50)))
    seller_id: Mapped[int] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"))
    shelf_id: Mapped[int] = mapped_column(ForeignKey("shelf.id"))
    thumbnail: Mapped[bytes | None] = mapped_column(default=None)
""",
    "src/app/schemas/product.py": """\
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

from pydantic import MISSING, AwareDatetime, Base64Bytes, Field

from app.core.models import InputSchema, ReadSchema, RowId, Text
from app.domain.product import Condition

Name = Annotated[Text, Field(min_length=1, max_length=100)]
Price = Annotated[Decimal, Field(ge=0, max_digits=10, decimal_places=2)]
Stock = Annotated[int, Field(ge=0, le=1_000_000)]
Weight = Annotated[float, Field(ge=0, le=1000)]
Tags = Annotated[list[Annotated[Text, Field(max_length=50)]], Field(max_length=20)]
ShelfId = RowId


class ShelfRead(ReadSchema):
    id: int
    name: str


class ShelfCreate(InputSchema):
    name: Annotated[Text, Field(min_length=1, max_length=50)]


class ShelfUpdate(InputSchema):
    name: Annotated[Text, Field(min_length=1, max_length=50)] | MISSING = MISSING


class ProductRead(ReadSchema):
    id: int
    name: str
    description: str
    stock: int
    is_active: bool
    weight: float
    price: Decimal
    made_on: date
    sold_from: time
    sold_since: datetime
    warranty: timedelta
    code: UUID
    condition: Condition
    details: dict[str, Any]
    tags: list[str]
    seller_id: int
    shelf_id: int
    created_at: datetime


class ProductCreate(InputSchema):
    name: Name
    description: Text
    stock: Stock
    is_active: bool = True
    weight: Weight
    price: Price
    made_on: date
    sold_from: time
    sold_since: AwareDatetime
    warranty: timedelta
    code: UUID
    condition: Condition
    details: dict[str, Any]
    tags: Tags
    shelf_id: ShelfId
    thumbnail: Base64Bytes | None = None


class ProductUpdate(InputSchema):
    name: Name | MISSING = MISSING
    description: Text | MISSING = MISSING
    stock: Stock | MISSING = MISSING
    is_active: bool | MISSING = MISSING
    weight: Weight | MISSING = MISSING
    price: Price | MISSING = MISSING
    made_on: date | MISSING = MISSING
    sold_from: time | MISSING = MISSING
    sold_since: AwareDatetime | MISSING = MISSING
    warranty: timedelta | MISSING = MISSING
    code: UUID | MISSING = MISSING
    condition: Condition | MISSING = MISSING
    details: dict[str, Any] | MISSING = MISSING
    tags: Tags | MISSING = MISSING
    shelf_id: ShelfId | MISSING = MISSING
    thumbnail: Base64Bytes | MISSING | None = MISSING
""",
    "src/app/crud/crud_products.py": """\
from app.crud.crud_base import CRUDBase
from app.models.product import Product, Shelf
from app.schemas.product import ProductCreate, ProductUpdate, ShelfCreate, ShelfUpdate

crud_products = CRUDBase[Product, ProductCreate, ProductUpdate](Product)
crud_shelves = CRUDBase[Shelf, ShelfCreate, ShelfUpdate](Shelf)
""",
    "src/app/api/v1/products.py": '''\
from datetime import date
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request

from app.api.dependencies import CurrentSuperuser, CurrentUser, ReaderDep, SessionDep
from app.api.exceptions import ensure_found, responses
from app.api.paginated import CursorPageDep, PaginatedListResponse
from app.core.cache import cache
from app.core.exceptions import (
    DuplicateValueError,
    ForbiddenError,
    MissingReferenceError,
    NotFoundError,
    UnauthorizedError,
)
from app.core.models import Message, RowId
from app.crud.crud_products import crud_products, crud_shelves
from app.domain.product import Condition
from app.models.product import Product, Shelf
from app.schemas.product import ProductCreate, ProductRead, ProductUpdate, ShelfCreate, ShelfRead

router = APIRouter(tags=["products"])

ProductId = Annotated[RowId, Path()]
Errors = responses(UnauthorizedError, DuplicateValueError, MissingReferenceError)


@router.post("/shelf", response_model=ShelfRead, status_code=201, responses=Errors | responses(ForbiddenError))
async def write_shelf(shelf: ShelfCreate, db: SessionDep, _: CurrentSuperuser) -> Shelf:
    """Add a shelf."""
    return await crud_shelves.create(db, shelf)


@router.post("/product", response_model=ProductRead, status_code=201, responses=Errors)
async def write_product(product: ProductCreate, db: SessionDep, user: CurrentUser) -> Product:
    """Add a product."""
    return await crud_products.create(db, product, seller_id=user["id"])


@router.get("/products", response_model=PaginatedListResponse[ProductRead])
async def read_products(
    db: ReaderDep,
    page: CursorPageDep,
    price: Annotated[Decimal | None, Query(ge=0, max_digits=10, decimal_places=2)] = None,
    condition: Condition | None = None,
    made_on: date | None = None,
    code: UUID | None = None,
    shelf_id: RowId | None = None,
) -> dict[str, Any]:
    """List the products."""
    given = {"price": price, "condition": condition, "made_on": made_on, "code": code, "shelf_id": shelf_id}
    filters = {name: value for name, value in given.items() if value is not None}
    products = await crud_products.get_multi(
        db, page.offset, page.items_per_page, ProductRead, after=page.after, is_deleted=False, **filters
    )
    return page.response(products)


@router.get("/product/{id}", response_model=ProductRead, responses=responses(NotFoundError))
@cache("product", resource_id_name="id")
async def read_product(request: Request, id: ProductId, db: ReaderDep) -> dict[str, Any]:
    """Read a product."""
    return ensure_found(await crud_products.get(db, ProductRead, id=id, is_deleted=False), "Product")


@router.patch("/product/{id}", response_model=ProductRead, responses=Errors)
@cache("product", resource_id_name="id")
async def patch_product(
    request: Request, id: ProductId, values: ProductUpdate, db: SessionDep, _: CurrentUser
) -> dict[str, Any]:
    """Change what the body names in a product."""
    product = await crud_products.update_one(db, values, ProductRead, id=id, is_deleted=False)
    return ensure_found(product, "Product")


@router.delete("/product/{id}", responses=responses(UnauthorizedError, ForbiddenError, NotFoundError))
@cache("product", resource_id_name="id")
async def erase_product(request: Request, id: ProductId, db: SessionDep, _: CurrentSuperuser) -> Message:
    """Delete a product; the row stays."""
    if not await crud_products.delete(db, id=id):
        raise NotFoundError("Product not found")
    return Message(message="Product deleted")
''',
}

INCLUDE = "router.include_router(products_router)"
IMPORT = "from app.api.v1.products import router as products_router"
# These tests name the lines to add, and take a minute; the rest of the suite runs at the end, in `make check`.
QUICK = ("test_access.py::test_every_operation_has_a_row", "test_openapi.py::TestDocument", "test_repository.py")
STEPS = ("format-check", "style", "imports", "types", "lock-check", "openapi-check", "freeze-check", "migrations")
ROUNDS = 4


class EntityError(Exception):
    pass


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="entity-") as folder:
        top = Path(folder) / "clone"
        clone_to(top)
        type_in(top)
        for _ in range(ROUNDS):
            printed = "".join([*(make(top, step) for step in STEPS), pytest(top)])
            if not printed:
                break
            if not follow(top, printed):
                raise EntityError(f"no message says what to do:\n{printed}")
        else:
            raise EntityError(f"not green after {ROUNDS} rounds:\n{printed}")
        subprocess.run(["make", "check"], cwd=top, env=environment(), check=True)  # noqa: S607


def type_in(top: Path) -> None:
    """Do what chapter 5 of the README says, up to the migration."""
    for name, text in FILES.items():
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).write_text(text)
    routers = top / "src/app/api/v1/__init__.py"
    before, line, after = routers.read_text().partition("from fastapi import APIRouter\n")
    routers.write_text(f"{before}{line}\n{IMPORT}\n{after}\n{INCLUDE}\n")
    commands = ("upgrade head", 'revision --autogenerate -m "add products"', "upgrade head")
    script = " && ".join(f"{sys.executable} -m alembic {command}" for command in commands)
    command = [sys.executable, "-m", "scripts.servers", "sh", "-c", script]
    subprocess.run(command, cwd=top / "src", env=environment(), check=True, capture_output=True)


def environment() -> dict[str, str]:
    # With CI set, pytest prints each message a second time, with another indentation.
    return {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "CI"}


def make(top: Path, step: str) -> str:
    """Run a part of `make check`; return what it printed if it failed."""
    return _output(["make", "--no-print-directory", step], top)


def pytest(top: Path) -> str:
    tests = [f"tests/integration/{test}" for test in QUICK]
    command = [sys.executable, "-m", "pytest", "-n", "auto", "--tb=short", "-q", "-p", "no:cacheprovider", *tests]
    return _output(command, top / "src")


def _output(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment(), check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.stdout if done.returncode else ""


def follow(top: Path, printed: str) -> bool:
    """Do what the messages say: run a target of make, and paste lines at their place. Return whether any said so."""
    text = re.sub(r"^E {0,5}", "", printed, flags=re.MULTILINE)
    targets = {*re.findall(r": (make [a-z]+)$", text, re.MULTILINE)}
    lines = {*re.findall(r" at ([\w/.-]+):(\d+)[^\n]*\n((?: {4}.+\n)+)", text)}
    for file, number, added in sorted(lines, key=lambda each: -int(each[1])):
        print(f"paste at {file}:{number}\n{added}", end="", flush=True)
        old = (top / file).read_text().splitlines(keepends=True)
        (top / file).write_text("".join([*old[: int(number) - 1], added, *old[int(number) - 1 :]]))
    for target in sorted(targets):
        print(target, flush=True)
        subprocess.run(target.split(), cwd=top, env=environment(), check=True, capture_output=True)
    return bool(targets or lines)
