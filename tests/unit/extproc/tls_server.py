"""A gRPC server with the TLS of `epp serve` and the given flags: prints its port, and ends with its input.

A process of its own, because gRPC reads its cipher suites once, while it is being imported.
"""

import asyncio
import os
import sys

from epp.cli.flags import parse
from epp.extproc.ciphers import restrict

options = parse(sys.argv[1:], os.environ)
restrict(options.tls_min_version, options.tls_cipher_suites)

import grpc  # noqa: E402 (see above)

from epp.extproc.health import HealthService  # noqa: E402
from epp.extproc.tls import server_credentials  # noqa: E402


async def serve() -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((HealthService().handler(),))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(options, print))
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


asyncio.run(serve())
