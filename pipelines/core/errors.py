"""What can go wrong in the engine, each with its own class."""


class EngineError(RuntimeError):
    """A dataset that cannot be built as asked; says what was found and what to do."""


class StepError(EngineError):
    """A step that raised or broke the rules of tables; names the stage, the step and the shard."""

    def __init__(self, stage: str, shard: str, problem: str) -> None:
        super().__init__(stage, shard, problem)
        self.stage, self.shard, self.problem = stage, shard, problem

    def __str__(self) -> str:
        """One sentence: where, then what."""
        return f"stage '{self.stage}', shard '{self.shard}': {self.problem}"


class LedgerError(EngineError):
    """Records or links that do not add up: something was lost, doubled or made up."""


class FingerprintError(EngineError):
    """The folder holds, or has begun, a dataset of other inputs, configuration or code."""


class LockedError(EngineError):
    """Another run is at work on the same folder."""


class AlarmError(EngineError):
    """A filter or stage dropped more than its bound, and the caller asked to fail on that."""


class StorageError(OSError):
    """A file that cannot be read or written, in words: the address, the cause, a hint."""

    def __str__(self) -> str:
        """The words alone; the number of the error is in `errno`."""
        return str(self.args[1]) if len(self.args) > 1 else super().__str__()
