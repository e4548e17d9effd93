"""Generates with a LoRA in stock diffusers, in a process that never imports this package.

    stock.py MODEL LORA_FOLDER|- PROMPT SEED STEPS GUIDANCE SIDE OUT.npy
"""

import sys

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline

model, lora, prompt, seed, steps, guidance, side, out = sys.argv[1:]
torch.set_num_threads(1)
pipe = StableDiffusionXLPipeline.from_pretrained(model)
if lora != "-":
    pipe.load_lora_weights(lora)
image = pipe(
    prompt,
    num_inference_steps=int(steps),
    guidance_scale=float(guidance),
    height=int(side),
    width=int(side),
    generator=torch.Generator().manual_seed(int(seed)),
    output_type="np",
).images[0]
assert "aurora_lora" not in sys.modules
np.save(out, image)
