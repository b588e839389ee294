"""The antisymmetric GRU (A-GRU): its equation as a plain loop, and the module around it."""

import math
import numbers

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnbench_nb.models import kernel


def agru_loop(
    x: Tensor,
    h_0: Tensor,
    weight_ih: Tensor,
    gate_weight: Tensor,
    recurrent: Tensor,
    bias: Tensor | None,
    epsilon: Tensor,
) -> Tensor:
    """Run one A-GRU layer over a sequence: the equation itself, one step at a time.

    With A the recurrent matrix, sigma the sigmoid and * elementwise, each step is::

        z  = sigma(W_z x + U_z h + b_z)        update gate
        r  = sigma(W_r x + U_r h + b_r)        reset gate
        c  = tanh(V x + A (r * h) + b)         candidate
        h' = h + epsilon (z * c)               forward Euler step

    The reset gate acts before the matrix product; torch.nn.GRU's acts after it.

    Args:
        x: Inputs (T, B, D).
        h_0: Initial state (B, H).
        weight_ih: Input weights (3H, D), rows [W_z | W_r | V].
        gate_weight: Recurrent weights of the gates (2H, H), rows [U_z | U_r].
        recurrent: Recurrent matrix A of the candidate (H, H).
        bias: Biases (3H,), rows [b_z | b_r | b], or None for none.
        epsilon: Step size, a scalar tensor.

    Returns:
        The states after each step (T, B, H).
    """
    hidden_size = recurrent.shape[0]
    h, states = h_0, []
    for from_input in F.linear(x, weight_ih, bias):  # (B, 3H): all that depends on x alone
        gate_input, candidate_input = from_input.split([2 * hidden_size, hidden_size], dim=-1)
        z, r = torch.sigmoid(gate_input + F.linear(h, gate_weight)).chunk(2, dim=-1)
        c = torch.tanh(candidate_input + F.linear(r * h, recurrent))
        h = h + epsilon * (z * c)
        states.append(h)
    return torch.stack(states)


