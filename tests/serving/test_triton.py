"""The Triton kernels against the plain ones: compiled where there is a GPU, else in Triton's interpreter."""

import random

import pytest
import torch
from torch import nn

from serving.engine.kernels import reference
from serving.engine.kernels.plan import AttentionPlan, AttentionSpec, PagedDecodes, Span
from serving.engine.kv_cache import LayerCache
from serving.engine.lora import Delta, DeviceRows, LoRALinear, RowSegment, StepAdapters, StepRows

pytest.importorskip("triton")

from serving.engine.kernels import triton_blocks  # noqa: E402
from serving.engine.kernels.cuda import CudaKernels  # noqa: E402
from serving.engine.kernels.lora_tables import rows_of, tiles_of  # noqa: E402
from serving.engine.kernels.triton_attention import CHUNK  # noqa: E402
from serving.engine.kernels.triton_lora import add_by_rows, add_by_tiles  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SLOTS = 6


def lora_layer(
    widths: dict[str, int], in_features: int, ranks: dict[int, int], *, dtype: torch.dtype, absent: set[tuple[int, str]]
) -> LoRALinear:
    kernels = CudaKernels(DEVICE, SLOTS)
    layer = LoRALinear(nn.Identity(), widths, StepAdapters(), kernels)
    for slot, rank in ranks.items():
        for member, width in widths.items():
            if (slot, member) not in absent:
                a = torch.randn(rank, in_features) / in_features**0.5
                b = torch.randn(rank, width) / rank**0.5
                layer.load(slot, member, Delta(a.to(DEVICE, dtype), b.to(DEVICE, dtype)))
    return layer


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}


