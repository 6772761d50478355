# BASE_IMAGE must carry Python 3.11 as python3, as Debian 12 does.
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements.lock ./
# A layer of its own: torch is most of the image and changes least.
RUN python3 -m venv /opt/dwmri-bidsapp \
    && /opt/dwmri-bidsapp/bin/pip install --no-cache-dir --constraint requirements.lock setuptools torch
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY workflows workflows
COPY dwmri_bidsapp dwmri_bidsapp
RUN /opt/dwmri-bidsapp/bin/pip install --no-cache-dir --no-build-isolation --constraint requirements.lock .

FROM ${BASE_IMAGE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home --home-dir /home/dwmri --shell /usr/sbin/nologin dwmri \
    && chmod 0755 /home/dwmri
COPY --from=build /opt/dwmri-bidsapp /opt/dwmri-bidsapp
# Nothing is looked up on the network and nothing is written outside OUT_DIR, the work folder and /tmp.
ENV PATH=/opt/dwmri-bidsapp/bin:$PATH \
    HOME=/home/dwmri \
    LANG=C.UTF-8 \
    MPLBACKEND=Agg \
    MPLCONFIGDIR=/tmp/matplotlib \
    NO_ET=1 \
    NIPYPE_NO_ET=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1
LABEL org.opencontainers.image.title="dwmri-bidsapp" \
      org.opencontainers.image.description="A BIDS App that removes noise from diffusion MRI" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 1000
WORKDIR /tmp
ENTRYPOINT ["/opt/dwmri-bidsapp/bin/dwmri-bidsapp"]
