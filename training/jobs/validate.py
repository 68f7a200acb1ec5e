"""`python -m training.jobs.validate DIRECTORY`: are the files of a run fit to learn from? The queue starts it for a run
that is to be validated: a file may be as large as it likes, and neither the server nor the queue waits for it.

First the rules for uploaded files, then everything that the run itself would refuse. The run's state says how it ended:
queued, or failed with the lines."""

import logging
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from adapters.errors import BianlianError, Conflict, Invalid
from training.jobs.fine_tuning import check_files, in_words_of_requests, read_request
from training.runs.journal import Journal, State
from training.runs.uploads import as_uploaded

log = logging.getLogger(__name__)

_VALIDATING: tuple[State, ...] = ("validating",)


def validate(journal: Journal) -> None:
    """Read the files of a run whole, and say in its status what has become of it. Blocks; raises nothing for files that
    will not do."""
    try:
        check_files(journal)
        _check_rows(journal)
    except Exception as caught:
        error = caught
        if not isinstance(error, BianlianError):  # a fault of ours, which its user has to hear of all the same
            log.exception("the files of run %s cannot be checked", journal.job_id)
            error = Invalid(f"the files cannot be checked: {caught}", param="training_file")
        message = as_uploaded(journal.directory, error.message)
        with suppress(Conflict):  # cancelled meanwhile
            journal.note(message, level="error", data={"code": error.code})
            journal.update(
                only=_VALIDATING,
                state="failed",
                message=message,
                code=error.code,
                param=error.param,
                process=None,
                finished=datetime.now(UTC),
            )
    else:
        with suppress(Conflict):
            journal.update(only=_VALIDATING, state="queued", process=None)
            journal.note("files validated; queued")


def _check_rows(journal: Journal) -> None:
    """What the run would refuse when its turn comes: rows as the base's tokenizer reads them."""
    from training.combinations import check_combinations
    from training.quiet import silence_libraries
    from training.runs.run_data import check_data

    silence_libraries()
    config = journal.config().train
    try:
        check_combinations(config)
        check_data(config)
    except BianlianError as error:
        if read_request(journal) is not None:
            in_words_of_requests(error, held_out=any(str(path) in error.message for path in config.validation_data))
        raise


def main(directory: str) -> None:
    journal = Journal(Path(directory))
    with journal.beating():
        validate(journal)


if __name__ == "__main__":
    main(*sys.argv[1:])
