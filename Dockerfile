# The packages of the lock, in a virtual environment that the other stages copy. --no-deps: see src/unused.txt.
FROM python:3.14-slim AS packages
RUN python -m venv /venv
COPY src/requirements.lock /
RUN /venv/bin/python -m pip install --no-cache-dir --no-deps --require-hashes -r /requirements.lock

FROM packages AS test-packages
COPY src/requirements-dev.lock /
RUN /venv/bin/python -m pip install --no-cache-dir --no-deps --require-hashes -r /requirements-dev.lock

FROM python:3.14-slim AS base
ENV PATH=/venv/bin:$PATH \
    # /code for `python -m src.scripts…`, /code/src for `app`
    PYTHONPATH=/code/src \
    # its default is below the home folder, which this user does not have
    GUNICORN_CMD_ARGS=--no-control-socket \
    PYTHONDONTWRITEBYTECODE=1 \
    # no proxy is believed until one is named; uvicorn believes 127.0.0.1 where the variable is not set
    FORWARDED_ALLOW_IPS= \
    PYTHONUNBUFFERED=1
RUN useradd --uid 1000 --no-create-home --shell /usr/sbin/nologin app
WORKDIR /code

# The test suite: docker build --target test. It starts its own servers, so it needs no network and no database.
FROM base AS test
# `make` and the files around src, because the tests do what the README says.
RUN apt-get update && apt-get install --no-install-recommends --yes make && rm -rf /var/lib/apt/lists/*
ENV HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis \
    PYTEST_ADDOPTS="-p no:cacheprovider"
COPY --from=test-packages /venv /venv
COPY --chown=app:app . .
USER app
WORKDIR /code/src
CMD ["python", "-m", "pytest"]

FROM base AS production
COPY --from=packages /venv /venv
COPY src src
# The only folder that the service writes to.
RUN install -d -o app -g app src/app/logs
USER app
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=3)"]
CMD ["gunicorn", "app.main:app", "-w", "4", "-k", "uvicorn.workers.UvicornWorker", "-b", "0.0.0.0:8000"]
