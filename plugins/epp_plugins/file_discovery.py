"""file-discovery: reads the endpoints from a file.

What it does
    With `dataLayer.discovery.pluginRef` naming it, the pool is what the file says, as with `--endpoints-file`; beside
    `--endpoints` or `--endpoints-file` it is an error. The file is YAML or JSON:

        endpoints:
        - name: llama-0
          address: 10.0.0.1
          port: "8000"
          labels: {llm-d.ai/role: decode}

    and may hold all that `--endpoints-file` may. One that can't be used at the start is an error; later the last good
    state stays.

Reads
    The file.

Writes
    The pool.

Parameters
    - `path` (required): the file; a relative one is looked for in the process's folder.
    - `watchFile` (false): whether it is read again when it changes.

Example:
    plugins:
    - type: queue-scorer
    - type: file-discovery
      parameters:
        path: /etc/epp/endpoints.yaml
        watchFile: true
    dataLayer:
      discovery:
        pluginRef: file-discovery

Where it departs from llm-d, and why
    IPv6, host names, several ports and a metrics port of their own can be written, and the file may be 16 MiB long.
"""

from pathlib import Path

from pydantic import Field

import epp.plugin
from epp.plugin import EndpointsFile


class FileDiscoveryParameters(epp.plugin.Parameters):
    """See the module's manual."""

    path: str = Field(min_length=1)
    watch_file: bool = False


class FileDiscovery:
    """Tells which file names the endpoints."""

    Parameters = FileDiscoveryParameters

    def __init__(self, parameters: FileDiscoveryParameters) -> None:
        self._file = EndpointsFile(Path(parameters.path), parameters.watch_file)

    def endpoints_file(self) -> EndpointsFile:
        """The file."""
        return self._file
