# AILB in a container: HTTP on 8080, gRPC on 50051, everything that must outlive a restart in /data.
#
#   docker build -t ailb . && docker run -p 127.0.0.1:8080:8080 -v ailb-data:/data ailb

FROM python:3.11-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /app
# Only what the environment is made of, so that a change of code does not install it anew.
COPY Makefile requirements.txt requirements-demo.txt constraints.txt ./
COPY scripts scripts
RUN make install VENV=/opt/ailb

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin ailb \
    && install --directory --owner ailb --group ailb --mode 0700 /data
COPY --from=build /opt/ailb /opt/ailb
WORKDIR /app
COPY . .
ENV PATH=/opt/ailb/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    AILB_DATA_DIR=/data
USER ailb
VOLUME /data
EXPOSE 8080 50051
# The image has no curl. --start-period covers the first start's migrations.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('HTTP_PORT', '8080') + '/livez', timeout=2)"]
# Exec form: the gateway is process 1, and `docker stop` drains it.
CMD ["python", "manage.py", "serve"]
