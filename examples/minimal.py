"""A diffusion transformer, trained by flow matching to draw circles: everything on one page.

    python examples/minimal.py            3,000 steps, about two minutes on two CPU cores, leaves circles.png
    python examples/minimal.py 100 out.png

It uses ditlab's network, data, optimizer and picture writer, but neither its trainer nor its process: the loss and the
sampler are written out below.
"""

import math
import sys
from itertools import pairwise

import torch

import ditlab
from ditlab.data.circles import circles
from ditlab.runs.pictures import save_picture
from ditlab.training.muon import BatchedMuon

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
picture = sys.argv[2] if len(sys.argv) > 2 else "circles.png"
torch.manual_seed(0)

# The network: 16×16 pixels → 16 patches of 4×4 → 16 tokens of width 64 → 4 blocks → 16 patches → 16×16 pixels.
# Time enters every block as six vectors, a shift, a scale and a gate for attention and for the MLP. All start at zero.
net = ditlab.DiT(image_size=16, patch_size=4, dim=64, depth=4, heads=4)
print(f"{sum(p.numel() for p in net.parameters()):,} parameters")

# Muon updates the matrices of the blocks, AdamW everything else.
matrices = [p for p in net.blocks.parameters() if p.ndim == 2]
chosen = set(map(id, matrices))
rest = [p for p in net.parameters() if id(p) not in chosen]
muon = BatchedMuon(matrices, lr=0.03, weight_decay=0.0)  # torch's own multiplies in bf16, slow on most CPUs
adamw = torch.optim.AdamW(rest, lr=0.004, betas=(0.9, 0.95), weight_decay=0.0)


def learning_rate(step: int) -> float:
    """Warm up for 100 steps, then fall to zero along a cosine."""
    return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))


schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate) for optimizer in (muon, adamw)]

# Training. Mix an image with noise, x_t = (1 − t)·x0 + t·noise, and predict the velocity: dx_t/dt = noise − x0.
for step in range(steps):
    x0 = circles(128).images  # (B, 1, 16, 16) in [−1, 1], t = 0
    noise = torch.randn_like(x0)  # t = 1
    t = torch.rand(len(x0))
    mix = t[:, None, None, None]
    x_t = (1 - mix) * x0 + mix * noise
    velocity = net(x_t, t)
    loss = (velocity - (noise - x0)).square().mean()

    net.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    for optimizer, schedule in zip((muon, adamw), schedules, strict=True):
        optimizer.step()
        schedule.step()
    if step % 100 == 0 or step == steps - 1:
        print(f"step {step:5d}  loss {loss.item():.4f}")

# Sampling. Start from noise and follow the velocity back; Heun's method averages it over both ends of a step.
net.eval()
with torch.no_grad():
    x = torch.randn(64, 1, 16, 16)
    times = torch.linspace(1, 0, 26)
    for t, r in pairwise(times):
        slope = net(x, t.expand(64))
        ahead = x + (r - t) * slope
        if r > 0:
            slope = (slope + net(ahead, r.expand(64))) / 2
        x = x + (r - t) * slope

# What did the network look at? The attention of every patch to every patch, in the last block, halfway through.
with ditlab.probe(net) as record, torch.no_grad():
    net(x, torch.full((64,), 0.5))
print(f"attention maps of the last block: {tuple(record.attention[3].shape)}, rows sum to 1")
print(
    "mean |gate| of each block's attention:", [round(g["attn"].abs().mean().item(), 3) for g in record.gates.values()]
)

save_picture(picture, x)
print(f"wrote {picture}")
