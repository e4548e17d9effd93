"""A plain training loop with Accelerate, in one process or several.

python examples/accelerate_loop.py --output runs/accelerate
accelerate launch --multi_gpu --num_processes 2 examples/accelerate_loop.py --output runs/accelerate
"""

from __future__ import annotations

import common
import torch
from peft import get_peft_model

from aurora_lora import calibrate, export_lora, merge_gap

with common.needs("train"):
    from accelerate import Accelerator
    from accelerate.utils import set_seed


def main() -> None:
    args = common.options(__doc__).parse_args()
    accelerator = Accelerator()
    tokenizer, base = common.load_model(args.model)
    set_seed(0)
    model = get_peft_model(base, common.aurora_config(args))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.learning_rate)
    model, optimizer = accelerator.prepare(model, optimizer)

    rank, world = accelerator.process_index, accelerator.num_processes
    batches = common.training_batches(args, tokenizer)
    model.train()
    for step, (batch, tokens) in enumerate(common.shares(batches, rank, world), start=1):
        # divided by the tokens of the whole batch, as the mean over the processes is taken of the gradients
        loss = model(**batch, num_items_in_batch=tokens).loss * world
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        total = accelerator.reduce(loss.detach(), "sum") / world
        accelerator.print(f"step {step}/{args.steps}: loss {total.item():.4f}")

    model = accelerator.unwrap_model(model)
    # on every process, each with its own rows: the moments are summed
    calibrate(model, [batch for batch, _ in common.shares(batches, rank, world)])
    if accelerator.is_main_process:
        gap = merge_gap(model, batches[:2])
        for form in gap.end_to_end:
            print(f"{form.form}: KL from trained {form.kl:.5f}, nll {form.metric['nll']:.4f}")
        model.save_pretrained(args.output / "adapter")
        export_lora(model, args.output / "lora")
    accelerator.wait_for_everyone()
    accelerator.free_memory()  # DDP's wrapper: freed after the group, it can deadlock with gloo's threads
    accelerator.end_training()


if __name__ == "__main__":
    main()
