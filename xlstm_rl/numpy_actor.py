"""A trained policy that acts with NumPy alone: observation, state and episode start in, action and state out.

This file imports nothing else of its package, so that it can be deployed beside the weights ``export_numpy`` wrote. Its
functions also run on torch's tensors (``xp``), which is how the ONNX graph comes about.

Shapes: B batch, F features, D embedding dim, E inner dim, K convolution kernel, NH heads, DH head dim, A outputs of
the action network, N floats of state.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = Any  # of NumPy, or of torch while a graph is traced
Weights = dict[str, Array]
EPSILON = 1e-6  # beside the mLSTM's normaliser
CLIP = 10.0  # standard deviations
FORBIDDEN = -1e8


def sigmoid(xp: Any, x: Array) -> Array:
    return 0.5 * xp.tanh(0.5 * x) + 0.5


def silu(xp: Any, x: Array) -> Array:
    return x * sigmoid(xp, x)


def gelu(xp: Any, x: Array) -> Array:
    erf = np.frompyfunc(math.erf, 1, 1)(x * 0.5**0.5).astype(x.dtype) if xp is np else xp.erf(x * 0.5**0.5)
    return 0.5 * x * (1 + erf)


def log_sigmoid(xp: Any, x: Array) -> Array:
    return xp.minimum(x, 0 * x) - xp.log1p(xp.exp(-abs(x)))


ACTIVATIONS: dict[str, Callable[[Any, Array], Array]] = {
    "tanh": lambda xp, x: xp.tanh(x),
    "relu": lambda xp, x: xp.maximum(x, 0 * x),
    "elu": lambda xp, x: xp.where(x > 0, x, xp.exp(xp.minimum(x, 0 * x)) - 1),
    "silu": silu,
    "gelu": gelu,
    "sigmoid": sigmoid,
}


def layer_norm(xp: Any, x: Array, weight: Array, eps: float) -> Array:
    centred = x - x.mean(-1)[..., None]
    return centred / xp.sqrt((centred * centred).mean(-1)[..., None] + eps) * weight


def rms_norm(xp: Any, x: Array, weight: Array, eps: float) -> Array:
    return x / xp.sqrt((x * x).mean(-1)[..., None] + eps) * weight


NORMS = {"layer": layer_norm, "rms": rms_norm}


def head_norm(xp: Any, h: Array, weight: Array, eps: float) -> Array:
    """(B, NH, DH) to (B, NH * DH)."""
    return layer_norm(xp, h, 1.0, eps).reshape(h.shape[0], -1) * weight


def convolve(xp: Any, w: Weights, name: str, x: Array, window: Array) -> tuple[Array, Array]:
    """SiLU of the causal convolution of x (B, E) behind its window (B, K - 1, E), and the window after it."""
    inputs = xp.concatenate([window, x[:, None]], axis=1)  # (B, K, E)
    return silu(xp, (inputs * w[f"{name}.weight"]).sum(1) + w[f"{name}.bias"]), inputs[:, 1:]


def headwise(x: Array, weight: Array) -> Array:
    """The block-diagonal map (blocks, out, in) of x (B, blocks * in)."""
    blocks = x.reshape(x.shape[0], weight.shape[0], 1, weight.shape[2])
    return (blocks @ weight.swapaxes(1, 2)).reshape(x.shape[0], -1)


def mlstm_block(xp: Any, w: Weights, at: str, kind: dict[str, Any], x: Array, state: list[Array]) -> tuple[Array, list]:
    """The paper's mLSTM block, one step of x (B, D): Beck et al. 2024, figure 11 and equations 19 to 27."""
    window, c, n, m = state  # (B, K - 1, E), (B, NH, DH, DH), (B, NH, DH), (B, NH)
    B, NH, DH = n.shape
    up = NORMS[kind["norm"]](xp, x, w[f"{at}.norm.weight"], kind["norm_eps"]) @ w[f"{at}.up.weight"].T
    inner, gate = up[:, : NH * DH], up[:, NH * DH :]
    convolved, window = convolve(xp, w, f"{at}.conv", inner, window) if kind["conv"] else (inner, window)
    given = {"q": convolved, "k": convolved, "v": inner}
    q, k, v = (headwise(given[name], w[f"{at}.{name}.weight"]) for name in "qkv")
    gates = xp.concatenate([q, k, v], axis=1) @ w[f"{at}.cell.gates.weight"].T + w[f"{at}.cell.gates.bias"]
    i, log_f = gates[:, :NH], log_sigmoid(xp, gates[:, NH:])
    q, k, v = (part.reshape(B, NH, DH) for part in (q * DH**-0.5, k, v))
    m_before, m = m, xp.maximum(log_f + m, i)
    kept, written = xp.exp(log_f + m_before - m)[..., None], xp.exp(i - m)[..., None] * k  # (B, NH, 1), (B, NH, DH)
    c = kept[..., None] * c + written[..., :, None] * v[..., None, :]
    n = kept * n + written
    scale = xp.maximum(abs((q * n).sum(-1)), xp.exp(-m)) + EPSILON
    h = (q[..., None, :] @ c).reshape(B, NH, DH) / scale[..., None]
    y = head_norm(xp, h, w[f"{at}.cell.norm.weight"], kind["head_norm_eps"])
    if kind["skip"]:
        y = y + w[f"{at}.skip"] * convolved
    return x + (y * silu(xp, gate)) @ w[f"{at}.down.weight"].T, [window, c, n, m]


