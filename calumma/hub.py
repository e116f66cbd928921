"""Model folders by name: on disk, in the package, or on the Hugging Face Hub.

A name on the Hub is `user/name` or `user/name@REVISION`. Cache, token, endpoint and offline mode
are those of huggingface_hub: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.
"""

import importlib.resources
import re
from pathlib import Path

from calumma.errors import CheckpointError, ConfigError, OutputError

SHIPPED_MODEL = "still-life"
"""Name of the shipped model, for which `calumma generate`, `serve` and `load` need no folder."""

HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.jinja")
"""Files that are read from the Hub: data, never code or pickles."""

DOCUMENT_SUFFIXES = (".jsonl", ".gz", ".zst", ".parquet", ".tar", ".html")
"""Suffixes of document files, which are no names on the Hub."""

_HUB_NAME = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>.+))?", re.ASCII)


def shipped_model_folder() -> Path:
    """Return the folder of the shipped model inside the package."""
    return Path(str(importlib.resources.files("calumma"))) / "assets" / SHIPPED_MODEL


def split_hub_name(model: str | Path) -> tuple[str, str | None] | None:
    """Return repository and revision of a name on the Hub; None for a path.

    >>> split_hub_name("user/name@v1"), split_hub_name("user/name"), split_hub_name("out/demo/model")
    (('user/name', 'v1'), ('user/name', None), None)
    """
    path = Path(model)
    found = _HUB_NAME.fullmatch(path.as_posix())
    is_name = found and path.suffix not in (*DOCUMENT_SUFFIXES, ".toml") and not path.exists()
    return (found["repository"], found["revision"]) if found and is_name else None


def with_revision(model: str | Path, revision: str | None) -> Path:
    """Return the name of a model at a revision of its repository on the Hub.

    Raises:
        ConfigError: a revision is given, but no name on the Hub.
    """
    if revision is None:
        return Path(model)
    name = split_hub_name(model)
    if name is None or name[1] is not None:
        raise ConfigError(
            f"revision {revision!r} of {model}; expected a revision with a name on the Hub, user/name. Leave it out."
        )
    return Path(f"{name[0]}@{revision}")


def display_name(model: str | Path) -> str:
    """Return the last part of a model's path or name, without a revision."""
    name = split_hub_name(model)
    return name[0].partition("/")[2] if name else Path(model).resolve().name


def find_model_folder(model: str | Path) -> Path:
    """Return the folder of a model, an adapter or a tokenizer; one on the Hub is downloaded.

    Args:
        model: a folder; else the shipped model's name; else a name on the Hub. Other paths are
            returned as they are.

    Raises:
        CheckpointError: the name is neither on the Hub nor in its cache.
    """
    if str(model) == SHIPPED_MODEL and not Path(model).exists():
        return shipped_model_folder()
    name = split_hub_name(model)
    return Path(model) if name is None else _download(*name)


def is_model_folder(model: str | Path) -> bool:
    """Return whether a model's config can be found."""
    try:
        return (find_model_folder(model) / "config.json").is_file()
    except CheckpointError:
        return False


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is of the client that is in use
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(HUB_FILES)))
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repository} is gated on the Hub; expected an account that may read it. Accept the conditions on its "
            "page, then log in with `hf auth login`."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise CheckpointError(
            f"{repository} is no folder here, and the Hub has no such model, or it is private; expected a folder or "
            "the name of a model. Check the name, or log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repository} has no revision {revision or 'main'!r} on the Hub; expected a branch, a tag or a commit. "
            "Check it."
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{repository} is no folder here, nor complete in the Hub's cache, and the Hub cannot be reached; "
            "expected one of the three. Check the name, or the connection."
        ) from error
    except (OSError, HTTPError) as error:
        raise CheckpointError(
            f"{repository} cannot be downloaded from the Hub ({_reason(error)}); expected all of its files. "
            "Run the command again, which continues with the missing ones."
        ) from error


def require_repository_name(name: str) -> None:
    """Raise `ConfigError` unless a name is that of a repository on the Hub, without a revision."""
    if not (found := _HUB_NAME.fullmatch(name)) or found["revision"]:
        raise ConfigError(f"{name} is no name on the Hub; expected user/name. Check it.")


def push_folder(
    folder: Path, name: str, *, private: bool = False, revision: str | None = None, message: str | None = None
) -> str:
    """Upload a model folder to the Hub as one commit, which replaces the files of an older model.

    Args:
        folder: a model folder; its data files and README.md are uploaded.
        name: user/name; the repository is created if it does not exist.
        private: whether a new repository is private.
        revision: the branch to write, created if it does not exist; None for the default one.
        message: of the commit.

    Returns:
        The URL of the commit.

    Raises:
        ConfigError: the name is not one of the Hub.
        OutputError: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    require_repository_name(name)
    api = HfApi(library_name="calumma")
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=[*HUB_FILES, "README.md"],
            delete_patterns=list(HUB_FILES),
            revision=revision,
            commit_message=message or "Upload a model folder",
        )
    except HFValidationError as error:
        raise ConfigError(f"{name} is no name on the Hub; expected user/name. Check it.") from error
    except (OSError, RuntimeError, HTTPError) as error:
        raise OutputError(
            f"{name} cannot be written on the Hub ({_reason(error)}); expected an account that may write it. "
            "Log in with `hf auth login`, or check the connection."
        ) from error
    return str(commit.commit_url)


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
