"""Generates with a LoRA in stock diffusers, in a process that never imports this package.

    stock.py MODEL OUTPUT PROMPT SEED STEPS GUIDANCE SIDE LORA_FOLDER ...

writes OUTPUT/0.npy and so on, one for each LoRA.
"""

import sys

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline

model, output, prompt, seed, steps, guidance, side, *loras = sys.argv[1:]
torch.set_num_threads(1)
pipe = StableDiffusionXLPipeline.from_pretrained(model)
for index, lora in enumerate(loras):
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
    np.save(f"{output}/{index}.npy", image)
    pipe.unload_lora_weights()
assert "aurora_lora" not in sys.modules
