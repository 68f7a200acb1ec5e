"""The engine: one step = schedule, run, detokenise, settle. Synchronous; one thread calls it."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from adapters.base_model import BaseModel
from adapters.errors import Invalid
from adapters.settings import Quantization, Settings
from serving.engine.bank import AdapterBank, adapter_budgets
from serving.engine.detokenizer import Detokenizer
from serving.engine.effect import Effect, measure_effect
from serving.engine.family import FamilyProbe, refuse_unsupported
from serving.engine.grammar import GrammarCompiler
from serving.engine.histogram import Histogram
from serving.engine.install import install_lora
from serving.engine.kernels import Kernels, kernels_for
from serving.engine.kv_cache import BlockPool, KVCache
from serving.engine.lora import StepAdapters
from serving.engine.model_runner import ModelRunner
from serving.engine.sampler import Sampled
from serving.engine.scheduler import CannotStart, Scheduler
from serving.engine.sequence import FinishReason, Request, Sequence, TokenDelta

BLOCK_SIZE = 16
_STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_STEP_SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_BITS: dict[Quantization, int | None] = {"none": None, "8bit": 8, "4bit": 4}

log = logging.getLogger(__name__)


@dataclass
class _Running:
    """A submitted request and what its answer needs until it ends."""

    sequence: Sequence
    detokenizer: Detokenizer | None = None  # from the first token on: requests that wait hold their ids only


class Engine:
    """Takes over `base.model`: its attention and linear layers are replaced. `base` must not be used elsewhere."""

    def __init__(self, base: BaseModel, settings: Settings, *, kernels: Kernels | None = None, fuse: bool = True):
        self.max_model_len = min(settings.max_model_len or base.max_model_len, base.max_model_len)
        refuse_unsupported(base, self.max_model_len)
        probe = FamilyProbe(base)  # before the layers are replaced
        kernels = kernels or kernels_for(base.device, settings.adapter_slots)
        step = StepAdapters()
        shapes = base.linear_shapes  # before the layers are replaced
        bits = _BITS[settings.quantize] if base.device.type == "cpu" else None  # elsewhere it was loaded quantised
        weights: dict[str, Tensor] = base.model.state_dict()
        layers = install_lora(base, step, kernels, fuse=fuse, bits=bits, weights=weights)
        # By name, as a trainer knows them; None when they were packed into an order that nobody else can read.
        self.weights = weights if all(f"{name}.weight" in weights for name in shapes) else None
        self.base = base
        host_budget, device_budget = adapter_budgets(settings, base.device)
        self.bank = AdapterBank(
            layers,
            shapes,
            num_slots=settings.adapter_slots,
            dtype=base.dtype,
            device=base.device,
            host_budget=host_budget,
            device_budget=device_budget,
        )
        self.runner = ModelRunner(base, self.bank, step, kernels)
        vocab_size = base.model.config.get_text_config().vocab_size
        self.grammars = GrammarCompiler(base.tokenizer, vocab_size, base.stop_token_ids)
        probe.check(self.runner, rounded=bits is not None)
        self.pool = BlockPool(self._num_blocks(settings), BLOCK_SIZE, share_prefixes=settings.prefix_cache)
        batch_tokens = settings.max_batch_tokens or (256 if base.device.type == "cpu" else 2048)
        self.runner.allocate(
            self.pool.num_blocks, BLOCK_SIZE, max_rows=settings.max_running, max_len=self.max_model_len
        )
        self.scheduler = Scheduler(
            self.pool, self.bank, max_batch_tokens=batch_tokens, max_running=settings.max_running
        )
        self.on_finished: Callable[[str], None] = lambda request_id: None
        self._requests: dict[str, _Running] = {}
        self.step_s = Histogram(_STEP_S)
        self.step_sequences = Histogram(_STEP_SEQUENCES)
        self.failed_steps = 0

    def check(self, num_prompt: int, max_tokens: int | None, *, param: str = "messages") -> int:
        """The number of tokens a request may generate: `max_tokens`, or as many as its prompt leaves room for. Invalid
        when that is none, unless it wants none."""
        if num_prompt + (max_tokens != 0) > self.max_model_len:
            # Clients that shorten conversations by themselves know the case by OpenAI's first words.
            raise Invalid(
                f"this model's maximum context length is {self.max_model_len} tokens, prompt and answer; the prompt "
                f"has {num_prompt}: shorten the {'conversation' if param == 'messages' else param}",
                param=param,
                code="context_length_exceeded",
            )
        room = self.max_model_len - num_prompt
        return min(max_tokens, room) if max_tokens is not None else room

    def add(self, request: Request) -> None:
        """Queue a request. Its prompt must have passed `check`, its adapters `bank.require_room`; they must be warm,
        and stay so until it ends. Its grammar should be compiled, else that happens here, between two steps."""
        sequence = Sequence(request)
        if request.params.grammar:
            sequence.matcher = self.grammars.matcher(request.params.grammar)
        for digest, _ in request.mix:
            self.bank.hold(digest)
        self.scheduler.add(sequence)
        self._requests[request.id] = _Running(sequence)

    def abort(self, request_id: str) -> None:
        """Stop a request and free what it holds, now. Unknown ids are ones that have just ended."""
        if request_id in self._requests:
            self._finish(request_id)

    def requests_using(self, digest: str) -> list[str]:
        """Ids of the requests, running or waiting, that an adapter takes part in."""
        return [
            request_id
            for request_id, running in self._requests.items()
            if any(used == digest for used, _ in running.sequence.request.mix)
        ]

    def forget_adapter(self, digest: str) -> int:
        """Free an adapter's weights and cached blocks; returns the bytes of weights freed. Does nothing while a
        request still needs it (its name was loaded again in the meantime)."""
        if self.requests_using(digest):
            return 0
        self.pool.forget_adapter(digest)
        return self.bank.free(digest)

    def measure_effect(self, digest: str) -> Effect | None:
        """What an adapter changes, from one short forward pass during which running requests wait. None when it is
        not in memory, or running requests need every slot: try again later."""
        in_use = self.scheduler.digests_in_use()
        if self.bank.status(digest) == "cold" or not self.bank.can_activate({digest}, in_use):
            return None
        self.bank.activate({digest}, in_use)
        return measure_effect(self.runner, self.bank.slot(digest), self.max_model_len)

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    @property
    def num_waiting(self) -> int:
        return len(self.scheduler.waiting)

    @property
    def num_running(self) -> int:
        return len(self.scheduler.running)

    def step(self) -> list[TokenDelta]:
        """Advance every scheduled request; returns what to tell their callers."""
        started = time.perf_counter()
        try:
            batch = self.scheduler.schedule()
            sampled = self.runner.run(batch) if batch else []
        except CannotStart as error:  # nobody has advanced; the next step goes on without this one
            log.exception("request %s cannot start", error.sequence.request.id)
            return [self._fail(error.sequence, error.__cause__ or error)]
        except Exception as error:  # the step is lost for everyone in it; each of them must hear of it
            self.failed_steps += 1
            log.exception("engine step failed; running: %s", ", ".join(s.request.id for s in self.scheduler.running))
            return self._fail_all(error)
        self.scheduler.settle(batch)
        deltas = [self._feed(chunk.sequence, token) for chunk, token in sampled]
        if batch:
            self.step_s.observe(time.perf_counter() - started)
            self.step_sequences.observe(len(batch))
        return deltas

    def _feed(self, sequence: Sequence, sampled: Sampled) -> TokenDelta:
        """Append one token to a sequence and say what that means for its answer."""
        request = sequence.request
        scores = () if sequence.num_output or request.params.prompt_logprobs is None else sequence.prompt_logprobs
        if request.params.max_tokens == 0:
            try:
                embedding = _embedding(sequence) if request.params.embed else None
            except ValueError as broken:
                return self._fail(sequence, broken)
            self._finish(request.id)
            return TokenDelta(
                request.id,
                "",
                prompt_logprobs=tuple(scores),
                embedding=embedding,
                finish_reason=FinishReason.LENGTH,
            )
        running = self._requests[request.id]
        detokenizer = running.detokenizer = running.detokenizer or Detokenizer(
            self.base.tokenizer, request.params.stop, hidden=request.hidden_tokens
        )
        matcher = sequence.matcher
        sequence.tokens.append(sampled.token_id)
        if matcher:
            matcher.take(sampled.token_id)
        ended = self._ends_turn(sequence, sampled.token_id)
        text = "" if ended else detokenizer.push(sampled.token_id)
        reason, error = None, None
        if matcher and matcher.error:
            reason, error = FinishReason.ERROR, f"the answer cannot follow its grammar any further: {matcher.error}"
        elif ended or detokenizer.stopped or (matcher and matcher.stopped):
            reason = FinishReason.STOP
        elif sequence.num_output >= request.params.max_tokens or len(sequence.tokens) >= self.max_model_len:
            reason = FinishReason.LENGTH
        if reason:
            text += detokenizer.finish(cut=reason == FinishReason.LENGTH)
            self._finish(request.id)
        return TokenDelta(
            request.id,
            text,
            (sampled.token_id,),
            (sampled.logprob,) if sampled.logprob else (),
            tuple(scores),
            reason,
            cached_tokens=sequence.num_cached,
            error=error,
        )

    def _ends_turn(self, sequence: Sequence, token_id: int) -> bool:
        params = sequence.request.params
        if token_id in params.stop_token_ids:
            return True
        return token_id in self.base.stop_token_ids and not params.ignore_eos

    def _finish(self, request_id: str) -> None:
        sequence = self._requests.pop(request_id).sequence
        self.scheduler.remove(sequence)
        for digest, _ in sequence.request.mix:
            self.bank.release(digest)
        self.on_finished(request_id)

    def _fail_all(self, error: Exception) -> list[TokenDelta]:
        """End every running request; after an unknown failure their keys and values cannot be trusted. Waiting ones
        have none yet and go on, unless nothing ran: then the first of them is what cannot be scheduled."""
        failed = list(self.scheduler.running) or list(self.scheduler.waiting)[:1]
        return [self._fail(sequence, error) for sequence in failed]

    def _fail(self, sequence: Sequence, error: BaseException) -> TokenDelta:
        self._finish(sequence.request.id)
        reason = f"the engine failed on this step ({type(error).__name__}: {error}); send the request again"
        return TokenDelta(sequence.request.id, "", finish_reason=FinishReason.ERROR, error=reason)

    def _num_blocks(self, settings: Settings) -> int:
        """Blocks in the memory set aside; Invalid when a single longest sequence would not fit."""
        budget = int(settings.kv_cache_memory * 2**30)
        per_block = KVCache.bytes_per_token(self.runner.layer_shapes, self.base.dtype) * BLOCK_SIZE
        # More than every running sequence at full length can never be used.
        useful = settings.max_running * -(-self.max_model_len // BLOCK_SIZE)
        blocks = min(budget // per_block, useful)
        if blocks * BLOCK_SIZE < self.max_model_len:
            needed = per_block * -(-self.max_model_len // BLOCK_SIZE) / 2**30
            raise Invalid(
                f"kv_cache_memory is {settings.kv_cache_memory} GiB, a sequence of {self.max_model_len} tokens needs "
                f"{needed:.2f} GiB; raise --kv-cache-memory or lower --max-model-len",
                param="kv_cache_memory",
            )
        return int(blocks)


def _embedding(sequence: Sequence) -> Tensor:
    """(hidden,) float32 of length 1 on the host: the mean of the prompt's hidden states, which points where their sum
    does. ValueError when it has no direction."""
    assert sequence.hidden_sum is not None
    direction = F.normalize(sequence.hidden_sum, dim=0).cpu()
    if not direction.isfinite().all():
        raise ValueError("the prompt's hidden states are infinite or not numbers")
    return direction
