"""State dicts in the layout of the ICCV 2023 authors' checkpoints, and what their networks compute, in plain functions.

Written from a description of keys, shapes and arithmetic; it shares no code with the package, which it is to check.
"""

import math

import torch
import torch.nn.functional as F

DEFAULT_3D = dict(
    spatial_dims=3, nf=16, ch_mult=(1, 2, 4, 8, 16), res_blocks=2, attention=(4,), codes=1024, emb=256, depthwise=True
)
DEFAULT_2D = dict(
    spatial_dims=2, nf=128, ch_mult=(1, 1, 2, 2, 4), res_blocks=2, attention=(4,), codes=1024, emb=256, depthwise=False
)
DEFAULT_SAMPLER = dict(codes=1024, emb=256, n_emb=512, layers=8, block_size=1024, volume_codes=512)


class Drawer:
    """Random tensors of a scale at which activations stay near 1; on the meta device, shapes alone."""

    def __init__(self, seed=0, device="cpu"):
        self.generator = torch.Generator().manual_seed(seed)
        self.device, self.state = device, {}

    def put(self, key, shape, scale=1.0, shift=0.0):
        if self.device == "meta":
            self.state[key] = torch.empty(shape, device="meta")
        else:
            self.state[key] = shift + scale * torch.randn(shape, generator=self.generator)

    def affine(self, name, shape, inputs):
        self.put(f"{name}.weight", shape, scale=inputs**-0.5)
        self.put(f"{name}.bias", shape[:1], scale=0.1)

    def conv(self, name, out_channels, in_channels, kernel, dims):
        self.affine(name, (out_channels, in_channels, *[kernel] * dims), in_channels * kernel**dims)

    def norm(self, name, channels):
        self.put(f"{name}.weight", (channels,), scale=0.2, shift=1.0)
        self.put(f"{name}.bias", (channels,), scale=0.1)


def autoencoder_state(
    spatial_dims, nf, ch_mult, res_blocks, attention, codes, emb, depthwise, channels=1, seed=0, device="cpu"
):
    """A bare autoencoder's state dict; `attention` lists levels."""
    draw = Drawer(seed, device)
    widths, last = [nf * factor for factor in ch_mult], len(ch_mult) - 1
    plan = [("conv", channels, nf)]
    for level, width in enumerate(widths):
        plan += level_plan(
            "depthwise" if depthwise else "res", (nf, *widths)[level], width, res_blocks, level in attention
        )
        plan += [("down", width, width)] if level < last else []
    block = "depthwise" if depthwise else "res"
    plan += [(block, widths[-1], widths[-1]), ("attn", widths[-1], widths[-1]), (block, widths[-1], widths[-1])]
    plan += [("norm", widths[-1], widths[-1]), ("conv", widths[-1], emb)]
    put_blocks(draw, "encoder", plan, spatial_dims)
    draw.put("quantize.embedding.weight", (codes, emb))
    plan = [("conv", emb, widths[-1]), ("res", widths[-1], widths[-1]), ("attn", widths[-1], widths[-1])]
    plan, current = [*plan, ("res", widths[-1], widths[-1])], widths[-1]
    for level in reversed(range(len(widths))):
        plan += level_plan("res", current, widths[level], res_blocks, level in attention)
        current = widths[level]
        plan += [("up", current, current)] if level else []
    put_blocks(draw, "generator", [*plan, ("norm", current, current), ("conv", current, channels)], spatial_dims)
    draw.conv("generator.logsigma.0", current, current, 3, spatial_dims)
    draw.conv("generator.logsigma.2", emb, current, 1, spatial_dims)
    return draw.state


def level_plan(block, in_channels, width, res_blocks, attention):
    plan = []
    for number in range(res_blocks):
        plan.append((block, in_channels if number == 0 else width, width))
        plan += [("attn", width, width)] if attention else []
    return plan


def put_blocks(draw, side, plan, dims):
    for index, (kind, in_channels, out_channels) in enumerate(plan):
        name = f"{side}.blocks.{index}"
        if kind == "conv":
            draw.conv(name, out_channels, in_channels, 3, dims)
        elif kind == "norm":
            draw.norm(name, out_channels)
        elif kind in ("down", "up"):
            draw.conv(f"{name}.conv", out_channels, in_channels, 3, dims)
        elif kind == "attn":
            put_attention(draw, name, out_channels, dims)
        else:
            put_residual(draw, name, in_channels, out_channels, dims, kind == "depthwise")


