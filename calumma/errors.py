"""Errors that a user can fix, one class for each kind.

Every message is one line: what was found, what was expected, how to fix it. The command line
prints it after `error: ` without a traceback and exits with status 2; any other exception is a bug
and keeps its traceback.
"""


class CalummaError(Exception):
    """Base class of all errors that a user can fix."""


class ConfigError(CalummaError):
    """A config or command-line value is invalid."""


class DocumentError(CalummaError):
    """A file of documents, or a document in it, cannot be read."""


class StorageError(CalummaError):
    """Remote storage cannot be read; this is never counted as a bad document."""


class ImageError(CalummaError):
    """An image cannot be read, or its pixels or codes have the wrong shape."""


class CorpusError(CalummaError):
    """A corpus cannot be downloaded, or does not have the expected counts."""


class VocabularyError(CalummaError):
    """A vocabulary does not have the layout of the Chameleon release."""


class TokenizerError(CalummaError):
    """A tokenizer cannot be trained, or does not match its data."""


class ShardError(CalummaError):
    """Shards are corrupt or were built with another vocabulary."""


class CheckpointError(CalummaError):
    """A run folder or model folder cannot be loaded."""


class TrainingError(CalummaError):
    """Training has diverged."""


class GenerationError(CalummaError):
    """A prompt or a sampling parameter is invalid."""


class RankError(CalummaError):
    """A tensor-parallel worker has exited or does not respond."""


class EvaluationError(CalummaError):
    """A task cannot be evaluated on these documents."""


class FileError(CalummaError):
    """A file that calumma wrote is corrupt."""


class OutputError(CalummaError):
    """An output folder cannot be written: disk full, read-only, or a file in the way."""


class Interrupted(CalummaError):
    """The run was stopped by a signal after it saved its state."""
