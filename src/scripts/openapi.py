"""Write the OpenAPI document to src/openapi.json; with --check, only report whether the file is current."""

import json
import os
import sys
from pathlib import Path

FILE = Path(__file__).parent.parent / "openapi.json"


def main() -> int:
    text = contract()
    if "--check" not in sys.argv[1:]:
        FILE.write_text(text)
    elif not FILE.exists() or FILE.read_text() != text:
        print(f"{FILE.name} is not current: make openapi", file=sys.stderr)
        return 1
    return 0


def contract() -> str:
    """Return the OpenAPI document, which does not depend on the machine or its .env."""
    os.environ["ENVIRONMENT"] = "local"
    from app.core.config import AppSettings  # noqa: PLC0415 (the import reads the environment)
    from app.main import app  # noqa: PLC0415

    fields = AppSettings.model_fields
    info = {"title": fields["APP_NAME"].default, "version": fields["APP_VERSION"].default}
    return json.dumps({**app.openapi(), "info": info}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
