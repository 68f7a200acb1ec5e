"""`python -m training.pretrain tokenizer|train`: the steps that make the bundled base model."""

from pathlib import Path
from typing import Annotated

import typer

from training.pretrain.corpus import Stage

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
DataOption = Annotated[list[Path], typer.Option("--data", help="Directory of corpus files; repeat for several.")]
MixtureOption = Annotated[Path, typer.Option(help="TOML file with the shares of each source, one table a stage.")]
MIXTURE = Path(__file__).parent / "mixture.toml"


@cli.command()
def tokenizer(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    mixture: MixtureOption = MIXTURE,
    vocab_size: int = 8192,
    context: int = 1024,
    characters: Annotated[int, typer.Option(help="How much text to learn from.")] = 24_000_000,
) -> None:
    """Train the tokenizer on text in the proportions of the pre-training mixture."""
    from training.pretrain.corpus import read_mixture, texts_for_tokenizer
    from training.pretrain.tokenizer import save_tokenizer, train_tokenizer

    texts = texts_for_tokenizer(read_mixture(mixture, "pretrain"), data, characters)
    save_tokenizer(train_tokenizer(texts, vocab_size, context), out)


@cli.command()
def train(
    data: DataOption,
    run: Annotated[Path, typer.Option(help="Run directory; an interrupted run in it is resumed.")],
    stage: Annotated[Stage, typer.Option()],
    start: Annotated[Path, typer.Option(help="Tokenizer directory (fresh weights) or model directory.")],
    tokens: Annotated[int, typer.Option(help="Training tokens in this stage.")],
    mixture: MixtureOption = MIXTURE,
    learning_rate: float = 3e-3,
    final: Annotated[float, typer.Option(help="Learning rate at the end, as a share of the peak.")] = 0.0,
    warmup_steps: int = 40,
    batch_rows: int = 16,
    length: int = 512,
    seed: int = 1,
    device: str = "cpu",
    compiled: Annotated[bool, typer.Option("--compile/--no-compile")] = True,
) -> None:
    """One stage: `pretrain` learns every token, `chat` only the assistant's words and its end-of-turn."""
    import torch
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    from training.pretrain.corpus import pack, read_mixture
    from training.pretrain.train import ModelShape, Pretrainer, Schedule

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(start)
    fresh = not (start / "config.json").exists()
    model = ModelShape().build(tokenizer) if fresh else Qwen3ForCausalLM.from_pretrained(start, dtype=torch.float32)
    rows = pack(read_mixture(mixture, stage), data, tokenizer, stage, rows=tokens // length, length=length, seed=seed)
    typer.echo(f"{model.num_parameters():,} parameters · {len(rows.tokens):,} rows of {length} tokens")
    schedule = Schedule(learning_rate, warmup_steps, final)
    trainer = Pretrainer(
        model,
        tokenizer,
        rows,
        schedule,
        run,
        batch_rows=batch_rows,
        device=torch.device(device),
        compiled=compiled,
    )
    trainer.run()


if __name__ == "__main__":
    cli()
