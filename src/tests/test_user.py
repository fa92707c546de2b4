"""An example to copy for a new entity: create, read, list, change and delete through the API."""

import httpx

from app.core.config import settings
from app.models.user import User
from tests.helper import get_token

PASSWORD = settings.TEST_PASSWORD.get_secret_value()
ADMIN_PASSWORD = settings.ADMIN_PASSWORD.get_secret_value()


async def test_post_user(client: httpx.AsyncClient) -> None:
    body = {
        "name": settings.TEST_NAME,
        "email": settings.TEST_EMAIL,
        "username": settings.TEST_USERNAME,
        "password": PASSWORD,
    }
    response = await client.post("/api/v1/user", json=body)
    assert response.status_code == 201
    assert response.json()["username"] == settings.TEST_USERNAME


async def test_get_user(client: httpx.AsyncClient, user: User) -> None:
    response = await client.get(f"/api/v1/user/{user.username}")
    assert response.status_code == 200
    assert response.json()["name"] == settings.TEST_NAME


async def test_get_multiple_users(client: httpx.AsyncClient, user: User) -> None:
    response = await client.get("/api/v1/users")
    assert response.status_code == 200
    assert [row["username"] for row in response.json()["data"]] == [user.username]


async def test_patch_user(client: httpx.AsyncClient, user: User) -> None:
    token = await get_token(user.username, PASSWORD, client)
    headers = {"Authorization": f"Bearer {token}"}
    response = await client.patch(f"/api/v1/user/{user.username}", json={"name": "Changed Name"}, headers=headers)
    assert response.status_code == 200
    assert response.json()["name"] == "Changed Name"


async def test_delete_user(client: httpx.AsyncClient, user: User) -> None:
    token = await get_token(user.username, PASSWORD, client)
    headers = {"Authorization": f"Bearer {token}"}
    response = await client.delete(f"/api/v1/user/{user.username}", headers=headers)
    assert response.status_code == 200
    assert (await client.get(f"/api/v1/user/{user.username}")).status_code == 404


async def test_delete_db_user(client: httpx.AsyncClient, user: User, superuser: User) -> None:
    token = await get_token(superuser.username, ADMIN_PASSWORD, client)
    headers = {"Authorization": f"Bearer {token}"}
    response = await client.delete(f"/api/v1/db_user/{user.username}", headers=headers)
    assert response.status_code == 200
    assert (await client.get(f"/api/v1/user/{user.username}")).status_code == 404
