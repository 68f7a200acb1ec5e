"""Models and data sets of Hugging Face and ModelScope, by id: downloaded once, found again without a network.

An id is `owner/name` or `hf:owner/name` for Hugging Face and `modelscope:owner/name`, each with `@revision` where one
is to be pinned. Hugging Face's own client does its part; ModelScope's two endpoints are in `modelscope.py`. No torch
here, and nothing downloaded is ever run: code in a repository and pickled weights are not fetched at all."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from adapters.errors import BianlianError, Forbidden, Invalid, NotFound, Unavailable

Hub = Literal["hf", "modelscope"]
Kind = Literal["model", "dataset"]

_ID = r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
_REFERENCE = re.compile(rf"(?:(?P<hub>hf|modelscope):)?(?P<id>{_ID})(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]*))?")

# A base is its root directory: what lies deeper are other forms of the same weights (onnx, original), and so is
# Mistral's consolidated.safetensors.
_BASE_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "*.txt")
_NOT_BASE_FILES = ("*/*", "consolidated*")


@dataclass(frozen=True)
class HubReference:
    """A repository on a hub. `revision` is a branch, tag or commit; None is the hub's main branch."""

    hub: Hub
    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"'{self.id}'" + (f" at '{self.revision}'" if self.revision else "") + f" on {self.endpoint}"

    @property
    def endpoint(self) -> str:
        """Where requests go: the hub's own address, or the mirror that the environment names."""
        if self.hub == "modelscope":
            from adapters import modelscope

            return modelscope.endpoint()
        return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def parse_reference(text: str) -> HubReference | None:
    """`text` as a reference to a repository, or None if it has not the form of one."""
    match = _REFERENCE.fullmatch(text)
    if not match:
        return None
    return HubReference("modelscope" if match["hub"] == "modelscope" else "hf", match["id"], match["revision"])


def base_directory(reference: HubReference) -> Path:
    """The base model's directory in the hub's cache, downloaded as far as it is not there.

    Raises NotFound, Forbidden or Unavailable when it cannot be had, Invalid when it has no safetensors weights."""
    directory = download(reference, "model", _BASE_FILES, _NOT_BASE_FILES)
    if not (directory / "config.json").is_file():
        raise Invalid(f"{reference} has no config.json; it is not a transformers model", param="base")
    if not any(directory.glob("*.safetensors")):
        raise Invalid(
            f"{reference} has no safetensors weights; pickled ones (.bin, .pt, .pth) are refused, since loading them "
            "runs what they contain. Take a repository with safetensors, or convert it with transformers' "
            "save_pretrained",
            param="base",
        )
    return directory


def download(reference: HubReference, kind: Kind, allow: Sequence[str], ignore: Sequence[str] = ()) -> Path:
    """The directory that holds the repository's files matching `allow` and not `ignore` (fnmatch patterns). Blocks and
    draws a progress bar on the terminal; what was downloaded before is not downloaded again, and without a network
    that is what there is."""
    with _explained(reference, kind):
        if reference.hub == "modelscope":
            from adapters import modelscope  # here, not above: httpx takes its time, and `--help` needs none of it

            return modelscope.download(reference.id, kind, reference.revision, allow, ignore)
        from huggingface_hub import constants, snapshot_download
        from tqdm.auto import tqdm

        # Their own class is switched off together with transformers' bars. None: no bar where there is no terminal.
        bar: Any = partial(tqdm, disable=None)
        # The cache has links to files named by hash. Data is known by its suffix, so it lies where its name is its own.
        place = f"{reference.id.replace('/', '--')}@{(reference.revision or 'main').replace('/', '--')}"
        own = Path(constants.HF_HUB_CACHE).parent / "bianlian" / "datasets" / place
        return Path(
            snapshot_download(
                reference.id,
                repo_type=kind,
                revision=reference.revision,
                allow_patterns=list(allow),
                ignore_patterns=list(ignore),
                endpoint=reference.endpoint,
                local_dir=own if kind == "dataset" else None,
                tqdm_class=bar,
            )
        )


def list_files(reference: HubReference, kind: Kind) -> list[str]:
    """Paths of all files in the repository, sorted. Asks the hub."""
    with _explained(reference, kind):
        if reference.hub == "modelscope":
            from adapters import modelscope

            return sorted(file.path for file in modelscope.list_files(reference.id, kind, reference.revision))
        from huggingface_hub import HfApi

        return sorted(
            HfApi(endpoint=reference.endpoint).list_repo_files(
                reference.id, repo_type=kind, revision=reference.revision
            )
        )


@contextmanager
def _explained(reference: HubReference, kind: Kind) -> Iterator[None]:
    """Errors of either client become ours, which say the way out."""
    try:
        yield
    except BianlianError as error:
        error.param = error.param or ("base" if kind == "model" else "data")
        raise
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in _CLIENTS:
            raise  # a bug of ours
        raise _explain(error, reference, kind) from error


_CLIENTS = {"huggingface_hub", "httpx", "httpx2", "hf_xet"}  # httpx2 is what huggingface_hub 2 uses


def _explain(error: Exception, reference: HubReference, kind: Kind) -> BianlianError:
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RevisionNotFoundError

    param = "base" if kind == "model" else "data"
    token = "MODELSCOPE_API_TOKEN" if reference.hub == "modelscope" else "HF_TOKEN"
    local = "a directory or 'bianlian-mini' as --base" if kind == "model" else "a local file"
    cause = _root(error)
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if isinstance(cause, OfflineModeIsEnabled):
        return NotFound(
            f"{reference} is not in the cache, and HF_HUB_OFFLINE forbids to ask; unset it, or give {local}",
            param=param,
        )
    if isinstance(cause, GatedRepoError) or status == 403:
        page = f"{reference.endpoint}/{'datasets/' if kind == 'dataset' else ''}{reference.id}"
        return Forbidden(
            f"{reference} is gated: accept its terms at {page}, then set {token} to your access token", param=param
        )
    if isinstance(cause, RevisionNotFoundError):
        return NotFound(f"no revision '{reference.revision}' of '{reference.id}' on {reference.endpoint}", param=param)
    if status in (401, 404):  # Hugging Face answers 401 for what does not exist to those without a token
        return NotFound(
            f"no {kind} {reference}, or it is private: mind the spelling, set {token} to your access token if it is "
            f"private, or give {local}",
            param=param,
        )
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        cache = "MODELSCOPE_CACHE" if reference.hub == "modelscope" else "HF_HOME"
        return Unavailable(
            f"cannot keep {reference}: {error.strerror}; free space, or set {cache} to another place", param=param
        )
    mirror = "" if reference.hub == "modelscope" else " or a mirror with HF_ENDPOINT=https://hf-mirror.com"
    reason = f"it answered {status}" if status else (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    return Unavailable(f"cannot get {reference} ({reason}); try again, or give {local}{mirror}", param=param)


def _root(error: BaseException) -> BaseException:
    """What the client met, under what it says of it."""
    while error.__cause__ is not None and getattr(error, "response", None) is None:
        error = error.__cause__
    return error
