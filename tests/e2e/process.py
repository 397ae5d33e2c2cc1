"""`epp serve` as a process of its own."""

import asyncio
import re

DEADLINE = 30.0
PORTS = ("--grpc-port=0", "--grpc-health-port=0", "--metrics-port=0", "--grpc-bind-address=127.0.0.1")
SERVING = re.compile(r"ext_proc on (\d+) \(\w+\), health on (\d+), metrics on (\S+):(\d+),")


class Picker:
    """A running `epp serve`, its ports, and what it has written so far."""

    def __init__(self, process):
        self.process = process
        self.log = []

    async def until_serving(self):
        found = await self.until(SERVING)
        self.grpc, self.health, self.bound, self.metrics = found.groups()

    async def until(self, pattern):
        """Reads the log until a line matches; the match."""
        async with asyncio.timeout(DEADLINE):
            while not (found := pattern.search(await self._line())):
                pass
        return found

    async def _line(self):
        line = (await self.process.stderr.readline()).decode()
        assert line, "".join(self.log)
        self.log.append(line)
        return line

    async def end(self):
        """Waits for the end; the exit status."""
        rest, status = await asyncio.wait_for(asyncio.gather(self.process.stderr.read(), self.process.wait()), DEADLINE)
        self.log.append(rest.decode())
        return status
