"""A base lent from one process to another. On a CPU, through the same protocol as on a GPU."""

import logging
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from adapters.base_model import BaseModel, load_base
from adapters.lending import Lender, LoanTerms, _reachable, borrow, terms_of
from adapters.settings import Settings
from serving.engine.engine import Engine
from serving.engine.kernels import reference
from tests import tiny

CPU = torch.device("cpu")


def lender_of(home: Path, base: BaseModel) -> Lender:
    terms = terms_of(base.fingerprint, base.dtype, base.quantize, base.device)
    return Lender(home, terms, base.model.state_dict())


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture(
    params=[
        ("cpu", "none"),
        ("cpu", "4bit"),
        pytest.param(("cuda", "none"), marks=gpu),
        pytest.param(("cuda", "4bit"), marks=gpu),
    ],
    ids="-".join,
)
def lent(request: pytest.FixtureRequest, tiny_base: Path, tmp_path: Path) -> Iterator[tuple[BaseModel, Lender]]:
    device, quantize = request.param
    base = load_base(str(tiny_base), device=device, dtype="bfloat16", quantize=quantize)
    lender = lender_of(tmp_path, base)
    yield base, lender
    lender.close()


BORROWER = """
import sys, torch
from pathlib import Path
from adapters.base_model import load_base
name, home, device, quantize, out = sys.argv[1:]
base = load_base(name, device=device, dtype="bfloat16", quantize=quantize, lenders=Path(home))
assert base.loan is not None
lent = {weight.data_ptr() for weight in base.loan.weights.values()}
large = [weight for weight in base.model.parameters() if weight.nbytes > 4096]
assert large and all(weight.data_ptr() in lent for weight in large)  # not a copy among them
with torch.inference_mode():
    torch.save((base.model(torch.arange(20, device=device)[None]).logits.cpu(), sorted(base.stop_token_ids)), out)
print("borrowed", flush=True)
sys.stdin.readline()
print("lost" if base.loan.lost.wait(20) else "still there", flush=True)
"""


def test_another_process_computes_with_the_very_same_weights(
    lent: tuple[BaseModel, Lender], tiny_base: Path, tmp_path: Path
) -> None:
    base, lender = lent
    command = [sys.executable, "-c", BORROWER, str(tiny_base), str(tmp_path), base.device.type, base.quantize]
    command.append(str(tmp_path / "logits"))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "borrowed\n"
        logits, stops = torch.load(tmp_path / "logits")
        with torch.inference_mode():
            assert torch.equal(logits, base.model(torch.arange(20, device=base.device)[None]).logits.cpu())
        assert stops == sorted(base.stop_token_ids)
        assert lender.borrowers == 1
        lender.close()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "lost\n"


def test_only_what_is_just_the_same_is_borrowed(
    tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = load_base(str(tiny_base), device="cpu", dtype="bfloat16")
    lender = lender_of(tmp_path, base)
    for other in (
        terms_of("0" * 64, base.dtype, "none", CPU),
        terms_of(base.fingerprint, torch.float32, "none", CPU),
        terms_of(base.fingerprint, base.dtype, "4bit", CPU),
        LoanTerms(base.fingerprint, str(base.dtype), "none", "GPU-1"),
    ):
        with caplog.at_level(logging.INFO):
            assert borrow(tmp_path, other, CPU) is None
        assert "does not lend its base: this server has" in caplog.text
    loan = borrow(tmp_path, lender.terms, CPU)
    assert loan is not None and not loan.lost.is_set()
    loan.close()
    assert not loan.lost.is_set()  # it was given back
    lender.close()
    assert borrow(tmp_path, lender.terms, CPU) is None and list((tmp_path / "lenders").iterdir()) == []


def test_a_borrower_may_change_what_it_has_without_anybody_noticing(tiny_base: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_base), device="cpu", dtype="bfloat16")
    lender = lender_of(tmp_path, base)
    first, second = (borrow(tmp_path, lender.terms, CPU) for _ in range(2))
    assert first and second
    name, weight = next(iter(base.model.state_dict().items()))
    first.weights[name].zero_()
    assert torch.equal(second.weights[name], weight) and weight.any()
    lender.close()


