"""The mistakes a user can make, one class each.

Every message is one line: what was found, what was expected, the way out. The command line prints
it behind `error: ` without a traceback and exits with 2; anything that is not a `CalummaError`
is a mistake of ours and keeps its traceback.
"""


class CalummaError(Exception):
    """The root of all mistakes that a user can fix."""


class ConfigError(CalummaError):
    """A config or a command-line value that cannot be used."""


class DocumentError(CalummaError):
    """A file of documents, or one document in it, that cannot be read."""


class StorageError(CalummaError):
    """A place on the network that does not hand out what it holds: no fault of any document."""


class ImageError(CalummaError):
    """A picture that cannot be read, or pixels and codes of the wrong shape."""


class CorpusError(CalummaError):
    """A corpus that cannot be fetched, or whose counts are not the known ones."""


class VocabularyError(CalummaError):
    """A table of ids that is not laid out as the release's."""


class TokenizerError(CalummaError):
    """A tokenizer that cannot be trained or does not fit what it is asked."""


class ShardError(CalummaError):
    """Shards that are broken or were made with another vocabulary."""


class CheckpointError(CalummaError):
    """A run or model folder that cannot be loaded."""


class TrainingError(CalummaError):
    """A run whose numbers have left the range that can be learned from."""


class GenerationError(CalummaError):
    """A prompt or sampling request that cannot be answered."""


class RankError(CalummaError):
    """A process that shares a decoder with this one has ended, or does not answer."""


class EvaluationError(CalummaError):
    """A task that cannot be measured on these documents."""


class FileError(CalummaError):
    """A file of ours that is broken."""


class OutputError(CalummaError):
    """A folder that cannot be written: full, read-only, or in the way."""


class Interrupted(CalummaError):
    """The run was asked to stop and has saved what is done."""
