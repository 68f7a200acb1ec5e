"""Fine-tuning as OpenAI asks for it: a request becomes a run in the queue, its files are checked before it waits.

What is asked for is kept beside the run's configuration, as it came; how it looks over HTTP is `api/`'s business."""

import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from adapters.errors import BianlianError, Invalid, NotFound, needing_room, renaming
from adapters.manifest import check_name
from adapters.regular import read_regular
from training.config import Objective, TrainConfig, parse_config, require_no_bool
from training.data.files import SUFFIXES, BadRow
from training.data.formats import DataFile, PreferencePair, read_data
from training.data.messages_file import validate_messages_file
from training.data.report import MAX_BAD_SHARE
from training.jobs.queue import Job, JobQueue
from training.runs.bases import check_free
from training.runs.journal import Journal, RunConfig, new_job_id
from training.runs.uploads import as_uploaded, keep_names

log = logging.getLogger(__name__)

REQUEST_FILE = "fine_tuning.json"
FEW_ROWS = 10  # OpenAI refuses fewer; here it is a warning
_LISTED = 5  # bad rows that a message names

_OBJECTIVES: dict[str, tuple[Objective, ...]] = {"supervised": ("sft", "pretrain"), "dpo": ("dpo", "orpo", "kto")}
# Fields of TrainConfig that a request says in OpenAI's words.
_ELSEWHERE = {
    "name": "suffix",
    "base": "model",
    "data": "training_file",
    "dataset": "training_file",
    "dataset_dir": "training_file",
    "data_weights": "training_file",
    "validation_data": "validation_file",
    "seed": "seed",
    "epochs": "method.*.hyperparameters.n_epochs",
    "batch_size": "method.*.hyperparameters.batch_size",
    "learning_rate_multiplier": "method.*.hyperparameters.learning_rate_multiplier",
    "beta": "method.dpo.hyperparameters.beta",
}


class Files(Protocol):
    """Where uploaded files are; serving's, handed in."""

    def get(self, file_id: str) -> "UploadedFile": ...
    def path(self, file_id: str, purpose: Literal["fine-tune"]) -> Path: ...
    def all(self, purpose: Literal["fine-tune"]) -> Sequence["UploadedFile"]: ...
    def workspace(self) -> AbstractContextManager[Path]: ...
    def add(self, received: Path, filename: str, purpose: Literal["fine-tune"]) -> "UploadedFile": ...
    def keep(self, received: Path, filename: str, purpose: Literal["fine-tune-results"]) -> "UploadedFile": ...


