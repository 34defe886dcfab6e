"""What to say when something on the Hub cannot be had: one line that names it, the reason, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# The package of the HTTP client differs between versions of huggingface_hub, which hands on none of its error classes.
CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
LOG_IN = "log in again with `hf auth login`, or set HF_TOKEN to a valid token"


@contextmanager
def loading(source: str | Path, revision: str | None = None) -> Iterator[None]:
    """Turns what the libraries raise while they fetch a repository into one line.

    Args:
        source: folder or Hub id that is being loaded.
        revision: branch, tag or commit that was asked for.

    Raises:
        ValueError: what was wanted cannot be had from the Hub.
    """
    try:
        yield
    except Exception as error:
        if Path(source).exists() or not (_is_from_the_hub(error) or isinstance(error, OSError)):
            raise
        raise not_found(source, error, revision) from error


@contextmanager
def writing(repo_id: str) -> Iterator[None]:
    """Turns what huggingface_hub raises while it writes to a repository into one line.

    Args:
        repo_id: the repository.

    Raises:
        ValueError: nothing was published.
    """
    try:
        yield
    except Exception as error:
        if not (_is_from_the_hub(error) or isinstance(error, OSError)):
            raise
        raise ValueError(f"{repo_id}: {_why_not_written(error)}") from error


def open_repository(
    api: HfApi, repo_id: str, repo_type: str = "model", private: bool | None = None, revision: str | None = None
) -> str:
    """Makes sure that a repository, and a branch of it, is there to write to.

    Args:
        api: client.
        repo_id: `name` or `owner/name`; made where it is missing.
        repo_type: `"model"` or `"dataset"`.
        private: whether a new one is hidden from others; by default as its owner's are.
        revision: branch; made from the main one where it is missing.

    Returns:
        The id with its owner.

    Raises:
        ValueError: `private` is asked for and the repository is public.
    """
    repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        kind = "data set" if repo_type == "dataset" else "repository"
        raise ValueError(
            f"{repo_id}: found a public {kind}, expected a private one; make it private in its settings or choose "
            "another name"
        )
    if revision is not None:
        api.create_branch(repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
    return repo_id


def _why_not_written(error: Exception) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, OfflineModeIsEnabled):
        return "not published, because HF_HUB_OFFLINE is set; unset it"
    if status == 401 and get_token() is None:
        return (
            "not published, because nobody is logged in; run `hf auth login`, or set HF_TOKEN to a token that may write"
        )
    if status == 401:
        return f"not published, because the Hub refuses the token; {LOG_IN} that may write"
    if status == 403:
        return f"not published, because the token may not write there; check the owner's name, or {LOG_IN} that may"
    if _is_of_client(error):
        return f"not published, because the connection to {constants.ENDPOINT} broke ({_first_line(error)}); try again"
    return f"not published ({' '.join(str(error).split())})"


def not_found(
    source: str | Path, error: BaseException, revision: str | None = None, repo_type: str = "model"
) -> ValueError:
    """The error for a name that is neither a folder nor, for the reason that `error` gives, to be had from the Hub.

    Args:
        source: the name.
        error: what was raised while it was sought.
        revision: branch, tag or commit that was asked for.
        repo_type: `"model"` or `"dataset"`.
    """
    cause = next((found for found in _chain(error) if _is_from_the_hub(found)), error)
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    page = _page(source, repo_type)
    nothing = f"{source}: found neither such a folder nor such a name on the Hub"
    if isinstance(cause, GatedRepoError):
        return ValueError(f"{source}: its owner grants access on request: ask for it at {page}, then {LOG_IN}")
    if isinstance(cause, RepositoryNotFoundError):
        reason = f"no repository at {page}, or a private one and no token that may read it"
        return ValueError(f"{nothing} ({reason}); check the name, and if it is private {LOG_IN}")
    if isinstance(cause, RevisionNotFoundError):
        wanted = "a branch, a tag or the id of a commit"
        return ValueError(f"{source}: found no revision {revision!r} at {page}, expected {wanted}; check it")
    if status in (401, 403):
        return ValueError(f"{source}: the Hub refuses the token ({status}); {LOG_IN}")
    if isinstance(cause, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return ValueError(f"{nothing} ({_why_not_reached()}, and the cache does not hold it); {_how_to_reach()}")
    if isinstance(cause, EntryNotFoundError):
        return ValueError(f"{source}: found a repository without {_missing_file(cause)}; check the name")
    if _is_of_client(cause):
        reason = f"the connection to {constants.ENDPOINT} broke ({_first_line(cause)})"
        return ValueError(f"{source}: {reason}; try again, nothing half-loaded stays in the cache")
    return ValueError(f"{nothing} ({_first_line(cause)}); check it")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_from_the_hub(error: BaseException) -> bool:
    kinds = (HfHubHTTPError, HFValidationError, EntryNotFoundError, OfflineModeIsEnabled)
    return isinstance(error, kinds) or _is_of_client(error)


def _is_of_client(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in CLIENTS


def _page(source: str | Path, repo_type: str) -> str:
    prefix = constants.REPO_TYPES_URL_PREFIXES.get(repo_type, "")
    return f"{constants.ENDPOINT}/{prefix}{source}"


def _missing_file(error: EntryNotFoundError) -> str:
    """Path in the repository of what an address asked for: `.../resolve/revision/path`."""
    address = str(error.response.url) if isinstance(error, HfHubHTTPError) else ""
    return address.rpartition("/resolve/")[2].partition("/")[2] or "a file that is needed"


def _why_not_reached() -> str:
    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"


def _how_to_reach() -> str:
    offline = "check the name, or load it once without HF_HUB_OFFLINE"
    return offline if constants.HF_HUB_OFFLINE else "check the name and the connection, then try again"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