def put_attention(draw, name, channels, dims):
    draw.norm(f"{name}.norm", channels)
    if dims == 3:
        draw.affine(f"{name}.qkv", (3 * channels, channels), channels)
        draw.affine(f"{name}.proj_out", (channels, channels), channels)
    else:
        for part in ("q", "k", "v", "proj_out"):
            draw.conv(f"{name}.{part}", channels, channels, 1, dims)


def put_residual(draw, name, in_channels, out_channels, dims, depthwise):
    for number, channels in ((1, in_channels), (2, out_channels)):
        if depthwise:
            draw.put(f"{name}.norm{number}.gamma", (1, channels, *[1] * dims), scale=0.2, shift=1.0)
        else:
            draw.norm(f"{name}.norm{number}", channels)
    draw.conv(f"{name}.conv1", out_channels, in_channels, 1 if depthwise else 3, dims)
    draw.conv(f"{name}.conv2", out_channels, 1 if depthwise else out_channels, 3, dims)
    draw.conv(f"{name}.conv_out", out_channels, in_channels, 1, dims)


def vqgan_state(autoencoder):
    """A whole VQGAN as their trainers save it: the autoencoder beside a discriminator."""
    discriminator = {"disc.main.0.weight": torch.zeros(2, 1, 3, 3), "disc.main.1.num_batches_tracked": torch.tensor(3)}
    return {**{f"ae.{key}": value for key, value in autoencoder.items()}, **discriminator}


def sampler_state(codes, emb, n_emb, layers, block_size, volume_codes, seed=0, device="cpu"):
    """A whole sampler's state dict."""
    draw = Drawer(seed, device)
    for buffer in ("Lt_history", "Lt_count", "loss_history"):
        draw.put(buffer, (volume_codes + 1,))
    draw.put("_denoise_fn.pos_emb", (1, block_size, n_emb))
    draw.put("_denoise_fn.start_tok", (1, 1, n_emb))
    draw.put("_denoise_fn.tok_emb.weight", (codes + 1, n_emb))
    draw.affine("_denoise_fn.context_linear", (n_emb, emb), emb)
    for block in range(layers):
        name = f"_denoise_fn.blocks.{block}"
        for norm in ("ln1", "ln2"):
            draw.norm(f"{name}.{norm}", n_emb)
        for part in ("key", "query", "value", "proj"):
            draw.affine(f"{name}.attn.{part}", (n_emb, n_emb), n_emb)
        draw.affine(f"{name}.mlp.0", (4 * n_emb, n_emb), n_emb)
        draw.affine(f"{name}.mlp.2", (n_emb, 4 * n_emb), 4 * n_emb)
    draw.norm("_denoise_fn.ln_f", n_emb)
    draw.put("_denoise_fn.head.weight", (codes, n_emb), scale=n_emb**-0.5)
    return draw.state


