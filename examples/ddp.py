"""Plain PyTorch DistributedDataParallel.

    torchrun --nproc-per-node 2 examples/ddp.py --output runs/ddp
    torchrun --nproc-per-node 2 examples/ddp.py --output runs/ddp --gradient-checkpointing reentrant

Every parameter of an adapter takes part in every step: no `find_unused_parameters`. The loss is divided by the tokens
of the whole batch, so that any number of processes takes the same steps.
"""

from __future__ import annotations

import argparse

import common
import torch
import torch.distributed as dist
from peft import get_peft_model
from torch.nn.parallel import DistributedDataParallel

from aurora_lora import calibrate


def train(args: argparse.Namespace, rank: int, world: int) -> None:
    """Train, calibrate and merge; the first process writes."""
    tokenizer, base = common.load_model(args.model)
    torch.manual_seed(0)
    model = get_peft_model(base, common.aurora_config(args))
    if args.gradient_checkpointing != "off":
        kwargs = {"use_reentrant": args.gradient_checkpointing == "reentrant"}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
        model.enable_input_require_grads()  # reentrant checkpoints want an input that needs a gradient
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    parallel = DistributedDataParallel(model.to(device))

    batches = common.training_batches(args, tokenizer)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.learning_rate)
    model.train()
    for step, (batch, tokens) in enumerate(common.shares(batches, rank, world), start=1):
        # DDP takes the mean of the gradients over the processes: times `world`, it is their sum
        loss = parallel(**batch, num_items_in_batch=tokens).loss * world
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(total := loss.detach() / world)
        if rank == 0:
            print(f"step {step}/{args.steps}: loss {total.item():.4f}")

    # each process brings its own rows; the moments are summed, so all of them find the same matrices
    report = calibrate(model, [batch for batch, _ in common.shares(batches, rank, world)])
    if rank == 0:
        print(f"calibrated {len(report.layers)} layers, explained share {min(e.explained for e in report.layers):.4f}")
        model.save_pretrained(args.output / "adapter")
        model.eval().merge_and_unload().save_pretrained(args.output / "merged")
    dist.barrier()  # the others wait for the files


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--gradient-checkpointing", choices=["off", "reentrant", "non-reentrant"], default="off")
    args = parser.parse_args()
    rank, world = common.start_processes()
    train(args, rank, world)
    # DDP's wrapper is freed by now: freed after the group, it can deadlock with gloo's threads
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