def slstm_block(xp: Any, w: Weights, at: str, kind: dict[str, Any], x: Array, state: list[Array]) -> tuple[Array, list]:
    """The paper's sLSTM block, one step of x (B, D): Beck et al. 2024, figure 10 and equations 8 to 18."""
    window, h, c, n, m = state  # (B, K - 1, D), (B, NH, DH) each
    B, NH, DH = h.shape
    norm = NORMS[kind["norm"]]
    normed = norm(xp, x, w[f"{at}.norm.weight"], kind["norm_eps"])
    convolved, window = convolve(xp, w, f"{at}.conv", normed, window) if kind["conv"] else (normed, window)
    fed = (convolved, convolved, normed, normed)  # what i, f, z, o read
    weight, recurrent = w[f"{at}.cell.input_weight"], w[f"{at}.cell.recurrent_weight"]
    i, f, z, o = (
        (headwise(fed[g], weight[g]) + headwise(h.reshape(B, -1), recurrent[g])).reshape(B, NH, DH)
        + w[f"{at}.cell.bias"][g]
        for g in range(4)
    )
    log_f = f if kind["exponential_forget"] else log_sigmoid(xp, f)
    m_before, m = m, xp.maximum(log_f + m, i)
    kept, written = xp.exp(log_f + m_before - m), xp.exp(i - m)
    c, n = kept * c + written * xp.tanh(z), kept * n + written
    h = sigmoid(xp, o) * c / n
    x = x + head_norm(xp, h, w[f"{at}.cell.norm.weight"], kind["head_norm_eps"])
    hidden = norm(xp, x, w[f"{at}.ffn_norm.weight"], kind["norm_eps"]) @ w[f"{at}.ffn.up.weight"].T
    half = hidden.shape[1] // 2
    gated = ACTIVATIONS[kind["ffn"]](xp, hidden[:, :half]) * hidden[:, half:]
    return x + gated @ w[f"{at}.ffn.down.weight"].T, [window, h, c, n, m]


BLOCKS = {"mlstm": mlstm_block, "slstm": slstm_block}


def torch_gates(w: Weights, source: str, layer: int, x: Array, D: int) -> list[Array]:
    """The gates, each (B, D), that a layer of torch's cells reads from its input (``ih``) or its state (``hh``)."""
    gates = x @ w[f"rnn.weight_{source}_l{layer}"].T + w[f"rnn.bias_{source}_l{layer}"]
    return [gates[:, at : at + D] for at in range(0, gates.shape[1], D)]


def lstm_layer(xp: Any, w: Weights, layer: int, x: Array, state: list[Array]) -> tuple[Array, list]:
    """A layer of ``torch.nn.LSTM``."""
    h, c = state
    given, mixed = (torch_gates(w, *of, h.shape[1]) for of in (("ih", layer, x), ("hh", layer, h)))
    i, f, g, o = (a + b for a, b in zip(given, mixed, strict=True))
    c = sigmoid(xp, f) * c + sigmoid(xp, i) * xp.tanh(g)
    h = sigmoid(xp, o) * xp.tanh(c)
    return h, [h, c]


