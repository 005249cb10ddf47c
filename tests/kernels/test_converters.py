"""Converted models against the public ``xlstm`` package: equal outputs, step by step too, and clear refusals."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from xlstm import (
    FeedForwardConfig,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
    xLSTMBlockStack,
    xLSTMBlockStackConfig,
    xLSTMLMModel,
    xLSTMLMModelConfig,
)
from xlstm.blocks.slstm.cell import sLSTMCell
from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig

from xlstm_kernels import (
    from_xlstm,
    from_xlstm_large,
    map_state,
    pack_state,
    state_from_xlstm,
    state_from_xlstm_large,
)

# Measured: 2e-6 and 6e-14. Their step starts from m = 0, which puts epsilon to another scale: 2e-7 in float64.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
STEP_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6}
STACKS = {"mLSTM": [], "sLSTM": [0, 1], "mixed": [1]}
B, S, D = 2, 20, 32


def randomise(module: nn.Module) -> nn.Module:
    """Move every parameter away from the zeros and ones of its initialisation."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def public_config(slstm_at: list[int], *, kind: type = xLSTMBlockStackConfig, **changes: object) -> object:
    settings = {
        "mlstm_block": mLSTMBlockConfig(mlstm=mLSTMLayerConfig(num_heads=2)),
        "slstm_block": sLSTMBlockConfig(slstm=sLSTMLayerConfig(backend="vanilla", num_heads=2)),
    }
    return kind(**settings | {"context_length": S, "num_blocks": 2, "embedding_dim": D, "slstm_at": slstm_at} | changes)


@pytest.fixture(params=STACKS.values(), ids=STACKS)
def public(request: pytest.FixtureRequest) -> xLSTMBlockStack:
    torch.manual_seed(0)
    return randomise(xLSTMBlockStack(public_config(request.param)))


def steps(public: xLSTMBlockStack, x: Tensor) -> tuple[Tensor, dict]:
    """The public stack's outputs for x, step by step, and its state after them."""
    outputs, state = [], None
    for t in range(x.shape[1]):
        y, state = public.step(x[:, t : t + 1], state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


@torch.no_grad()
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_converted_stack_gives_the_public_stacks_outputs(dtype: torch.dtype, public: xLSTMBlockStack) -> None:
    x = torch.randn(B, S, D, dtype=dtype)
    torch.testing.assert_close(from_xlstm(public.to(dtype))(x)[0], public(x), rtol=0, atol=TOLERANCE[dtype])


@torch.no_grad()
@pytest.mark.parametrize("dtype", STEP_TOLERANCE)
def test_a_converted_stack_steps_as_the_public_stack_does(dtype: torch.dtype, public: xLSTMBlockStack) -> None:
    stack, state, outputs = from_xlstm(public.to(dtype)), None, []
    inputs = torch.randn(B, S, D, dtype=dtype)
    for x in inputs.split(1, dim=1):
        y, state = stack(x, state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, dim=1), steps(public, inputs)[0], rtol=0, atol=STEP_TOLERANCE[dtype])


@torch.no_grad()
@pytest.mark.parametrize("dtype", STEP_TOLERANCE)
@pytest.mark.parametrize("begun", [1, 7])
def test_a_converted_state_continues_what_the_public_stack_began(
    begun: int, dtype: torch.dtype, public: xLSTMBlockStack
) -> None:
    stack, x = from_xlstm(public.to(dtype)), torch.randn(B, S, D, dtype=dtype)
    state = state_from_xlstm(steps(public, x[:, :begun])[1], stack.config)
    y, _ = stack(x[:, begun:], state)
    torch.testing.assert_close(y, public(x)[:, begun:], rtol=0, atol=STEP_TOLERANCE[dtype])


@torch.no_grad()
def test_a_converted_state_stays_while_the_public_stack_goes_on(public: xLSTMBlockStack) -> None:
    theirs = steps(public, torch.randn(B, 3, D))[1]
    state = state_from_xlstm(theirs, from_xlstm(public).config)
    before = map_state(torch.clone, state)
    public.step(torch.randn(B, 1, D), theirs)
    assert torch.equal(pack_state(state), pack_state(before))


