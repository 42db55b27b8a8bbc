def best_level() -> str:
    """The highest level that this processor and its operating system can run."""

def processors() -> int:
    """Processors that this process may run on: its affinity mask."""

def environment(name: str) -> str | None:
    """An environment variable as it is now, for a tenth of the cost of ``os.environ``."""