class _KernelLayer(torch.autograd.Function):
    """`agru_loop` by the kernel: returns the states (T, B, H) and the last of them (B, H).

    The last state is returned by itself so that a loss on it alone needs no gradient of the
    size of all states.
    """

    @staticmethod
    def forward(ctx, *layer: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        output, gates = kernel.forward(*layer, keep=True)
        ctx.save_for_backward(*layer, output, gates)
        return output, output[-1].clone()

    @staticmethod
    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *layer, output, gates = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: these gradients will be differentiated
            return _loop_gradients(layer, ctx.needs_input_grad, grads)
        if grads == (None, None):
            return (None,) * len(layer)
        return kernel.backward(
            *layer,
            output=output,
            gates=gates,
            grad_output=grads[0],
            grad_last=grads[1],
            need_x=ctx.needs_input_grad[0],
            need_h_0=ctx.needs_input_grad[1],
        )


def _loop_gradients(
    layer: list[Tensor | None], needed: tuple[bool, ...], grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of `_KernelLayer` by the loop, which can be differentiated again."""
    # Aliases, so that an argument computed from another one does not pass its gradient on here.
    layer = [None if tensor is None else tensor.view_as(tensor) for tensor in layer]
    states = agru_loop(*layer)
    pairs = [(s, g) for s, g in zip((states, states[-1]), grads, strict=True) if g is not None]
    outputs, outer = zip(*pairs, strict=True)
    wanted = [tensor for tensor, need in zip(layer, needed, strict=True) if need]
    found = iter(torch.autograd.grad(outputs, wanted, outer, create_graph=True))
    return tuple(next(found) if need else None for need in needed)


def agru_layer(*layer: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run `agru_loop` by the fastest path for its arguments: all states, and the last one."""
    tensors = [tensor for tensor in layer if tensor is not None]
    if not kernel.serves(tensors):
        states = agru_loop(*layer)
        return states, states[-1]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _KernelLayer.apply(*layer)
    states, _ = kernel.forward(*layer, keep=False)
    return states, states[-1]


class AGRU(nn.Module):
    """Antisymmetric GRU with the interface of torch.nn.GRU (see `agru_loop` for the equation).

    The recurrent matrix of the candidate is A = W - W^T - gamma I, so its eigenvalues are
    -gamma +- i lambda. It is computed from the current W at every call and never kept. Two
    controls ask whether that matters: ``frozen`` leaves W as it was drawn (a buffer
    ``weight_frozen_l{l}``, so that ``weight_hh_l{l}`` is (2H, H)), and ``free`` takes
    A = W - gamma I.

    Layer l holds the parameters ``weight_ih_l{l}`` (3H, D; above the first layer 3H, H), rows
    [z | r | candidate]; ``weight_hh_l{l}`` (3H, H), rows [U_z | U_r | W]; ``bias_l{l}`` (3H,);
    and the scalar ``log_epsilon_l{l}``, so that the step size exp(log_epsilon) stays positive
    however it is trained. Weights start uniform in +-1/sqrt(H), biases at zero.

    Args:
        input_size: Number of input features D.
        hidden_size: Number of hidden units H.
        num_layers: Number of stacked layers, each fed the states of the one below.
        bias: Whether the layers have biases.
        batch_first: Whether input and output are (B, T, ...) instead of (T, B, ...).
        dropout: Probability, in [0, 1), of dropping a state on its way to the layer above; it
            acts between layers only, so it needs at least two.
        gamma: Damping, any finite number: a hyperparameter, never part of the state dict.
        epsilon: Step size at the start, positive.
        learnable_epsilon: Whether the step size is trained; otherwise it is a buffer.
        recurrence: antisymmetric, or one of the controls frozen and free.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        gamma: float = 0.01,
        epsilon: float = 1.0,
        learnable_epsilon: bool = True,
        recurrence: str = "antisymmetric",
    ) -> None:
        """Check the arguments, which the class describes, and draw the weights."""
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for name, size in sizes.items():
            if not isinstance(size, numbers.Integral) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name} must be a positive integer, got {size!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a probability in [0, 1), got {dropout!r}")
        if dropout > 0 and num_layers == 1:
            raise ValueError(f"dropout={dropout} acts between layers, so one layer must have 0")
        if not math.isfinite(gamma):
            raise ValueError(f"gamma must be a finite number, got {gamma!r}")
        if not (math.isfinite(epsilon) and epsilon > 0):
            raise ValueError(f"epsilon must be a positive finite number, got {epsilon!r}")
        if recurrence not in ("antisymmetric", "frozen", "free"):
            raise ValueError(f"recurrence must be antisymmetric, frozen or free: {recurrence!r}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.gamma = float(gamma)
        self.learnable_epsilon = learnable_epsilon
        self.recurrence = recurrence
        trained = 2 if recurrence == "frozen" else 3  # blocks of H rows
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size
            self._add_parameter("weight_ih", layer, torch.empty(3 * hidden_size, width))
            self._add_parameter("weight_hh", layer, torch.empty(trained * hidden_size, hidden_size))
            if recurrence == "frozen":
                frozen = torch.empty(hidden_size, hidden_size)
                self.register_buffer(f"weight_frozen_l{layer}", frozen)
            self._add_parameter("bias", layer, torch.empty(3 * hidden_size) if bias else None)
            log_epsilon = torch.tensor(math.log(epsilon))
            if learnable_epsilon:
                self._add_parameter("log_epsilon", layer, log_epsilon)
            else:
                self.register_buffer(f"log_epsilon_l{layer}", log_epsilon)
        self.reset_parameters()

    def _add_parameter(self, name: str, layer: int, value: Tensor | None) -> None:
        parameter = None if value is None else nn.Parameter(value)
        self.register_parameter(f"{name}_l{layer}", parameter)

    def reset_parameters(self) -> None:
        """Draw the weights uniformly from +-1/sqrt(H) and set the biases to zero."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, tensor in self.state_dict(keep_vars=True).items():
            if name.startswith("weight"):
                nn.init.uniform_(tensor, -bound, bound)
            elif name.startswith("bias"):
                nn.init.zeros_(tensor)

    def epsilon(self, layer: int = 0) -> Tensor:
        """Return the current step size of a layer, a positive scalar tensor."""
        return getattr(self, f"log_epsilon_l{layer}").exp()

    def recurrent_matrix(self, layer: int = 0) -> Tensor:
        """Return A (H, H) of a layer, W - W^T - gamma I, computed from the current W."""
        _, w = self.hidden_weights(layer)
        identity = torch.eye(self.hidden_size, dtype=w.dtype, device=w.device)
        return (w if self.recurrence == "free" else w - w.T) - self.gamma * identity

    def hidden_weights(self, layer: int = 0) -> tuple[Tensor, Tensor]:
        """Return a layer's recurrent weights: the gates' [U_z | U_r] (2H, H), and W (H, H)."""
        weight = getattr(self, f"weight_hh_l{layer}")
        if self.recurrence == "frozen":
            return weight, getattr(self, f"weight_frozen_l{layer}")
        return weight.split([2 * self.hidden_size, self.hidden_size])

    def forward(self, input: Tensor, h_0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run all layers over a batch of sequences.

        Args:
            input: Inputs (T, B, D), (B, T, D) with batch_first, or (T, D) without a batch.
            h_0: Initial states (num_layers, B, H), or (num_layers, H) without a batch; zeros
                if None.

        Returns:
            The states of the top layer after every step, laid out like the input with H in
            place of D, and the states of all layers after the last step, laid out like h_0.

        Raises:
            ValueError: If the input or h_0 has the wrong number of dimensions or the wrong
                size, or the sequence is empty.
        """
        if input.dim() not in (2, 3):
            raise ValueError(f"input must have 2 or 3 dimensions, got {input.dim()}")
        if input.shape[-1] != self.input_size:
            raise ValueError(
                f"input.size(-1) must be input_size {self.input_size}, got {input.shape[-1]}"
            )
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(1)
        if batched and self.batch_first:
            x = x.transpose(0, 1)  # (T, B, D)
        if x.shape[0] == 0:
            raise ValueError("input must have at least one time step, got 0")

        batch_size = x.shape[1]
        batch_shape = (batch_size,) if batched else ()
        expected = (self.num_layers, *batch_shape, self.hidden_size)
        if h_0 is None:
            states = self.weight_hh_l0.new_zeros(self.num_layers, batch_size, self.hidden_size)
        elif h_0.shape != expected:
            raise ValueError(f"h_0 must have the shape {expected}, got {tuple(h_0.shape)}")
        else:
            states = h_0 if batched else h_0.unsqueeze(1)

        last_states = []
        for layer in range(self.num_layers):
            if layer > 0:
                x = F.dropout(x, self.dropout, self.training)
            gate_weight, _ = self.hidden_weights(layer)
            x, last = agru_layer(
                x,
                states[layer],
                getattr(self, f"weight_ih_l{layer}"),
                gate_weight,
                self.recurrent_matrix(layer),
                getattr(self, f"bias_l{layer}"),
                self.epsilon(layer),
            )
            last_states.append(last)
        h_n = torch.stack(last_states)  # (num_layers, B, H)
        if not batched:
            return x.squeeze(1), h_n.squeeze(1)
        return (x.transpose(0, 1) if self.batch_first else x), h_n

    def extra_repr(self) -> str:
        """Describe the module by its arguments, as torch's recurrent modules do."""
        parts = [f"{self.input_size}, {self.hidden_size}"]
        if self.num_layers != 1:
            parts.append(f"num_layers={self.num_layers}")
        if not self.bias:
            parts.append("bias=False")
        if self.batch_first:
            parts.append("batch_first=True")
        if self.dropout:
            parts.append(f"dropout={self.dropout}")
        parts.append(f"gamma={self.gamma}")
        if not self.learnable_epsilon:
            parts.append("learnable_epsilon=False")
        if self.recurrence != "antisymmetric":
            parts.append(f"recurrence={self.recurrence!r}")
        return ", ".join(parts)