def test_a_state_with_a_missing_block_is_named(public: xLSTMBlockStack) -> None:
    state = steps(public, torch.randn(B, 1, D))[1]
    del state["block_1"]
    with pytest.raises(ValueError, match=r"one entry for each of the 2 blocks, got \['block_0'\]"):
        state_from_xlstm(state, from_xlstm(public).config)


def test_gradients_are_the_public_stacks(public: xLSTMBlockStack) -> None:
    x = torch.randn(B, S, D, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(public.double()(x).square().sum(), x)[0]
    actual = torch.autograd.grad(from_xlstm(public)(x)[0].square().sum(), x)[0]
    # 2e-7 measured: theirs follows the stabiliser too, which through epsilon alone touches the outputs.
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)


@torch.no_grad()
def test_slstm_blocks_without_a_convolution_are_converted_with_their_state() -> None:
    slstm = sLSTMLayerConfig(backend="vanilla", num_heads=2, conv1d_kernel_size=0)
    public = randomise(xLSTMBlockStack(public_config([0, 1], slstm_block=sLSTMBlockConfig(slstm=slstm))))
    stack, x = from_xlstm(public), torch.randn(B, S, D)
    state = state_from_xlstm(steps(public, x[:, :7])[1], stack.config)
    torch.testing.assert_close(stack(x)[0], public(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(stack(x[:, 7:], state)[0], public(x)[:, 7:], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_state_dict_alone_is_enough(public: xLSTMBlockStack) -> None:
    x = torch.randn(B, S, D)
    assert torch.equal(from_xlstm(public.state_dict())(x)[0], from_xlstm(public)(x)[0])


@torch.no_grad()
def test_a_language_model_gives_its_stack() -> None:
    model = randomise(xLSTMLMModel(public_config([1], kind=xLSTMLMModelConfig, vocab_size=11)))
    x = torch.randn(B, S, D)
    torch.testing.assert_close(from_xlstm(model)(x)[0], model.xlstm_block_stack(x), rtol=0, atol=1e-5)


@torch.no_grad()
def test_weights_of_the_cuda_backend_are_told_by_their_layout() -> None:
    vanilla = randomise(xLSTMBlockStack(public_config([0, 1])))
    weights = vanilla.state_dict()
    for index, block in enumerate(vanilla.blocks):
        theirs = sLSTMCell(replace(block.config.slstm, backend="cuda"), skip_backend_init=True)
        prefix, cell = f"blocks.{index}.xlstm.slstm_cell.", block.xlstm.slstm_cell
        weights[prefix + "_recurrent_kernel_"] = theirs._recurrent_kernel_ext2int(cell.recurrent_kernel.clone())
        weights[prefix + "_bias_"] = theirs._bias_ext2int(cell.bias.clone())
    x = torch.randn(B, S, D)
    assert weights["blocks.0.xlstm.slstm_cell._recurrent_kernel_"].shape == (2, D // 2, 2 * D)
    assert torch.equal(from_xlstm(weights)(x)[0], from_xlstm(vanilla)(x)[0])


def test_a_converted_stack_is_saved_and_loaded(public: xLSTMBlockStack, tmp_path: Path) -> None:
    stack, x = from_xlstm(public), torch.randn(B, S, D)
    stack.save_pretrained(tmp_path)
    assert torch.equal(type(stack).from_pretrained(tmp_path)(x)[0], stack(x)[0])


def test_the_source_is_left_as_it_was(public: xLSTMBlockStack) -> None:
    before = copy.deepcopy(public.state_dict())
    stack = from_xlstm(public)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.zero_()
    for name, tensor in public.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"add_post_blocks_norm": False}, "the stack lacks 'post_blocks_norm.weight'"),
        ({"bias": True}, "block 0 has weights without a counterpart here: xlstm.k_proj.bias, .* and 1 more"),
        (
            {"slstm_block": sLSTMBlockConfig(slstm=sLSTMLayerConfig(backend="vanilla", num_heads=4))},
            "num_heads is 4 in block 1, 2 before it",
        ),
        (
            {"slstm_block": sLSTMBlockConfig(slstm=sLSTMLayerConfig(backend="vanilla"), feedforward=None)},
            "block 1 lacks 'ffn.proj_up.weight'",
        ),
        (
            {"slstm_block": sLSTMBlockConfig(feedforward=FeedForwardConfig(act_fn="relu"))},
            "GatedFeedForward has act_fn 'relu'; only 'gelu' can be converted",
        ),
    ],
)
def test_what_has_no_counterpart_is_named(changes: dict, message: str) -> None:
    if "slstm_block" in changes:
        changes["slstm_block"].slstm.backend = "vanilla"
    with pytest.raises(ValueError, match=message):
        from_xlstm(xLSTMBlockStack(public_config([1], **changes)))


