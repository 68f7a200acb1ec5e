"""Making the bundled base model from nothing: corpus, tokenizer, pre-training, chat tuning.

`python -m training.pretrain --help` lists the steps; `docs/bundled-base.md` gives the exact commands."""
