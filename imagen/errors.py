"""The errors a person can cause. Anything else that is raised is a bug and keeps its traceback."""


class ImagenError(Exception):
    """Something outside the code is wrong: what, where, what is allowed; `hint` says what to do."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\n\nhint: {hint}")
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple:
        return type(self), (self.message, self.hint)


class ConfigError(ImagenError, ValueError):
    """A config file, an override or an argument does not fit."""


class ShardError(ImagenError):
    """A tar shard or an embedding shard is damaged, missing or belongs to something else."""


class CheckpointError(ImagenError, ValueError):
    """A checkpoint, snapshot or cascade is damaged, missing, untrained or does not fit."""


class DamagedError(CheckpointError):
    """A checkpoint is not what its manifest says: an older one may be whole."""


class StorageError(ImagenError):
    """A file or bucket cannot be read or written."""