def test_strangers_learn_nothing_and_break_nothing(tiny_base: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_base), device="cpu", dtype="bfloat16")
    lender = lender_of(tmp_path, base)
    (path,) = (tmp_path / "lenders").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for words in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]", b"\x04\0\0"):
        with socket.socket(socket.AF_UNIX) as stranger, _reachable(path) as address:
            stranger.connect(address)
            with suppress(ConnectionError):  # that is an answer, too
                stranger.sendall(words)
                stranger.shutdown(socket.SHUT_WR)
                assert stranger.recv(1) == b""
    loan = borrow(tmp_path, lender.terms, CPU)
    assert loan is not None
    loan.close()
    lender.close()


def test_a_killed_lender_is_passed_over(tiny_base: Path, tmp_path: Path) -> None:
    home = tmp_path / ("a-home-with-a-name-longer-than-addresses-may-be-" * 3)
    base = load_base(str(tiny_base), device="cpu", dtype="bfloat16")
    lender = lender_of(home, base)
    (path,) = (home / "lenders").iterdir()
    os.link(path, path.with_name("1.sock"))
    lender.close()
    assert [left.name for left in (home / "lenders").iterdir()] == ["1.sock"]
    lender = lender_of(home, base)
    loan = borrow(home, lender.terms, CPU)
    assert loan is not None and [left.name for left in (home / "lenders").iterdir()] == [path.name]
    loan.close()
    lender.close()


@pytest.mark.parametrize("quantize", ["none", "4bit"])
def test_an_engine_that_does_not_pack_its_weights_knows_them_by_the_models_names(
    tiny_base: Path, quantize: str
) -> None:
    """As on a GPU, where q, k and v lie in one matrix and are lent as parts of it."""
    options = {"device": "cpu", "dtype": "bfloat16", "quantize": quantize}
    expected = load_base(str(tiny_base), **options).model.state_dict()  # type: ignore[arg-type]
    base = load_base(str(tiny_base), **options)  # type: ignore[arg-type]
    engine = Engine(base, Settings(kv_cache_memory=0.01), kernels=reference)  # type: ignore[arg-type]
    assert engine.weights is not None and engine.weights.keys() == expected.keys()
    assert all(torch.equal(engine.weights[name], weight) for name, weight in expected.items())
    joined = [engine.weights[f"model.layers.0.self_attn.{x}_proj.weight"] for x in "qkv"]
    assert len({weight.untyped_storage().data_ptr() for weight in joined}) == (1 if quantize == "none" else 3)


def test_packed_weights_are_not_lent(tiny_base: Path) -> None:
    engine = Engine(load_base(str(tiny_base), device="cpu", dtype="float32"), Settings(kv_cache_memory=0.01))
    assert engine.weights is None


def test_linear_layers_with_biases_are_lent_whole(tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = tiny.tokenizer_with()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    model.save_pretrained(tmp_path / "biased")
    tokenizer.save_pretrained(tmp_path / "biased")
    base = load_base(str(tmp_path / "biased"), device="cpu", dtype="float32")
    engine = Engine(base, Settings(kv_cache_memory=0.01), kernels=reference)  # type: ignore[arg-type]
    assert engine.weights is not None
    lender = Lender(tmp_path, terms_of(base.fingerprint, base.dtype, "none", CPU), engine.weights)
    borrowed = load_base(str(tmp_path / "biased"), device="cpu", dtype="float32", lenders=tmp_path)
    assert borrowed.loan is not None
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(borrowed.model(ids).logits, model.eval()(ids).logits)
    output, embedding = borrowed.model.get_output_embeddings(), borrowed.model.get_input_embeddings()
    assert output.weight.data_ptr() == embedding.weight.data_ptr()
    borrowed.loan.close()
    lender.close()
