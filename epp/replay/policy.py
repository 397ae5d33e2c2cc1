"""What is compared: a policy is an EndpointPickerConfig under a name."""

from dataclasses import dataclass
from pathlib import Path

from epp.errors import ConfigError
from epp.settings import defaults, read_file


@dataclass(frozen=True, slots=True)
class Policy:
    """A configuration.

    Attributes:
        name: in tables and plots.
        text: the configuration itself.
        origin: its file, to whose folder the files that it names are relative; or a few words.
    """

    name: str
    text: str
    origin: str | Path

    @classmethod
    def of(cls, said: str) -> "Policy":
        """`FILE`, `NAME=FILE`, or `default` for what `epp serve` does without a configuration.

        Raises:
            ConfigError: the file can't be read.
        """
        name, _, path = said.rpartition("=")
        if path == "default":
            return cls(name or path, defaults.TEXT, defaults.ORIGIN)
        file = Path(path)
        try:
            return cls(name or file.stem, read_file(file), file)
        except ConfigError as error:
            raise ConfigError(f"configuration {error}") from error
