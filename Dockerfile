# BASE_IMAGE must carry Python 3.11 as python3, as Debian 12 does.
ARG BASE_IMAGE=debian:bookworm-slim

# The packages: made anew only when the lock or setup.cfg changes.
FROM ${BASE_IMAGE} AS packages
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements.lock ./
# Where PyTorch without CUDA comes from. Empty: the one of the package index, which brings CUDA along.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN python3 -m venv /opt/dwmri-bidsapp \
    && /opt/dwmri-bidsapp/bin/pip install --no-cache-dir --constraint requirements.lock \
        ${TORCH_INDEX_URL:+--extra-index-url "${TORCH_INDEX_URL}"} torch
COPY setup.cfg ./
RUN python3 -c "import configparser as c; p = c.ConfigParser(); p.read('setup.cfg'); print(p['options']['install_requires'])" \
        > requirements.txt \
    && /opt/dwmri-bidsapp/bin/pip install --no-cache-dir --constraint requirements.lock --requirement requirements.txt

# What the application needs of them when it runs: no installer, no headers, no tests.
FROM packages AS runtime
RUN /opt/dwmri-bidsapp/bin/pip uninstall --yes pip setuptools \
    && rm -rf /opt/dwmri-bidsapp/lib/python3*/site-packages/torch/include \
        /opt/dwmri-bidsapp/lib/python3*/site-packages/torch/test \
    && find /opt/dwmri-bidsapp/lib -type d -name tests -prune -exec rm -rf {} +

# The application alone, in a tree of its own: a change of code rebuilds from here.
FROM packages AS application
RUN /opt/dwmri-bidsapp/bin/pip install --no-cache-dir --constraint requirements.lock setuptools
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY workflows workflows
COPY dwmri_bidsapp dwmri_bidsapp
RUN /opt/dwmri-bidsapp/bin/pip install --no-cache-dir --no-deps --no-build-isolation --root /application .

FROM ${BASE_IMAGE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home --home-dir /home/dwmri --shell /usr/sbin/nologin dwmri \
    && chmod 0755 /home/dwmri
COPY --from=runtime /opt/dwmri-bidsapp /opt/dwmri-bidsapp
COPY --from=application /application /
COPY container/sbom.py /tmp/sbom.py
# Nothing is looked up on the network and nothing is written outside OUT_DIR, the work folder and /tmp.
ENV PATH=/opt/dwmri-bidsapp/bin:$PATH \
    HOME=/home/dwmri \
    LANG=C.UTF-8 \
    MPLBACKEND=Agg \
    MPLCONFIGDIR=/tmp/matplotlib \
    NO_ET=1 \
    NIPYPE_NO_ET=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1 \
    DWMRI_BIDSAPP_IMAGE=dwmri-bidsapp:0.1.0
# The version where BIDS Apps keep it, the list of what is inside, and a check that the program starts.
RUN python -c "import dwmri_bidsapp; print(dwmri_bidsapp.__version__)" > /version \
    && mkdir -p /usr/share/dwmri-bidsapp \
    && python /tmp/sbom.py > /usr/share/dwmri-bidsapp/sbom.cdx.json \
    && rm /tmp/sbom.py \
    && dwmri-bidsapp --help > /dev/null
LABEL org.opencontainers.image.title="dwmri-bidsapp" \
      org.opencontainers.image.description="A BIDS App that removes noise from diffusion MRI" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 1000
WORKDIR /tmp
ENTRYPOINT ["/opt/dwmri-bidsapp/bin/dwmri-bidsapp"]
