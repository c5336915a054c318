# Two stages: one with compilers, one with nothing but the binary, the C library and the authorities of the web. Build with BuildKit.

FROM rust:1-bookworm AS build
# OpenSSL is compiled from source (perl, make, cc are in the image), zlib-ng wants cmake.
RUN apt-get update && apt-get install -y --no-install-recommends cmake && rm -rf /var/lib/apt/lists/*
WORKDIR /edgeward
COPY . .
# `pgo` for what `make pgo` builds: by a profile of what it does most, in half an hour more.
ARG BUILD=release
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/edgeward/target \
    case "$BUILD" in \
        release) cargo build --release --locked --bin edgeward ;; \
        pgo) make pgo ;; \
        *) echo "BUILD is release or pgo, not $BUILD" >&2; exit 1 ;; \
    esac \
    && install -D "target/$BUILD/edgeward" /image/usr/local/bin/edgeward \
    && install -d /image/var/lib/edgeward /image/etc/edgeward

# No shell, no package manager; ca-certificates is in it.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /image/usr/local/bin/edgeward /usr/local/bin/edgeward
COPY --from=build /image/etc/edgeward /etc/edgeward
COPY --from=build --chown=nonroot:nonroot /image/var/lib/edgeward /var/lib/edgeward
COPY LICENSE /usr/share/doc/edgeward/LICENSE

# A backtrace per refused token would be work that attackers order and we pay for.
ENV RUST_LIB_BACKTRACE=0 \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt

USER nonroot
WORKDIR /var/lib/edgeward
VOLUME /var/lib/edgeward
EXPOSE 8080 8443

# Asks the administration at its usual place, 127.0.0.1:9901 inside the container; give another URL when the configuration says another.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["/usr/local/bin/edgeward", "health"]

# The configuration is /etc/edgeward/edgeward.yaml: mount it, and check it first with `docker run ... check`.
ENTRYPOINT ["/usr/local/bin/edgeward"]
CMD ["run"]