class Reference:
    """Their autoencoder: the arithmetic of each kind of module, applied in the order of the keys."""

    def __init__(self, state, spatial_dims):
        self.state, self.dims = state, spatial_dims

    def encode(self, images):
        """Latents before quantisation."""
        return self.run("encoder", images, self.downsample)

    def codes(self, latents):
        vectors = latents.movedim(1, -1)
        table = self.state["quantize.embedding.weight"].double()
        distances = torch.cdist(vectors.reshape(-1, vectors.shape[-1]).double(), table)
        return distances.argmin(dim=1).reshape(vectors.shape[:-1])

    def decode(self, codes):
        quantized = self.state["quantize.embedding.weight"][codes].movedim(-1, 1)
        return self.run("generator", quantized, self.upsample)

    def quantizer_loss(self, latents, beta=0.25):
        quantized = self.state["quantize.embedding.weight"][self.codes(latents)].movedim(-1, 1)
        return (quantized - latents).square().mean() * (1 + beta)

    def run(self, side, hidden, resample):
        start = f"{side}.blocks."
        for index in sorted({int(key.split(".")[2]) for key in self.state if key.startswith(start)}):
            name = f"{start}{index}"
            if f"{name}.weight" in self.state:
                norm = self.state[f"{name}.weight"].ndim == 1
                hidden = self.norm(name, hidden) if norm else self.conv(name, hidden, padding=1)
            elif f"{name}.conv.weight" in self.state:
                hidden = resample(f"{name}.conv", hidden)
            elif f"{name}.norm.weight" in self.state:
                hidden = self.attention(name, hidden)
            else:
                hidden = self.residual(name, hidden)
        return hidden

    def conv(self, name, hidden, **arguments):
        convolution = {2: F.conv2d, 3: F.conv3d}[self.dims]
        return convolution(hidden, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **arguments)

    def norm(self, name, hidden):
        groups = 32 if hidden.shape[1] > 32 else 1
        return F.group_norm(hidden, groups, self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps=1e-6)

    def channel_norm(self, name, hidden):
        variance, mean = torch.var_mean(hidden, dim=1, correction=0, keepdim=True)
        return (hidden - mean) / (variance + 1e-5).sqrt() * self.state[f"{name}.gamma"]

    def residual(self, name, hidden):
        skip = hidden
        if self.state[f"{name}.conv1.weight"].shape[0] != hidden.shape[1]:
            skip = self.conv(f"{name}.conv_out", hidden)
        if f"{name}.norm1.gamma" in self.state:
            hidden = self.conv(f"{name}.conv1", F.gelu(self.channel_norm(f"{name}.norm1", hidden)))
            hidden = F.gelu(self.channel_norm(f"{name}.norm2", hidden))
            return skip + self.conv(f"{name}.conv2", hidden, padding=1, groups=hidden.shape[1])
        hidden = self.norm(f"{name}.norm1", hidden)
        hidden = self.norm(f"{name}.norm2", self.conv(f"{name}.conv1", hidden * hidden.sigmoid(), padding=1))
        return skip + self.conv(f"{name}.conv2", hidden * hidden.sigmoid(), padding=1)

    def attention(self, name, hidden):
        tokens = self.norm(f"{name}.norm", hidden).flatten(2)
        matrices = {}
        for part in ("qkv", "q", "k", "v", "proj_out"):
            if f"{name}.{part}.weight" in self.state:
                weight = self.state[f"{name}.{part}.weight"]
                matrices[part] = (weight.reshape(weight.shape[:2]), self.state[f"{name}.{part}.bias"][:, None])
        apply = lambda part, x: matrices[part][0] @ x + matrices[part][1]  # noqa: E731
        parts = apply("qkv", tokens).chunk(3, dim=1) if "qkv" in matrices else [apply(p, tokens) for p in "qkv"]
        query, key, value = parts
        weights = (query.transpose(1, 2) @ key / math.sqrt(hidden.shape[1])).softmax(dim=-1)
        return hidden + apply("proj_out", value @ weights.transpose(1, 2)).reshape(hidden.shape)

    def downsample(self, name, hidden):
        sides = [2 * side for side in hidden.shape[2:]]
        padded = hidden.new_zeros(*hidden.shape[:2], *[side + 1 for side in hidden.shape[2:]])
        padded[(..., *[slice(0, side) for side in hidden.shape[2:]])] = hidden
        output = self.conv(name, padded, stride=2)
        assert [4 * side for side in output.shape[2:]] == sides
        return output

    def upsample(self, name, hidden):
        for axis in range(2, 2 + self.dims):
            hidden = hidden.repeat_interleave(2, dim=axis)
        return self.conv(name, hidden, padding=1)


def reference_logits(state, codes, context, num_heads):
    """Logits of the sampler's network: codes `(B, N)`, context `(B, tokens, emb)` view by view -> `(B, N, K)`."""
    state = {key.removeprefix("_denoise_fn."): value for key, value in state.items()}
    linear = lambda name, x: x @ state[f"{name}.weight"].T + state[f"{name}.bias"]  # noqa: E731
    norm = lambda name, x: F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)  # noqa: E731
    hidden = torch.cat((linear("context_linear", context), state["tok_emb.weight"][codes]), dim=1) + state["pos_emb"]
    batch, length, width = hidden.shape
    for block in range(len({key.split(".")[1] for key in state if key.startswith("blocks.")})):
        name = f"blocks.{block}"
        normed = norm(f"{name}.ln1", hidden)
        query, key, value = (
            linear(f"{name}.attn.{part}", normed).view(batch, length, num_heads, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        weights = (query @ key.transpose(2, 3) / math.sqrt(width // num_heads)).softmax(dim=-1)
        hidden = hidden + linear(f"{name}.attn.proj", (weights @ value).transpose(1, 2).reshape(batch, length, width))
        inner = linear(f"{name}.mlp.0", norm(f"{name}.ln2", hidden))
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        hidden = hidden + linear(f"{name}.mlp.2", inner)
    return norm("ln_f", hidden[:, -codes.shape[1] :]) @ state["head.weight"].T