def assert_equal_by_rows_and_tiles(layer: LoRALinear, x: torch.Tensor, segments: list[RowSegment], width: int) -> None:
    start = torch.randn(len(x), width, device=DEVICE).to(x.dtype)
    expected = start.clone()
    reference.add_lora(expected, x, layer, StepRows(segments))
    kernels = layer.kernels
    assert isinstance(kernels, CudaKernels)
    kernels.prepare([layer])
    table = kernels._tables[layer]
    by_rows, by_tiles = start.clone(), start.clone()
    add_by_rows(by_rows, x, table, rows_of(segments, len(x), DEVICE), kernels.rank)
    add_by_tiles(by_tiles, x, table, tiles_of(segments, 16, DEVICE), kernels.rank)
    for result in (by_rows, by_tiles):
        torch.testing.assert_close(result, expected, **tolerance(x.dtype))
        used = torch.zeros(len(x), dtype=torch.bool)
        for segment in segments:
            used[segment.start : segment.end] = True
        assert torch.equal(result[~used], start[~used])  # rows of the base are not touched


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("widths", "in_features", "ranks"),
    [
        ({"q": 192, "k": 64, "v": 64}, 96, {1: 4, 2: 8, 4: 16}),
        ({"gate": 130, "up": 130}, 600, {1: 1, 2: 128, 3: 33}),  # nothing is a multiple of anything
        ({"down": 48}, 1040, {1: 64, 5: 2}),
    ],
)
def test_adapters_of_any_rank_in_one_launch_equal_the_reference(
    widths: dict[str, int], in_features: int, ranks: dict[int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    first, second, *_ = ranks
    absent = {(second, next(iter(widths)))}  # an adapter need not target every layer
    layer = lora_layer(widths, in_features, ranks, dtype=dtype, absent=absent)
    segments = [
        RowSegment(1, 2, ((first, 1.0),)),
        RowSegment(2, 20, ((second, 0.5),)),
        RowSegment(20, 22, ((max(ranks), -1.5),)),
        RowSegment(23, 24, ((6, 1.0),)),  # a slot with nothing for this layer
    ]
    x = torch.randn(25, in_features, device=DEVICE).to(dtype)
    assert_equal_by_rows_and_tiles(layer, x, segments, sum(widths.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blends_of_different_width_equal_the_reference(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    layer = lora_layer({"q": 48, "v": 32}, 64, {1: 4, 2: 20, 3: 7}, dtype=dtype, absent={(3, "v")})
    segments = [
        RowSegment(0, 3, ((1, 0.5), (2, 2.0), (3, -0.25))),
        RowSegment(3, 4, ((2, 0.0),)),
        RowSegment(5, 9, ((3, 1.0), (1, 1.0))),
    ]
    assert_equal_by_rows_and_tiles(layer, torch.randn(9, 64, device=DEVICE).to(dtype), segments, 80)


def test_an_adapter_loaded_later_is_found_by_a_step_recorded_before() -> None:
    torch.manual_seed(2)
    layer = lora_layer({"q": 32}, 32, {1: 4}, dtype=torch.float32, absent=set())
    kernels = layer.kernels
    assert isinstance(kernels, CudaKernels)
    x, step = torch.randn(2, 32, device=DEVICE), StepRows([RowSegment(0, 2, ((2, 1.0),))])
    rows = DeviceRows(*(torch.tensor(v, device=DEVICE) for v in ([[2], [2]], [[1.0], [1.0]])))
    out = torch.zeros(2, 32, device=DEVICE)
    kernels.prepare([layer])
    kernels.add_lora(out, x, layer, rows)
    assert not out.any()
    for seed in (3, 4):
        other = lora_layer({"q": 32}, 32, {2: 7}, dtype=torch.float32, absent=set())
        [(_, weights)] = other.parts(2)
        layer.load(2, "q", weights)
        expected, out = torch.zeros(2, 32, device=DEVICE), torch.zeros(2, 32, device=DEVICE)
        reference.add_lora(expected, x, layer, step)
        kernels.prepare([layer])
        kernels.add_lora(out, x, layer, rows)
        torch.testing.assert_close(out, expected, msg=lambda text, seed=seed: f"load {seed}: {text}")
    layer.unload(2)
    out = torch.zeros(2, 32, device=DEVICE)
    kernels.prepare([layer])
    kernels.add_lora(out, x, layer, rows)
    assert not out.any()


def random_pasts(
    rng: random.Random, lengths: list[int], block_size: int, kv_heads: int, dims: tuple[int, int], dtype: torch.dtype
) -> tuple[LayerCache, PagedDecodes, AttentionPlan]:
    """The same pasts twice: as block tables and, token by token, as the reference reads them."""
    needed = [-(-length // block_size) for length in lengths]
    numbers = rng.sample(range(sum(needed) + 3), sum(needed))
    tokens = (sum(needed) + 3) * block_size
    cache = LayerCache(*(torch.randn(kv_heads, tokens, dim, device=DEVICE).to(dtype) for dim in dims))
    blocks = torch.zeros(len(lengths), max(needed), dtype=torch.int32)
    spans = []
    for row, (length, count) in enumerate(zip(lengths, needed, strict=True)):
        mine = torch.tensor([numbers.pop() for _ in range(count)], dtype=torch.int32)
        blocks[row, :count] = mine
        slots = (mine[:, None] * block_size + torch.arange(block_size)).flatten()[:length].long()
        spans.append(Span(row, 1, length, slots.to(DEVICE)))
    paged = PagedDecodes(blocks.to(DEVICE), torch.tensor(lengths, dtype=torch.int32, device=DEVICE), block_size)
    return cache, paged, AttentionPlan(spans)


SPECS = {
    "plain": AttentionSpec(0.2),
    "window": AttentionSpec(0.2, window=70),
    "softcap": AttentionSpec(0.2, softcap=2.0),
    "sinks": AttentionSpec(0.2, window=130, sinks=torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, -1.0], device=DEVICE)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dims", [(32, 32), (24, 16)])
def test_decoding_through_block_tables_equals_the_reference(
    dims: tuple[int, int], spec: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    lengths = [1, 15, 16, 63, 65, CHUNK, CHUNK + 1, 3 * CHUNK - 7]
    cache, paged, plan = random_pasts(random.Random(0), lengths, 16, 2, dims, dtype)
    query = torch.randn(len(lengths), 6, dims[0], device=DEVICE).to(dtype)
    kernels = CudaKernels(DEVICE, SLOTS)
    expected = reference.attend(query, cache, plan, SPECS[spec])
    for attended in (kernels.attend(query, cache, paged, SPECS[spec]), kernels.attend(query, cache, plan, SPECS[spec])):
        torch.testing.assert_close(attended, expected, **tolerance(dtype))


def test_a_rows_attention_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    cache, paged, _ = random_pasts(random.Random(1), [700, 3, 300], 16, 2, (32, 32), torch.float32)
    query = torch.randn(3, 6, 32, device=DEVICE)
    crowded, lonely = CudaKernels(DEVICE, SLOTS), CudaKernels(DEVICE, SLOTS)
    crowded._programs, lonely._programs = 1, 64
    together = crowded.attend(query, cache, paged, SPECS["plain"])
    for row in range(3):
        alone = PagedDecodes(paged.blocks[row : row + 1], paged.lengths[row : row + 1], 16)
        assert torch.equal(lonely.attend(query[row : row + 1], cache, alone, SPECS["plain"])[0], together[row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", SPECS)
def test_steps_of_prompts_and_decodes_equal_the_reference(spec: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    cache = LayerCache(*(torch.randn(2, 512, 32, device=DEVICE).to(dtype) for _ in range(2)))
    rng = random.Random(3)
    spans, row = [], 0
    for count, length in ((1, 40), (40, 40), (1, 1), (5, 150), (2, 2), (1, 90)):
        spans.append(Span(row, count, length, torch.tensor(rng.sample(range(512), length), device=DEVICE)))
        row += count
    query = torch.randn(row, 6, 32, device=DEVICE).to(dtype)
    plan = AttentionPlan(spans)
    attended = CudaKernels(DEVICE, SLOTS).attend(query, cache, plan, SPECS[spec])
    torch.testing.assert_close(attended, reference.attend(query, cache, plan, SPECS[spec]), **tolerance(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_operations_round_where_the_reference_rounds(dtype: torch.dtype) -> None:
    torch.manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=DEVICE).to(dtype)

    x, added, weight = randn(3, 200), randn(3, 200), randn(200)
    heads, cos, sin = randn(3, 7, 48)[:, :5], randn(3, 48), randn(3, 48)  # a slice, as the joined projection gives it
    pairs = [
        (triton_blocks.add_rms_norm(x, None, weight, 1e-6), reference.add_rms_norm(x, None, weight, 1e-6)),
        (triton_blocks.add_rms_norm(x, added, weight, 1e-6), reference.add_rms_norm(x, added, weight, 1e-6)),
        *[
            (triton_blocks.norm_and_rotate(heads, n, cos, sin), reference.norm_and_rotate(heads, n, cos, sin))
            for n in (None, (randn(5, 48), 1e-6))
        ],
        (triton_blocks.silu_and_multiply(x), reference.silu_and_multiply(x)),
    ]
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 4e-2, "atol": 1e-2}
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, **close)


def test_keys_and_values_land_where_the_reference_puts_them() -> None:
    torch.manual_seed(0)
    both = torch.randn(4, 6, 24, device=DEVICE)
    keys, values = both[:, :2], both[:, 2:4, :16]
    slots = torch.tensor([5, 0, 31, 7], device=DEVICE)
    caches = [LayerCache(torch.zeros(2, 32, 24, device=DEVICE), torch.zeros(2, 32, 16, device=DEVICE)) for _ in "ab"]
    triton_blocks.store_kv(caches[0], keys, values, slots)
    reference.store_kv(caches[1], keys, values, slots)
    assert torch.equal(caches[0].keys, caches[1].keys) and torch.equal(caches[0].values, caches[1].values)