def test_weights_of_no_stack_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected weights of blocks 0, 1, ..., found blocks \[\]"):
        from_xlstm(nn.Linear(2, 2))


# xLSTM 7B.


def public_large(**changes: object) -> xLSTMLarge:
    settings = {"embedding_dim": D, "num_heads": 2, "num_blocks": 2, "vocab_size": 11, "return_last_states": True}
    kernels = {
        "chunkwise_kernel": "chunkwise--native_autograd",
        "sequence_kernel": "native_sequence__native",
        "step_kernel": "native",
        "mode": "inference",
        "chunk_size": 8,
    }
    torch.manual_seed(0)
    return randomise(xLSTMLarge(xLSTMLargeConfig(**settings | kernels | changes)))


@pytest.fixture(params=["single", "fused"])
def large(request: pytest.FixtureRequest) -> xLSTMLarge:
    return public_large(weight_mode=request.param)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 8, S], ids=["a step", "a chunk", "more"])
def test_a_converted_7b_stack_gives_the_public_backbones_outputs(length: int, large: xLSTMLarge) -> None:
    x = torch.randn(B, length, D)
    torch.testing.assert_close(from_xlstm_large(large)(x)[0], large.backbone(x)[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_converted_7b_stack_steps_as_the_public_backbone_does(large: xLSTMLarge) -> None:
    stack, ours, theirs = from_xlstm_large(large), None, None
    for x in torch.randn(S, B, 1, D):
        expected, theirs = large.backbone(x, theirs)
        y, ours = stack(x, ours)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_converted_7b_state_continues_what_the_public_backbone_began(large: xLSTMLarge) -> None:
    stack, x = from_xlstm_large(large), torch.randn(B, S, D)
    _, state = large.backbone(x[:, :7])
    y, _ = stack(x[:, 7:], state_from_xlstm_large(state, stack.config))
    torch.testing.assert_close(y, large.backbone(x)[0][:, 7:], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_converted_7b_state_stays_while_the_public_backbone_goes_on(large: xLSTMLarge) -> None:
    _, theirs = large.backbone(torch.randn(B, 3, D))
    state = state_from_xlstm_large(theirs, from_xlstm_large(large).config)
    before = map_state(torch.clone, state)
    large.backbone(torch.randn(B, 1, D), theirs)
    assert torch.equal(pack_state(state), pack_state(before))


@torch.no_grad()
def test_7b_weights_alone_are_enough_but_for_the_cap_of_the_gates(large: xLSTMLarge) -> None:
    x = torch.randn(B, S, D)
    expected = from_xlstm_large(large)(x)[0]
    assert torch.equal(from_xlstm_large(large.backbone)(x)[0], expected)
    assert torch.equal(from_xlstm_large(large.state_dict())(x)[0], expected)
    assert not torch.allclose(from_xlstm_large(large.state_dict(), gate_soft_cap=1.0)(x)[0], expected)


@torch.no_grad()
def test_the_modules_own_cap_of_the_gates_is_kept() -> None:
    large, x = public_large(gate_soft_cap=2.0), torch.randn(B, S, D)
    torch.testing.assert_close(from_xlstm_large(large)(x)[0], large.backbone(x)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qk_dim_factor": 1.0}, "queries of width 32 and values of width 32 .* only qk_dim_factor 0.5"),
        ({"add_out_norm": False}, "the stack lacks 'out_norm.weight'"),
        ({"use_bias": True}, "block 0 has weights without a counterpart here: .*bias"),
        ({"norm_eps": 1e-5}, "has norm_eps 1e-05; only 1e-06 can be converted"),
    ],
)
def test_a_7b_stack_without_a_counterpart_is_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_xlstm_large(public_large(**changes))