class UploadedFile(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def filename(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def created_at(self) -> int: ...


def _none_for_auto(value: Any) -> Any:
    return None if value == "auto" else value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def writable(cls, value: Any) -> Any:
        """JSON can spell half a surrogate pair, which is no text and cannot be encoded. No field is true or false."""
        require_no_bool(value)
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            raise ValueError("the text contains half of a surrogate pair, which is not valid Unicode") from None
        return value


class Hyperparameters(_Strict):
    """None is OpenAI's "auto"."""

    n_epochs: Annotated[int | None, BeforeValidator(_none_for_auto)] = Field(default=None, ge=1, le=50)
    batch_size: Annotated[int | None, BeforeValidator(_none_for_auto)] = Field(default=None, ge=1, le=256)
    learning_rate_multiplier: Annotated[float | None, BeforeValidator(_none_for_auto)] = Field(
        default=None, gt=0, le=100
    )


class DpoHyperparameters(Hyperparameters):
    beta: Annotated[float | None, BeforeValidator(_none_for_auto)] = Field(default=None, gt=0, le=2)


class SupervisedMethod(_Strict):
    hyperparameters: Hyperparameters | None = None


class DpoMethod(_Strict):
    hyperparameters: DpoHyperparameters | None = None


class Method(_Strict):
    type: Literal["supervised", "dpo"]
    supervised: SupervisedMethod | None = None
    dpo: DpoMethod | None = None

    @model_validator(mode="after")
    def only_its_own(self) -> "Method":
        other = "dpo" if self.type == "supervised" else "supervised"
        if getattr(self, other) is not None:
            raise ValueError(f"method.{other} does not go with method.type '{self.type}'")
        return self

    @property
    def hyperparameters(self) -> Hyperparameters:
        chosen = self.supervised if self.type == "supervised" else self.dpo
        return (chosen and chosen.hyperparameters) or Hyperparameters()


MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class FineTuningRequest(_Strict):
    """The body of POST /v1/fine_tuning/jobs. `bianlian` holds what OpenAI has no words for: fields of TrainConfig."""

    model: str
    training_file: str
    validation_file: str | None = Field(default=None, min_length=1)
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None  # where they were before there was `method`
    suffix: str | None = Field(default=None, min_length=1, max_length=64)
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1)
    metadata: dict[MetadataKey, MetadataValue] | None = Field(default=None, max_length=16)
    integrations: list[Any] | None = None
    bianlian: dict[str, Any] = {}

    @field_validator("integrations")
    @classmethod
    def none_of_them(cls, value: list[Any] | None) -> None:
        if value:
            raise ValueError("integrations are not supported; metrics are in the job's events, checkpoints and results")

    @model_validator(mode="after")
    def hyperparameters_once(self) -> "FineTuningRequest":
        if self.method and self.hyperparameters:
            raise ValueError("send hyperparameters within method, or at the top as before, not both")
        return self

    @property
    def kind(self) -> Literal["supervised", "dpo"]:
        return self.method.type if self.method else "supervised"

    @property
    def chosen(self) -> Hyperparameters:
        return self.method.hyperparameters if self.method else self.hyperparameters or Hyperparameters()


class FineTuning:
    """Takes requests for one server. `bases` are what it trains on, the one it serves first: the name and what a run
    loads. `refuse_name` raises when an adapter may not be called so."""

    def __init__(self, queue: JobQueue, files: Files, bases: dict[str, str], refuse_name: Callable[[str], None]):
        self.queue = queue
        self.files = files
        self.bases: Mapping[str, str] = bases
        self._refuse_name = refuse_name

    @contextmanager
    def draft(self, request: FineTuningRequest) -> Iterator[TrainConfig]:
        """What `create` would train, to be looked at before; its files go by their own names, in a directory that is
        gone afterwards. Raises as `create` does, but minds no name."""
        base = self._base(request)
        with self.files.workspace() as directory:
            places = []
            for param in ("training_file", "validation_file"):
                if file_id := getattr(request, param):
                    source, filename = self._file(file_id, param)
                    places.append(directory / param / _readable(filename))
                    places[-1].parent.mkdir()
                    _link(source, places[-1])
            yield _config(request, request.suffix or "draft", base, places)

    def create(self, request: FineTuningRequest) -> Job:
        """A run whose files are yet to be validated. Raises Invalid, NotFound or Conflict, naming the field, for what
        can be said at once, and InsufficientStorage."""
        base = self._base(request)
        name = request.suffix or f"ft-{secrets.token_hex(4)}"
        check_name(name, param="suffix")
        self._refuse_name(name)
        job_id = new_job_id(name)
        directory = self.queue.runs / job_id
        training, training_name = self._file(request.training_file, "training_file")
        validation = self._file(request.validation_file, "validation_file") if request.validation_file else None
        places = [directory / f"training{_suffix(training_name)}"]
        if validation:
            places.append(directory / f"validation{_suffix(validation[1])}")
        names = [training_name, *([validation[1]] if validation else [])]
        config = _config(request, name, base, places)
        with renaming({"name": "suffix"}):
            check_free(self.queue.root, config)
        with needing_room():
            directory.mkdir(parents=True)
            try:
                # The run keeps what it learns from, whatever becomes of the upload.
                for source, place in zip([training, *([validation[0]] if validation else [])], places, strict=True):
                    _link(source, place)
                keep_names(directory, {place.name: name for place, name in zip(places, names, strict=True)})
                (directory / REQUEST_FILE).write_text(request.model_dump_json(indent=2) + "\n", encoding="utf-8")
                self._note_first(Journal(directory), request)
                Journal.create(self.queue.runs, RunConfig(train=config), job_id=job_id, state="validating")
            except BaseException:
                shutil.rmtree(directory, ignore_errors=True)
                raise
        return self.queue.get(job_id)

    def _note_first(self, journal: Journal, request: FineTuningRequest) -> None:
        journal.note("Created fine-tuning job; validating its files")
        served = next(iter(self.bases))
        if request.model != served:
            journal.note(
                f"this server serves {served}; the result will answer where --base is {request.model}", level="warn"
            )

    def _base(self, request: FineTuningRequest) -> str:
        if request.model not in self.bases:
            raise Invalid(
                f"model '{request.model[:80]}' cannot be fine-tuned here; this server can train on: "
                f"{', '.join(self.bases)}",
                param="model",
                code="model_not_available",
            )
        return self.bases[request.model]

    def _file(self, file_id: str, param: str) -> tuple[Path, str]:
        with renaming({"file_id": param}):
            return self.files.path(file_id, "fine-tune"), self.files.get(file_id).filename


def read_request(journal: Journal) -> FineTuningRequest | None:
    """None for a run that was not asked for over HTTP, or whose request was damaged since: its configuration says the
    same in our words."""
    try:
        return FineTuningRequest.model_validate_json(read_regular(journal.directory / REQUEST_FILE))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        log.warning("the request of run %s cannot be read", journal.job_id, exc_info=True)
        return None


def check_files(journal: Journal) -> None:
    """Raises Invalid, naming training_file or validation_file, the files as they were uploaded and the lines, when a
    run's files break the rules for them. Reads them whole, and no base."""
    request = read_request(journal)
    if request is None:
        return
    config = journal.config().train
    for param, paths in (("training_file", config.data), ("validation_file", config.validation_data)):
        for path in paths:
            try:
                rows = _check_file(path, config)
            except BianlianError as error:
                message = as_uploaded(journal.directory, error.message)
                raise Invalid(message, param=param, code=f"invalid_{param}") from error
            if param == "training_file" and rows < FEW_ROWS:
                journal.note(f"only {rows} rows to learn from; OpenAI asks for {FEW_ROWS} or more", level="warn")


def _check_file(path: Path, config: TrainConfig) -> int:
    """The number of usable rows."""
    found = read_data(path, config.format)
    wrong = found.bad
    if found.format == "messages":
        wrong = validate_messages_file(path)
    elif len(wrong) <= MAX_BAD_SHARE * (len(wrong) + len(found.rows)):
        wrong = []
    if wrong:
        listed = "; ".join(map(str, wrong[:_LISTED])) + (" …" if len(wrong) > _LISTED else "")
        raise Invalid(f"{len(wrong)} of {_count(found, wrong)} rows cannot be used: {listed}")
    _check_kind(found, config.objective)
    return len(found.rows)


def _count(found: DataFile, wrong: Collection[BadRow]) -> int:
    return max(len(found.rows) + len(found.bad), len(wrong))


def _check_kind(found: DataFile, objective: Objective) -> None:
    preferences = sum(isinstance(row, PreferencePair) for row in found.rows)
    if objective in ("sft", "pretrain") and preferences:
        raise Invalid(f"{found.path} has preferences ({found.format}); train on them with method dpo")
    if objective in ("dpo", "kto", "orpo") and preferences < len(found.rows):
        raise Invalid(
            f"{found.path} has {found.format} rows, not preferences; dpo wants input, preferred_output and "
            "non_preferred_output, or use method supervised"
        )


def _config(request: FineTuningRequest, name: str, base: str, files: list[Path]) -> TrainConfig:
    chosen = request.chosen
    for field in request.bianlian:
        if field in _ELSEWHERE:
            raise Invalid(f"send '{_ELSEWHERE[field]}' in place of bianlian.{field}", param=f"bianlian.{field}")
        if field == "replay_data":
            raise Invalid(
                "bianlian.replay_data names files of the server; not supported here", param="bianlian.replay_data"
            )
    allowed = _OBJECTIVES[request.kind]
    objective = request.bianlian.get("objective", allowed[0])
    if objective not in allowed:
        raise Invalid(
            f"bianlian.objective must be {' or '.join(allowed)} with method {request.kind}, is {str(objective)[:40]!r}",
            param="bianlian.objective",
        )
    asked = {
        "epochs": chosen.n_epochs,
        "batch_size": chosen.batch_size,
        "learning_rate_multiplier": chosen.learning_rate_multiplier,
        "beta": getattr(chosen, "beta", None),
        "seed": request.seed,
    }
    with _as_sent(request.bianlian):
        return parse_config(
            {
                **request.bianlian,
                **{field: value for field, value in asked.items() if value is not None},
                "objective": objective,
                "name": name,
                "base": base,
                "data": files[:1],
                "validation_data": files[1:],
            }
        )


@contextmanager
def _as_sent(ours: Collection[str]) -> Iterator[None]:
    """Errors about the fields `ours`, and what is in them, name them where the request has them."""
    try:
        yield
    except BianlianError as error:
        if error.param and error.param.split(".")[0] in ours:
            error.param = f"bianlian.{error.param}"
        raise


def in_words_of_requests(error: BianlianError, *, held_out: bool) -> None:
    """Options of the command line, in an error about what a request asked for, become the request's fields; an error
    about data is about one of its files."""
    if error.param in (None, "data"):
        error.param = "validation_file" if held_out else "training_file"
        error.code = f"invalid_{error.param}"
    elif error.param:
        error.param = _field(error.param)
    error.message = re.sub(
        r"--([a-z]+(?:-[a-z]+)*)",
        lambda found: _field(found[1].replace("-", "_")) if found[1].replace("-", "_") in _OPTIONS else found[0],
        error.message,
    )


_OPTIONS = frozenset(TrainConfig.model_fields)


def _field(option: str) -> str:
    name, _, within = option.partition(".")
    if name not in _OPTIONS:
        return option
    return _ELSEWHERE.get(name, f"bianlian.{name}") + (f".{within}" if within else "")


def _suffix(filename: str) -> str:
    """Of a file as `files.py` knows them. OpenAI's are JSONL whatever they are called."""
    path = Path(filename.lower())
    zipped = ".gz" if path.suffix == ".gz" else ""
    suffix = (path.with_suffix("") if zipped else path).suffix
    return (suffix if suffix in SUFFIXES else ".jsonl") + zipped


def _readable(filename: str) -> str:
    """The name a file came under, with the suffix it is read by; no disk refuses it for its length."""
    suffix = _suffix(filename)
    return (filename[: -len(suffix)] if filename.lower().endswith(suffix) else filename)[:60] + suffix


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise NotFound(f"the file {source.parent.name} was deleted") from None
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def bases_for(name: str, spelled: str) -> dict[str, str]:
    """What a server of the base called `name`, set as `spelled`, trains on: that, and the bundled one."""
    bundled = TrainConfig.model_fields["base"].default
    return {name: spelled, bundled: bundled} if name != bundled else {name: spelled}