def gru_layer(xp: Any, w: Weights, layer: int, x: Array, state: list[Array]) -> tuple[Array, list]:
    """A layer of ``torch.nn.GRU``."""
    (h,) = state
    given, mixed = (torch_gates(w, *of, h.shape[1]) for of in (("ih", layer, x), ("hh", layer, h)))
    r, z = (sigmoid(xp, given[gate] + mixed[gate]) for gate in range(2))
    h = (1 - z) * xp.tanh(given[2] + r * mixed[2]) + z * h
    return h, [h]


LAYERS = {"lstm": lstm_layer, "gru": gru_layer}


def memory_step(xp: Any, w: Weights, spec: dict[str, Any], features: Array, state: Array) -> tuple[Array, Array]:
    """The actor's memory: features (B, F) and state (B, N) to the latent (B, D) and the state after it."""
    parts, at = [], 0
    for shape in spec["state_shapes"]:
        size = math.prod(shape)
        parts.append(state[:, at : at + size].reshape(state.shape[0], *shape))
        at += size
    if spec["cell"] in LAYERS:
        x, after = _torch_step(xp, w, spec, features, parts)
    else:
        x, after = features @ w["encoder.weight"].T + w["encoder.bias"], []
        for index, kind in enumerate(spec["blocks"]):
            own = [parts.pop(0) for _ in range(5 if kind["block"] == "slstm" else 4)]
            x, own = BLOCKS[kind["block"]](xp, w, f"stack.blocks.{index}", kind, x, own)
            after += own
        x = NORMS[spec["norm"]](xp, x, w["stack.norm.weight"], spec["norm_eps"])
    return x, xp.concatenate([part.reshape(state.shape[0], -1) for part in after], axis=1)


def _torch_step(xp: Any, w: Weights, spec: dict[str, Any], x: Array, parts: list[Array]) -> tuple[Array, list[Array]]:
    """torch's cells keep all layers' h, then all layers' c."""
    layers = []
    for layer in range(spec["layers"]):
        x, after = LAYERS[spec["cell"]](xp, w, layer, x, [part[:, layer] for part in parts])
        layers.append(after)
    return x, [xp.concatenate([after[leaf] for after in layers], axis=1) for leaf in range(len(parts))]


def choose(xp: Any, spec: dict[str, Any], outputs: Array, low: Array, high: Array) -> Array:
    """The most likely action (B, ...) for the action network's ``outputs`` (B, A)."""
    kind = spec["kind"]
    if kind == "discrete":
        return outputs.argmax(1)
    if kind == "multidiscrete":
        ends = np.cumsum(spec["sizes"]).tolist()
        parts = [outputs[:, end - size : end].argmax(1)[:, None] for end, size in zip(ends, spec["sizes"], strict=True)]
        return xp.concatenate(parts, axis=1)
    if kind == "multibinary":
        return xp.where(outputs > 0, 1, 0)
    if kind == "squashed":
        outputs = low + 0.5 * (xp.tanh(outputs) + 1) * (high - low)
    return xp.maximum(xp.minimum(outputs, high), low).reshape(-1, *spec["shape"])


