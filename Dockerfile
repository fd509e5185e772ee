# LMDB is C: the build needs a C compiler, and what runs needs the C library it was built against.
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=unknown
RUN go build -buildvcs=false -trimpath -ldflags "-s -w -X main.version=$VERSION" -o /out/millrace ./cmd/millrace

FROM debian:bookworm-slim
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/millrace /usr/local/bin/millrace
# Volumes mounted on these take their owner over.
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin millrace \
 && install -d -o millrace -g millrace -m 0750 /var/lib/millrace /run/millrace
USER 10001:10001
WORKDIR /var/lib/millrace
ENTRYPOINT ["millrace"]
CMD ["version"]
