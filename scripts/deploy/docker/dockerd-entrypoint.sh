#!/usr/bin/env bash
# What TorchServe's image does: `serve` starts the server, anything else is run instead of it.
#
# The server stays in the foreground and is this process, so `docker stop` drains it: SIGTERM reaches it and nobody else.
# Tokens are off as in TorchServe's image. Keep the ports inside the container's network, or start it with
# `docker run ... torchserve --start --foreground --ts-config /home/model-server/config.properties`.
set -euo pipefail
home=${MODEL_SERVER_HOME:-/home/model-server}

if [ "${1:-serve}" != serve ]; then
    exec "$@"
fi
shift || true
exec torchserve --start --foreground --ts-config "$home/config.properties" --disable-token-auth "$@"
