"""The engine: one step = schedule, run, detokenise, settle. Synchronous; one thread calls it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from adapters.base_model import BaseModel
from adapters.errors import Invalid
from adapters.settings import Quantization, Settings
from serving.engine.bank import AdapterBank, adapter_budgets
from serving.engine.detokenizer import Detokenizer
from serving.engine.install import install_lora
from serving.engine.kernels import Kernels, kernels_for
from serving.engine.kv_cache import BlockPool, KVCache
from serving.engine.lora import StepAdapters
from serving.engine.model_runner import ModelRunner
from serving.engine.sampler import Sampled
from serving.engine.scheduler import Scheduler
from serving.engine.sequence import FinishReason, Request, Sequence, TokenDelta

BLOCK_SIZE = 16
_BITS: dict[Quantization, int | None] = {"none": None, "8bit": 8, "4bit": 4}

log = logging.getLogger(__name__)


@dataclass
class _Running:
    """A submitted request and what its answer needs until it ends."""

    sequence: Sequence
    detokenizer: Detokenizer


class Engine:
    """Takes over `base.model`: its attention and linear layers are replaced. `base` must not be used elsewhere."""

    def __init__(self, base: BaseModel, settings: Settings, *, kernels: Kernels | None = None, fuse: bool = True):
        kernels = kernels or kernels_for(base.device)
        step = StepAdapters()
        shapes = base.linear_shapes  # before the layers are replaced
        bits = _BITS[settings.quantize] if base.device.type == "cpu" else None  # elsewhere it was loaded quantised
        layers = install_lora(base, step, kernels, fuse=fuse, bits=bits)
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
        self.max_model_len = min(settings.max_model_len or base.max_model_len, base.max_model_len)
        self.pool = BlockPool(self._num_blocks(settings), BLOCK_SIZE, share_prefixes=settings.prefix_cache)
        self.runner.allocate(self.pool.num_blocks, BLOCK_SIZE)
        self.scheduler = Scheduler(
            self.pool, self.bank, max_batch_tokens=settings.max_batch_tokens, max_running=settings.max_running
        )
        self.on_finished: Callable[[str], None] = lambda request_id: None
        self._requests: dict[str, _Running] = {}

    def check(self, num_prompt: int, max_tokens: int | None) -> int:
        """The number of tokens a request may generate. Invalid when its prompt leaves room for none."""
        if num_prompt >= self.max_model_len:
            raise Invalid(
                f"the prompt has {num_prompt} tokens, the model takes {self.max_model_len}, prompt and answer; "
                "shorten the conversation",
                param="messages",
                code="context_length_exceeded",
            )
        room = self.max_model_len - num_prompt
        return min(max_tokens, room) if max_tokens is not None else room

    def add(self, request: Request) -> None:
        """Queue a request. Its prompt must have passed `check`, its adapters `bank.require_room`; they must be warm,
        and stay so until it ends."""
        sequence = Sequence(request)
        for digest, _ in request.mix:
            self.bank.hold(digest)
        self._requests[request.id] = _Running(sequence, Detokenizer(self.base.tokenizer, request.params.stop))
        self.scheduler.add(sequence)

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
        try:
            batch = self.scheduler.schedule()
            sampled = self.runner.run(batch) if batch else []
        except Exception as error:  # the step is lost for everyone in it; each of them must hear of it
            log.exception("engine step failed")
            return self._fail_all(error)
        self.scheduler.settle(batch)
        return [self._feed(chunk.sequence, token) for chunk, token in sampled]

    def _feed(self, sequence: Sequence, sampled: Sampled) -> TokenDelta:
        """Append one token to a sequence and say what that means for its answer."""
        request = sequence.request
        detokenizer = self._requests[request.id].detokenizer
        sequence.tokens.append(sampled.token_id)
        ended = self._ends_turn(sequence, sampled.token_id)
        text = "" if ended else detokenizer.push(sampled.token_id)
        reason = None
        if ended or detokenizer.stopped:
            reason = FinishReason.STOP
        elif sequence.num_output >= request.params.max_tokens or len(sequence.tokens) >= self.max_model_len:
            reason = FinishReason.LENGTH
        if reason:
            text += detokenizer.finish()
            self._finish(request.id)
        return TokenDelta(
            request.id,
            text,
            (sampled.token_id,),
            (sampled.logprob,) if sampled.logprob else (),
            reason,
            cached_tokens=sequence.num_cached,
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
        reason = f"the engine failed on this step ({type(error).__name__}: {error}); send the request again"
        for sequence in failed:
            self._finish(sequence.request.id)
        return [
            TokenDelta(sequence.request.id, "", finish_reason=FinishReason.ERROR, error=reason) for sequence in failed
        ]

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
