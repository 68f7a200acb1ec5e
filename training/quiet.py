"""What a run's own output is kept clear of. Before the libraries are imported: some speak up as they are."""

import logging


def silence_libraries() -> None:
    """Their loading bars and deprecation notes would tear our lines apart; what matters is raised, not logged."""
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_no_kernels_note)
    warnings.filterwarnings("ignore", category=FutureWarning)


def _is_no_kernels_note(record: logging.LogRecord) -> bool:
    """Without kernels from a hub, which nobody asked for, bitsandbytes computes with its own; no need to say so."""
    return "kernels-community" not in record.getMessage()