class NumpyActor:
    """Acts as the policy does with ``deterministic=True``.

    Args:
        spec: what the policy is made of, as ``export_numpy`` writes it.
        weights: its arrays.

    >>> actor = NumpyActor.load("actor.npz")
    >>> action, state = actor(obs)                               # a fresh memory
    >>> action, state = actor(obs, state, episode_start=start)   # (B, ...) or one observation alone
    """

    def __init__(self, spec: dict[str, Any], weights: Weights) -> None:
        self.spec = spec
        memory = "memory."
        self._memory_weights = {name.removeprefix(memory): w for name, w in weights.items() if name.startswith(memory)}
        self._empty = weights["state"]
        self._shift, self._scale, self._low, self._high = map(weights.get, ("shift", "scale", "low", "high"))
        self._layers = [
            (np.ascontiguousarray(weights[f"{name}.weight"].T), weights[f"{name}.bias"], activation)
            for name, activation in spec["layers"]
        ]

    @classmethod
    def load(cls, path: str | Path) -> "NumpyActor":
        """Read what ``export_numpy`` wrote."""
        with np.load(path) as file:
            weights = dict(file)
        return cls(json.loads(str(weights.pop("spec"))), weights)

    def initial_state(self, batch_size: int = 1) -> np.ndarray:
        """The memory (B, N) before the first observation."""
        return np.repeat(self._empty, batch_size, axis=0)

    def __call__(
        self,
        observation: Any,
        state: np.ndarray | None = None,
        episode_start: Any = None,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Act once.

        Args:
            observation: one observation or a batch of B, as the environment gives it.
            state: what the last call returned, (B, N); None for a fresh memory.
            episode_start: bool (B,), or one for all: what forgets ``state`` before it reads; None for no row.
            action_masks: bool (B, A), the choices that are allowed; None for all.

        Returns:
            The action, with a batch if the observation had one, and the state after it.

        Raises:
            ValueError: an observation, state, flags or masks of another shape.
        """
        x, batched = self._features(observation)
        if state is None:
            state = self.initial_state(len(x))
        elif np.shape(state) != (len(x), self._empty.shape[1]):
            raise ValueError(f"state must be {(len(x), self._empty.shape[1])}, got {np.shape(state)}")
        elif episode_start is not None and self.spec["reset_on_done"]:
            starts = np.asarray(episode_start, dtype=bool).reshape(-1, 1)
            if len(starts) not in (1, len(x)):
                raise ValueError(f"episode_start must have one flag for each of {len(x)} rows, got {len(starts)}")
            state = np.where(starts, self._empty, state)
        latent, state = self._remember(x, state)
        y = np.concatenate([x, latent], axis=1) if self.spec["skip"] else latent
        for weight, bias, activation in self._layers:
            y = y @ weight + bias
            if activation is not None:
                y = ACTIVATIONS[activation](np, y)
        if action_masks is not None:
            y = self._mask(y, np.asarray(action_masks, dtype=bool))
        action = choose(np, self.spec["action"], y, self._low, self._high)
        return action if batched else action[0], state

    def _remember(self, features: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return memory_step(np, self._memory_weights, self.spec["memory"], features, state)

    def _features(self, observation: Any) -> tuple[np.ndarray, bool]:
        """(B, F), and whether the observation had a batch."""
        if isinstance(observation, tuple):
            raise ValueError("observation is a tuple, as Gym's reset returns it; pass its first part")
        parts = self.spec["observation"]
        read = [_encode(part, observation if part["key"] is None else observation[part["key"]]) for part in parts]
        batched = read[0][1]
        x = read[0][0] if len(read) == 1 else np.concatenate([part for part, _ in read], axis=1)
        if self._shift is not None:
            x = np.minimum(np.maximum((x - self._shift) * self._scale, -CLIP), CLIP)
        return x, batched

    def _mask(self, outputs: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        kind, parts, B = self.spec["action"]["kind"], self.spec["action"].get("sizes", []), len(outputs)
        size = sum(parts)
        if allowed.size != B * size:
            raise ValueError(f"action_masks must be {(B, size)} for {kind} actions, got shape {allowed.shape}")
        allowed = allowed.reshape(B, size)
        check_allowed(allowed, parts)
        if kind == "multibinary":
            outputs = np.where(allowed[:, 1::2], outputs, FORBIDDEN)
            return np.where(allowed[:, ::2], outputs, -FORBIDDEN)
        return np.where(allowed, outputs, FORBIDDEN)


def check_allowed(masks: np.ndarray, parts: Sequence[int]) -> None:
    """Raise ValueError unless each choice of each row of ``masks`` (B, A) has an allowed action.

    A softmax over nothing would be uniform, that is act as if all were allowed.
    """
    allowed = np.logical_or.reduceat(masks, np.cumsum([0, *parts[:-1]]), axis=1)
    if not allowed.all():
        row, choice = (int(at) for at in np.argwhere(~allowed)[0])
        where = f"row {row}" if len(parts) == 1 else f"choice {choice} of row {row}"
        raise ValueError(f"action_masks must allow at least one action of each choice, got none for {where}")


def _encode(part: dict[str, Any], value: Any) -> tuple[np.ndarray, bool]:
    """One part of an observation as (B, F) float32, and whether it had a batch."""
    value, shape = np.asarray(value), tuple(part["shape"])
    batched = value.ndim > len(shape)
    if value.shape[batched:] != shape:
        raise ValueError(f"the observation must be {shape}, or a batch of these, got shape {value.shape}")
    if part["kind"] == "box":
        return value.reshape(-1, part["size"]).astype(np.float32, copy=False), batched
    choices = value.reshape(-1, len(part["sizes"]))
    hot = [np.eye(size, dtype=np.float32)[choices[:, at]] for at, size in enumerate(part["sizes"])]
    return np.concatenate(hot, axis=1), batched
