# syntax=docker/dockerfile:1
# voxrelay in a small image: the binary, the C library it needs, and nothing else; no shell, no root.
#   docker build -t voxrelay .
#   docker run --rm -p 127.0.0.1:8080:8080 voxrelay serve --listen 0.0.0.0:8080 --insecure-open
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
# The caches outlive a build, so only what changed is compiled again.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --profile dist --locked --bin voxrelay && cp target/dist/voxrelay /voxrelay && mkdir /data

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /voxrelay /usr/local/bin/voxrelay
COPY LICENSE-APACHE LICENSE-MIT NOTICE /usr/share/doc/voxrelay/
COPY assets/voxrelay.toml /etc/voxrelay/voxrelay.toml
# Tenants (voxrelay.db) and the usage ledger (ledger.db): what must outlive the container.
COPY --from=build --chown=nonroot:nonroot /data /data
ENV XDG_DATA_HOME=/data
VOLUME /data
USER nonroot
EXPOSE 8080
# Without tenants nobody is asked for a credential. So this refuses to listen on anything but loopback until there are
# some, or until `--insecure-open` says so; docker-compose.yml shows how.
ENTRYPOINT ["/usr/local/bin/voxrelay"]
CMD ["serve", "--config", "/etc/voxrelay/voxrelay.toml"]
