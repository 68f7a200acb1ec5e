"""What went wrong with a run, as its user should read it, with the way out."""

import errno

from adapters.errors import BianlianError, InsufficientStorage


class TrainingFailed(BianlianError):
    """The run broke off; its journal says the same."""

    code = "training_failed"


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch and safetensors write files in other languages, which have no errno for us.
_FULL_WORDS = ("no space left", "file too large", "quota exceeded", "pytorchstreamwriter failed", "unexpected pos")
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "bad_alloc", "cannot allocate memory")


def explain(error: Exception, job_id: str) -> BianlianError:
    """`error` as what a user should read."""
    if isinstance(error, InsufficientStorage) and isinstance(error.__cause__, OSError):
        error = error.__cause__  # a run has a way out of its own
    if isinstance(error, BianlianError):
        return error
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    again = f"go on with: bianlian train --resume {job_id}"
    if isinstance(error, MemoryError) or _says(error, _MEMORY_WORDS):
        return TrainingFailed(
            f"out of memory ({reason}). Start again with a smaller --batch-size or --max-length, or with "
            f"--method qlora, which holds the base in 4 bits; or free memory and {again}",
            code="out_of_memory",
        )
    if (isinstance(error, OSError) and error.errno in _FULL) or _says(error, _FULL_WORDS):
        return TrainingFailed(
            f"the disk is full ({reason}). Free space, or start again with a smaller --lora-r, then {again}",
            code="disk_full",
        )
    if isinstance(error, OSError):
        return TrainingFailed(f"{reason}. Mend disk or permissions, then {again}")
    return TrainingFailed(f"{type(error).__name__}: {reason}. Checkpoints are kept; {again}")


def _says(error: Exception, words: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return any(word in text for word in words)
