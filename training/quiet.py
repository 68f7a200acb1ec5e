"""What a run's own output is kept clear of."""


def silence_libraries() -> None:
    """Their loading bars and deprecation notes would tear our lines apart; what matters is raised, not logged."""
    import logging
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
