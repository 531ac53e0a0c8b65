# syntax=docker/dockerfile:1
# Two images: `docker build --target leadsman-without-helm .` only probes, observes and tells; the default, the last
# one, can roll back as well. `--build-arg REVISION="$(git rev-parse HEAD)"` tells the program and the labels which sources
# these are; .git is not in the context.
ARG RUST_VERSION=1.95
ARG GO_VERSION=1.26
ARG HELM_VERSION=4.3.1

FROM rust:${RUST_VERSION}-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Puts the list of all crates into the binary, for scanners of images and `cargo audit bin`.
RUN cargo install cargo-auditable --version 0.7.7 --locked
WORKDIR /src
COPY . .
ARG REVISION=unknown
# Paths of this stage are not in the binary, so whoever builds the same sources gets the same.
ENV CARGO_INCREMENTAL=0 \
    RUSTFLAGS="--remap-path-prefix=/src=leadsman --remap-path-prefix=/usr/local/cargo=cargo" \
    LEADSMAN_REVISION=${REVISION}
RUN LEADSMAN_RUSTVERSION="$(rustc --version | cut -d' ' -f2)" cargo auditable build --profile image --locked --bin leadsman

FROM golang:${GO_VERSION}-bookworm AS helm
ARG HELM_VERSION
# The module's checksum is pinned by the checksum database. Helm tells its version by a variable.
RUN CGO_ENABLED=0 go install -trimpath \
    -ldflags "-s -w -X helm.sh/helm/v4/internal/version.version=v${HELM_VERSION}" \
    "helm.sh/helm/v4/cmd/helm@v${HELM_VERSION}"

# All that the image holds: the program with the libraries that it is linked to, the authorities of the system, and what
# Debian says of these packages, which scanners of images read. No shell, no package manager.
FROM build AS root
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN mkdir -p /root-of-image/{etc,tmp,usr/bin,var/lib/dpkg/status.d} \
    && cp target/image/leadsman /root-of-image/usr/bin/leadsman \
    && { ldd target/image/leadsman | grep -o '/[^ ]*'; echo /etc/ssl/certs/ca-certificates.crt; } \
        | xargs cp --parents -L -t /root-of-image \
    && for package in libc6 libgcc-s1 ca-certificates; do \
        dpkg-query --status "$package" > "/root-of-image/var/lib/dpkg/status.d/$package"; done \
    && echo 'leadsman:x:65532:65532::/tmp:/nowhere' > /root-of-image/etc/passwd \
    && echo 'leadsman:x:65532:' > /root-of-image/etc/group \
    && echo 'hosts: files dns' > /root-of-image/etc/nsswitch.conf \
    && chmod 1777 /root-of-image/tmp

FROM scratch AS leadsman-without-helm
ARG REVISION
LABEL org.opencontainers.image.title="Leadsman" \
      org.opencontainers.image.description="Judges every new Helm revision, and rolls the release back when it made things worse." \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.source="https://github.com/leadsman/leadsman" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION:-unknown}"
COPY --from=root /root-of-image /
USER 65532:65532
EXPOSE 9616
ENTRYPOINT ["/usr/bin/leadsman"]
CMD ["run", "--config", "/etc/leadsman/probes.toml"]

FROM leadsman-without-helm AS leadsman
COPY --from=helm /go/bin/helm /usr/bin/helm
