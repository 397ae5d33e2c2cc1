# The endpoint picker as KServe and llm-d's charts start it: /app/epp with flags, no root, a read-only file system.
#
# Two stages, so that neither pip's cache nor what builds the package gets into the image. Every download is pinned by
# its hash in a lock file, hatchling's (which builds the package) in that of the developers.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
WORKDIR /src
RUN python -m venv --without-pip /app/venv
COPY requirements.lock requirements-dev.lock ./
RUN pip --python /app/venv/bin/python install --no-cache-dir --no-deps --only-binary :all: --require-hashes \
        --requirement requirements.lock
RUN sed -nE '/^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/,/[^\\]$/p' requirements-dev.lock \
        > requirements-build.lock \
    && pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes --requirement requirements-build.lock
COPY pyproject.toml README.md ./
COPY epp epp
COPY plugins plugins
RUN pip wheel --no-cache-dir --no-deps --no-index --no-build-isolation --wheel-dir /wheels . \
    && pip --python /app/venv/bin/python install --no-deps --no-index /wheels/*.whl \
    && ln -s venv/bin/epp /app/epp
# Nothing can be written later on. Bytecode that isn't checked against its source doesn't depend on the copy's times.
RUN /app/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /app/venv/lib

FROM ${BASE}
COPY --from=build /app /app
# /tmp may be missing or read-only; /dev/shm never is.
ENV PATH=/app/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TMPDIR=/dev/shm
# A number, because runAsNonRoot can't be checked for a name; no such user needs to exist.
USER 65532:65532
# KServe's preStop hook runs /bin/sleep; a base image without it, or a picker that can't start, ends the build.
RUN ["/bin/sleep", "0"]
RUN ["/app/epp", "serve", "--help"]
EXPOSE 9002 9003 9090
ENTRYPOINT ["/app/epp"]
